"""What worker 0 writes of a run: TensorBoard events, validations with sample sheets, the terminal's line, the model."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from deblur import metrics, models, photo, pictures
from deblur.errors import DeblurError
from deblur.storage import LocalStore
from jobs import train_run

_TELL_EVERY_S = 1.0
_SHEET_PHOTOS = 6
_WORTH_SAYING = 0.05  # of the time, spent waiting for data
_EVENTS = "tensorboard"


class Record:
    """Writes what there is to know about a run. Steps count from 0; what is told counts from 1.

    Args:
        home: the run's place.
        config: what `jobs.train` hands to its workers.
        training: the state whose validation and model are written.
    """

    def __init__(self, home: Any, config: Mapping[str, Any], training: Any) -> None:
        self._home, self._plan, self._training = home, config["plan"], training
        self._name, self._licence = config["name"], config["licence"]
        self._held_out = list(config["album"].validation())
        self._told = time.monotonic()
        self._steps_told = 0
        self._waited_s = 0.0
        self._lines: list[str] = []
        # A store that does not answer keeps a PUT for a minute and a half, and training need not wait.
        self._publisher = ThreadPoolExecutor(1)
        self._published: Future[None] | None = None
        # TensorFlow writes events to files; a bucket gets them at each validation.
        self._events_folder = tempfile.TemporaryDirectory(prefix="deblur-events-")
        local = (
            Path(home.root) / _EVENTS
            if isinstance(home, LocalStore)
            else Path(self._events_folder.name)
        )
        self._local_events = local
        self._events = self._writer()

    def step(self, step: int, figures: Mapping[str, Any], waited_s: float) -> None:
        """Take note of a step. Reads the figures, and so waits for the device, about once a second."""
        self._waited_s += waited_s
        self._steps_told += 1
        now = time.monotonic()
        elapsed = now - self._told
        if elapsed < _TELL_EVERY_S:
            return
        values = {name: float(value) for name, value in figures.items()}
        images_per_s = self._steps_told * self._plan.recipe.batch_size / elapsed
        waiting = self._waited_s / elapsed
        with self._events.as_default(step + 1):
            for name, value in values.items():
                tf.summary.scalar(f"{_group(name)}/{name}", value)
            tf.summary.scalar("speed/images_per_second", images_per_s)
            tf.summary.scalar("speed/share_waiting_for_data", waiting)
        self._told, self._steps_told, self._waited_s = now, 0, 0.0
        self._show(step + 1, live_text(values, images_per_s, waiting))

    def tell(self, line: str) -> None:
        """Say something on the terminal that stays there."""
        self._lines.append(line)

    def _show(self, step: int, text: str) -> None:
        """Publish on another thread, unless what was published last is still on its way."""
        if self._published is None or self._published.done():
            self._published = self._publisher.submit(self._publish, step, text)

    def _publish(self, step: int, text: str) -> None:
        live = {"step": step, "text": text, "lines": self._lines}
        with suppress(OSError, DeblurError):  # a line on a terminal is not worth a run
            self._home.put(train_run.LIVE, json.dumps(live).encode())

    def validate(self, step: int) -> dict[str, dict[str, float]]:
        """Return PSNR and SSIM on the held-out photos, and write a sample sheet of the first."""
        scores: dict[str, list[tuple[float, float]]] = {"blurred": [], "restored": []}
        rows: list[np.ndarray] = []
        for sharp, blurred in self._held_out:
            restored = pictures.of_unit(self._training.restore(blurred[None])[0])
            for name, picture in (("blurred", blurred), ("restored", restored)):
                pair = (
                    metrics.psnr_8bit(picture, sharp),
                    metrics.ssim(picture, sharp, data_range=255),
                )
                scores[name].append(pair)
            if len(rows) < _SHEET_PHOTOS:
                shown = slice(0, self._plan.size_px)  # photos are validated on more than a crop
                row = [picture[shown, shown] for picture in (blurred, restored, sharp)]
                rows.append(np.concatenate(row, axis=1))
        means = {name: np.mean(values, axis=0) for name, values in scores.items()}
        figures = {
            name: {"psnr": round(float(psnr), 4), "ssim": round(float(ssim), 5)}
            for name, (psnr, ssim) in means.items()
        }
        self._write_validation(step, figures, np.concatenate(rows))
        return figures

    def _write_validation(
        self, step: int, figures: Mapping[str, Mapping[str, float]], sheet: np.ndarray
    ) -> None:
        encoded = photo.encode(photo.Photo(sheet, format="JPEG"))
        self._home.put(train_run.SHEET.format(f"{step:08d}"), encoded)
        restored, blurred = figures["restored"], figures["blurred"]
        with self._events.as_default(step):
            for name, value in restored.items():
                tf.summary.scalar(f"validation/{name}", value)
            tf.summary.image("blurred | restored | sharp", sheet[None])
        self._publish_events()
        epoch = step / self._plan.steps_per_epoch
        self.tell(
            f"epoch {epoch:.4g}: PSNR {restored['psnr']:.2f} dB, SSIM {restored['ssim']:.3f} "
            f"(blurred {blurred['psnr']:.2f}, {blurred['ssim']:.3f})"
        )
        self._show(step, "")
        self._told, self._steps_told, self._waited_s = time.monotonic(), 0, 0.0

    def _publish_events(self) -> None:
        self._events.flush()
        if isinstance(self._home, LocalStore):
            return
        # Each file once: with all the sheets of a long run one would come to gigabytes.
        self._events.close()
        for file in self._local_events.iterdir():
            self._home.put(f"{_EVENTS}/{file.name}", file.read_bytes())
            file.unlink()
        self._events = self._writer()

    def _writer(self) -> Any:
        return tf.summary.create_file_writer(str(self._local_events))

    def _end(self, step: int) -> None:
        """Publish the last state, with all that there was to tell."""
        self._publisher.shutdown()
        self._publish(step, "")

    def finish(self, step: int, progress: Any, policy: str) -> None:
        """Write the model and its card: the mark that the run is finished.

        Args:
            step: of the weights.
            progress: where the run stands.
            policy: the dtype policy that it was trained in.
        """
        self._end(progress.step)
        self._publish_events()
        plan, generator = self._plan, self._training.averaged
        configuration = json.loads(self._home.read(train_run.CONFIGURATION))
        count = len(self._held_out)
        card = models.Card(
            name=self._name or plan.recipe.network,
            network=plan.recipe.network,
            model_id=models.model_id(generator, plan.recipe.network),
            recipe=plan.blur,
            precision=policy,
            data={
                "source": configuration["source"],
                "count": plan.photos,
                "fingerprint": plan.fingerprint,
            },
            command=configuration["command"],
            steps=step,
            seconds=progress.seconds,
            seed=plan.seed,
            figures=progress.figures or {},
            measured_on=f"{count} training photos that were held out" if count else "",
            licence=self._licence,
            versions=configuration["versions"],
        )
        models.save(self._home / train_run.MODEL, generator, card)


def _group(name: str) -> str:
    """Return the page of TensorBoard that a figure of a step belongs to."""
    if name.startswith("accuracy"):
        return "discriminator"
    if name.startswith("gradient_norm"):
        return "gradient"
    return "schedule" if name == "learning_rate" else "loss"


def live_text(figures: Mapping[str, float], images_per_s: float, waiting: float) -> str:
    """Return what a terminal shows of a step, in 25 columns: the bar and the time left take 55."""
    word = f"waits {waiting:.0%}" if waiting > _WORTH_SAYING else f"error {figures['error']:.4f}"
    rate = f"{images_per_s:.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"
    return f"{word}, {rate} img/s"
