"""What worker 0 writes of a run: TensorBoard events, validations with sample sheets, the terminal's line, the model."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from deblur import metrics, models, pairs, photo
from deblur.precision import policy
from deblur.storage import LocalStore, open_store

_TELL_EVERY_S = 1.0
_SHEET_PHOTOS = 6
_MODEL = "model"
_EVENTS = "tensorboard"


class Record:
    """Writes what there is to know about a run. Steps count from 0; what is told counts from 1.

    Args:
        home: the run's place.
        options, plan: the job's.
        training: the state whose validation and model are written.
        seconds: training time before the checkpoint that the run goes on from.
    """

    def __init__(self, home: Any, options: Any, plan: Any, training: Any, seconds: float) -> None:
        self._home, self._options, self._plan, self._training = home, options, plan, training
        self._before_s, self._started = seconds, time.monotonic()
        self._told = time.monotonic()
        self._steps_told = 0
        self._waited_s = 0.0
        self._lines: list[str] = []
        self._test = _test_pairs(options)
        self._figures: dict[str, dict[str, float]] = {}
        # TensorFlow writes events to files; a bucket gets them at each validation.
        self._events_folder = tempfile.TemporaryDirectory(prefix="deblur-events-")
        local = (
            Path(home.root) / _EVENTS
            if isinstance(home, LocalStore)
            else Path(self._events_folder.name)
        )
        self._local_events = local
        self._events = tf.summary.create_file_writer(str(local))

    @property
    def seconds(self) -> float:
        """Training time of the run, over all its starts."""
        return self._before_s + time.monotonic() - self._started

    def step(self, step: int, losses: Mapping[str, Any], waited_s: float) -> None:
        """Take note of a step. Reads the losses, and so waits for the device, about once a second."""
        self._waited_s += waited_s
        self._steps_told += 1
        elapsed = time.monotonic() - self._told
        if elapsed < _TELL_EVERY_S:
            return
        values = {name: float(value) for name, value in losses.items()}
        images_per_s = self._steps_told * self._plan.global_batch / elapsed
        with self._events.as_default(step + 1):
            for name, value in values.items():
                tf.summary.scalar(f"loss/{name}", value)
            tf.summary.scalar("speed/images_per_second", images_per_s)
            tf.summary.scalar("speed/share_waiting_for_data", self._waited_s / elapsed)
        text = f"L1 {values['l1']:.3f} G {values['gan']:.2f} D {values['discriminator']:.2f} {images_per_s:.1f} img/s"
        self._tell(step + 1, text)
        self._told, self._steps_told, self._waited_s = time.monotonic(), 0, 0.0

    def _tell(self, step: int, text: str) -> None:
        live = {"step": step, "text": text, "lines": self._lines}
        self._home.put("live.json", json.dumps(live).encode())

    def validate(self, step: int, epoch: int) -> None:
        """Measure PSNR and SSIM on test pairs and write a sample sheet."""
        if not self._test:
            return
        scores: dict[str, list[tuple[float, float]]] = {"blurred": [], "restored": []}
        rows: list[np.ndarray] = []
        for blurred, sharp in self._test:
            unit = self._training.restore(blurred[None])[0]
            restored = np.rint(unit * 255).clip(0, 255).astype(np.uint8)
            for name, picture in (("blurred", blurred), ("restored", restored)):
                pair = (
                    metrics.psnr(picture, sharp, data_range=255),
                    metrics.ssim(picture, sharp, data_range=255),
                )
                scores[name].append(pair)
            if len(rows) < _SHEET_PHOTOS:
                rows.append(np.concatenate([blurred, restored, sharp], axis=1))
        means = {name: np.mean(values, axis=0) for name, values in scores.items()}
        self._figures = {
            name: {"psnr": round(float(psnr), 3), "ssim": round(float(ssim), 4)}
            for name, (psnr, ssim) in means.items()
        }
        sheet = np.concatenate(rows)
        encoded = photo.encode(photo.Photo(sheet, format="JPEG"))
        self._home.put(f"samples/epoch-{epoch:04d}-step-{step:08d}.jpg", encoded)
        restored_figures = self._figures["restored"]
        with self._events.as_default(step):
            for name, value in restored_figures.items():
                tf.summary.scalar(f"validation/{name}", value)
            tf.summary.image("blurred | restored | sharp", sheet[None])
        self._publish_events()
        self._lines.append(
            f"epoch {epoch}: PSNR {restored_figures['psnr']:.2f} dB, SSIM {restored_figures['ssim']:.3f} "
            f"(blurred {self._figures['blurred']['psnr']:.2f}, {self._figures['blurred']['ssim']:.3f})"
        )
        self._tell(step, "")
        self._told, self._steps_told, self._waited_s = time.monotonic(), 0, 0.0

    def _publish_events(self) -> None:
        self._events.flush()
        if not isinstance(self._home, LocalStore):
            for file in self._local_events.iterdir():
                self._home.put(f"{_EVENTS}/{file.name}", file.read_bytes())

    def finish(self, step: int) -> None:
        """Write the model and its card: the mark that the run is finished."""
        self._publish_events()
        plan, generator = self._plan, self._training.generator
        card = models.Card(
            name=self._options.name or plan.network,
            network=plan.network,
            model_id=models.model_id(generator, plan.network),
            recipe=plan.recipe,
            precision=policy(plan.precision),
            data={
                "pairs": self._options.pairs,
                "count": plan.pairs,
                "fingerprint": plan.fingerprint,
            },
            command=json.loads(self._home.read("config.json"))["command"],
            steps=step,
            seconds=self.seconds,
            seed=plan.seed,
            figures=self._figures,
            measured_on=f"{len(self._test)} test pairs of {self._options.pairs}"
            if self._test
            else "",
            versions={name: version(name) for name in ("deblur", "keras", "tensorflow", "ray")}
            | {"python": platform.python_version()},
        )
        models.save(open_store(f"{self._home.uri}/{_MODEL}"), generator, card)


def _test_pairs(options: Any) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    store = open_store(options.pairs)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for name in pairs.shards(store, "test"):
        for pair in pairs.read_shard(store.read(name)):
            if len(found) == options.validation_photos:
                return found
            found.append((photo.decode_lossless(pair.blurred), photo.decode_lossless(pair.sharp)))
    return found
