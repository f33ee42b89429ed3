"""A run: what decides it, where its files lie, and what a terminal shows of it."""

from __future__ import annotations

import json
import platform
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from deblur import models
from deblur.errors import DeblurError, UsageError
from deblur.recipes import Recipe
from deblur.storage import Store
from jobs.progress import Progress
from jobs.runtime import versions

CONFIGURATION = "config.json"
MODEL = "model"
CHECKPOINTS = "checkpoints"
SHEET = "samples/step-{}.jpg"  # of a validation, after a step of eight digits
SCORE = "psnr"  # what the best checkpoint is the best by
# Why a run stopped that would stop there again: worker 0 writes it, the driver reads it.
FAILURE = "failure.json"
LIVE = "live.json"  # what a terminal shows: written by worker 0, read by the driver
_LIVE_EVERY_S = 1.0
_WORD_EVERY_S = 120.0


@dataclass(frozen=True)
class Plan:
    """What a run is: two runs with equal plans are the same run, with however many workers.

    Attributes:
        recipe: how the model is trained, single options included.
        blur: the recipe of the blur, and whether it is drawn `anew` in each epoch.
        size_px: side of the crops.
        precision: as the user said it.
        seed: decides the initial weights, the order of the photos, and all that is drawn.
        photos: how many are trained on, besides those `held_out`.
        fingerprint: of their contents.
        start_from: id of the model whose weights it begins with.
        total_steps, steps_per_epoch, validation_steps: lengths in steps.
        patience: validations without a gain after which it stops.
    """

    recipe: Recipe
    blur: str
    anew: bool
    size_px: int
    precision: str
    seed: int
    photos: int
    held_out: int
    fingerprint: str
    start_from: str | None
    total_steps: int
    steps_per_epoch: int
    validation_steps: int
    patience: int | None


def claim(home: Store, plan: Plan, command: str, source: str) -> None:
    """Write what the run is, or make sure that it is the one that is there.

    Raises:
        UsageError: if another run is there, or what is no run.
    """
    mine = _flat(asdict(plan))
    try:
        theirs = _flat(json.loads(home.read(CONFIGURATION))["plan"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{home.uri}/{CONFIGURATION} is not a run's: give the run a place of its own"
        ) from error
    except FileNotFoundError as error:
        for part in (MODEL, CHECKPOINTS):
            if next(home.list(part), None):
                raise UsageError(
                    f"{home.uri} holds {part}/ and no {CONFIGURATION}, and so is not a run: give the "
                    "run a place of its own"
                ) from error
        text = {
            "plan": asdict(plan),
            "command": command,
            "source": source,
            "versions": versions() | {"python": platform.python_version()},
        }
        home.put(CONFIGURATION, (json.dumps(text, indent=2) + "\n").encode())
        return
    different = [
        f"{name} {theirs.get(name)!r}, now {mine[name]!r}"
        for name in mine
        if theirs.get(name) != mine[name]
    ]
    if different:
        raise UsageError(
            f"{home.uri} holds a run with another configuration ({'; '.join(different)}): "
            "repeat its command to go on with it, or give another place"
        )


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Name a recipe's parts after it: one of them is called as one of the plan's."""
    parts = {f"recipe.{name}": value for name, value in plan["recipe"].items()}
    return {name: value for name, value in plan.items() if name != "recipe"} | parts


def is_finished(home: Store) -> bool:
    """Say whether the run has left its model."""
    return home.exists(f"{MODEL}/{models.CARD}")


def summary(home: Store) -> dict[str, Any]:
    """Return what there is to say of a finished run."""
    card = models.read_card(home / MODEL)
    return {
        "job": "train",
        "model": f"{home.uri}/{MODEL}",
        "model_id": card.model_id,
        "steps": card.steps,
        "seconds": round(card.seconds, 1),
        "figures": card.figures,
        "measured_on": card.measured_on,
    }


class Watcher:
    """Shows on the terminal what worker 0 writes to `live.json`."""

    def __init__(self, home: Store, progress: Progress) -> None:
        self._home, self._progress = home, progress
        self._shown: list[str] = []
        self._begun, self._asked = False, time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(_LIVE_EVERY_S):
            self._look()
            if not self._begun and time.monotonic() - self._asked > _WORD_EVERY_S:
                self._asked = time.monotonic()
                self._progress.note(
                    "no worker has begun yet: the cluster may lack free cores or GPUs"
                )

    def _look(self) -> None:
        try:
            live = json.loads(self._home.read(LIVE))
        except (OSError, ValueError, DeblurError):
            return  # nothing yet, or a store that does not answer: the next look may see it
        self._begun = True
        if live["lines"][: len(self._shown)] != self._shown:
            self._shown.clear()  # another worker 0, after a failure
        for line in live["lines"][len(self._shown) :]:
            self._shown.append(line)
            self._progress.note(line)
        self._progress.advance(live["step"] - self._progress.done, live["text"])

    def __enter__(self) -> None:
        self._home.delete(LIVE)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        with suppress(OSError, DeblurError):
            self._home.delete(LIVE)
