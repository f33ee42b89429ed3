"""The loop of one training worker: every worker takes the same steps; worker 0 also writes and tells."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective

from deblur import models
from deblur.divergence import Diverged, Watch
from deblur.precision import policy
from deblur.sampling import Order
from deblur.training import Training
from jobs import train_devices
from jobs.train_data import Feed, blocks_ahead, cores
from jobs.train_devices import Unfit
from jobs.train_record import Record
from jobs.train_run import CHECKPOINTS, FAILURE, SCORE

# Of a checkpoint without a validation: no photo has less than 0 dB. Not NaN, which does not outlive
# the file that Ray Train resumes from.
_UNKNOWN = -1.0

_PROGRESS_FILE = "progress.json"
# Between questions whether this node is about to be taken away, of which some have 30 s of notice; an
# answer takes some 5 ms. Where steps become slower, no more of them than these pass without one.
_NOTICE_EVERY_S, _NOTICE_STEPS = 5.0, 100
# On which units are looked for that are dormant. With a few, units would be that are made for others.
_SHOWN_PHOTOS = 64


@dataclass(frozen=True)
class Progress:
    """Where a checkpoint stands.

    Attributes:
        step: steps taken.
        seconds: training time so far.
        best_step, best: of the validation to keep, and its PSNR; 0 if there was none.
        without_gain: validations since then.
        figures: of that validation.
        policy: the dtype policy that the run was begun in.
    """

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best: float = float("-inf")
    without_gain: int = 0
    figures: Mapping[str, Mapping[str, float]] | None = None
    policy: str = ""


def train_worker(config: Mapping[str, Any]) -> None:
    """Run the loop of one worker; leave word, and no error for Ray to retry, of what would come again."""
    try:
        _Worker(config).run()
    except (Diverged, Unfit) as error:  # on all workers in the same step
        if ray.train.get_context().get_world_rank() == 0:
            config["home"].put(FAILURE, json.dumps({"error": str(error)}).encode())


class _Worker:
    """One worker of a run.

    Args:
        config: `home`, `plan`, `album` and what else `jobs.train` hands over.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config, self._plan = config, config["plan"]
        self._home = config["home"]
        self._chief = ray.train.get_context().get_world_rank() == 0
        strategy = train_devices.strategy(config["gpus"])
        # What was begun in bfloat16 goes on so, whatever the machine of worker 0 is by now.
        precision = (_begun() or policy(self._plan.precision)) if self._chief else None
        self.policy = ray.train.collective.broadcast_from_rank_zero(precision)
        self._recipe = self._plan.recipe
        self._training = Training(
            self._recipe,
            policy=self.policy,
            seed=self._plan.seed,
            strategy=strategy,
            parts=config["parts"],
        )
        self._watch = Watch()
        self._revived = 0
        self._reported = ""  # the last checkpoint, which may not be uploaded yet
        self._progress = self._load_checkpoint()

    def run(self) -> None:
        """Take all steps that are left."""
        plan = self._plan
        record = Record(self._home, self._config, self._training) if self._chief else None
        if record and self._progress.step:
            record.tell(f"going on after step {self._progress.step}, from its checkpoint")
        if record and self._revived:
            record.tell(f"{self._revived} units of the model were dormant, and begin anew")
        seconds_before, started = self._progress.seconds, time.monotonic()
        feed = self._feed()
        batches = feed.batches(self._progress.step, plan.total_steps)
        notice = _Notice(self._progress.step)
        while self._progress.step < plan.total_steps and not self._stopped:
            step = self._progress.step
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            rate = self._recipe.learning_rate_at(step, plan.total_steps)
            figures = self._training.step(batch.blurred, batch.sharp, batch.weights, rate)
            self._watch.add(step, feed.keys(step), figures)
            if record:
                record.step(step, {**figures, "learning_rate": rate}, waited)
            step += 1
            seconds = seconds_before + time.monotonic() - started
            self._progress = replace(self._progress, step=step, seconds=seconds)
            last = step == plan.total_steps
            validated = None
            if last or step % plan.validation_steps == 0:
                self._watch.settle()
                validated = self._validate(record)
            noticed = notice.given(step)
            if (
                last
                or self._stopped
                or validated
                or noticed
                or step % self._config["checkpoint_steps"] == 0
            ):
                self._save_checkpoint(validated, wait=last or self._stopped or noticed)
        if record:
            self._finish(record)

    def _feed(self) -> Feed:
        context, plan = ray.train.get_context(), self._plan
        workers = context.get_world_size()
        return Feed(
            self._config["album"],
            Order(plan.photos, plan.recipe.batch_size, plan.seed),
            workers=workers,
            worker=context.get_world_rank(),
            replicas=self._training.replicas_here,
            # Of the cluster as it is by now: the group starts again when it grows or shrinks.
            ahead=blocks_ahead(cores(), workers, self._config["cpus"]),
        )

    @property
    def _stopped(self) -> bool:
        """Whether there was no gain for too long; a checkpoint knows it as well."""
        patience = self._plan.patience
        return patience is not None and self._progress.without_gain >= patience

    def _validate(self, record: Record | None) -> float | None:
        """Return the PSNR on the held-out photos, if there are any."""
        if not self._config["album"].held_out:
            return None
        figures = record.validate(self._progress.step) if record else None
        figures = ray.train.collective.broadcast_from_rank_zero(figures)
        score = float(figures["restored"]["psnr"])
        progress = self._progress
        # Of equal ones the later: as Ray Train keeps checkpoints.
        if score >= progress.best or self._recipe.keep == "last":
            progress = replace(
                progress, best=score, best_step=progress.step, without_gain=0, figures=figures
            )
        else:
            progress = replace(progress, without_gain=progress.without_gain + 1)
        self._progress = progress
        if self._stopped and record:
            record.tell(
                f"stopped early: no gain in {self._plan.patience} validations "
                f"since step {progress.best_step}"
            )
        return score

    # === Checkpoints ===

    def _load_checkpoint(self) -> Progress:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            if (start := self._config["start_from"]) is not None:
                # The same on all workers, as what they see of it is.
                shown = self._config["album"].glimpse(_SHOWN_PHOTOS)
                self._revived = self._training.start_from(
                    models.load(start, self.policy).generator,
                    (example.blurred for example in shown),
                    seed=self._plan.seed,
                )
            return Progress(policy=self.policy)
        with checkpoint.as_directory() as folder:
            self._training.load(Path(folder))
            progress = Progress(**json.loads((Path(folder) / _PROGRESS_FILE).read_text()))
        self._watch.last_good = _name(progress.step)
        return progress

    def _save_checkpoint(self, score: float | None, *, wait: bool) -> None:
        """Report to Ray Train, which is a barrier: all workers come here, worker 0 with the files.

        The files are written at once and uploaded while training goes on, unless `wait` is set or the
        last are not there yet: on a slow link they would pile up on this disk.
        """
        self._watch.settle()
        self._watch.last_good = name = _name(self._progress.step)
        if not self._chief:
            ray.train.report({})
            return
        there = ray.train.get_checkpoint()
        wait |= self._reported not in {"", Path(there.path).name if there else ""}
        self._reported = name
        mode = ray.train.CheckpointUploadMode
        folder = Path(tempfile.mkdtemp(prefix="deblur-"))  # Ray removes it after the upload
        self._training.save(folder)
        (folder / _PROGRESS_FILE).write_text(json.dumps(asdict(self._progress)))
        ray.train.report(
            {SCORE: _UNKNOWN if score is None else score},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=mode.SYNC if wait else mode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )

    def _finish(self, record: Record) -> None:
        """Write the model: of the best checkpoint, if there were validations."""
        best = self._progress.best_step
        if best not in {0, self._progress.step}:
            with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
                checkpoints = self._home / CHECKPOINTS / _name(best)
                for entry in checkpoints.list():
                    (Path(folder) / entry.key).write_bytes(checkpoints.read(entry.key))
                self._training.load(Path(folder))
        record.finish(best or self._progress.step, self._progress, self.policy)


class _Notice:
    """Asks now and then whether this node is about to be taken away: all workers after the same steps."""

    def __init__(self, step: int) -> None:
        """Begin after a step."""
        self._asked, self._asked_at, self._next = step, time.monotonic(), step + 1
        self._given = False

    def given(self, step: int) -> bool:
        """Say whether there is notice after a step, for the first time."""
        if self._given or step < self._next:
            return False
        now = time.monotonic()
        seconds = (now - self._asked_at) / (step - self._asked)
        steps = min(max(int(_NOTICE_EVERY_S / max(seconds, 1e-9)), 1), _NOTICE_STEPS)
        # By the clock of worker 0.
        self._next = step + ray.train.collective.broadcast_from_rank_zero(steps)
        self._asked, self._asked_at = step, now
        self._given = ray.train.get_preemption_info() is not None
        return self._given


def _begun() -> str:
    """Return the dtype policy of the checkpoint that the run goes on from, if there is one that says so."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return ""
    with checkpoint.filesystem.open_input_stream(f"{checkpoint.path}/{_PROGRESS_FILE}") as file:
        return str(json.loads(file.read()).get("policy", ""))


def _name(step: int) -> str:
    return f"step-{step:08d}"
