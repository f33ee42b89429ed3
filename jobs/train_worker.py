"""The loop of one training worker: every worker takes the same steps; worker 0 also writes and tells."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray.train
import tensorflow as tf

from deblur.errors import DeblurError
from deblur.networks import network
from deblur.precision import policy
from deblur.storage import open_store
from deblur.training import Training
from jobs.train_data import PROGRESS
from jobs.train_record import Record

_PROGRESS_FILE = "progress.json"


def train_worker(config: Mapping[str, Any]) -> None:
    """The loop of one worker. Every worker takes the same steps; worker 0 also writes and tells."""
    options, plan = config["options"], config["plan"]
    context = ray.train.get_context()
    # A worker alone on its node may use all of it; several share it evenly.
    threads = max((os.cpu_count() or 1) // context.get_local_world_size(), 1)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)
    alone = options.workers == 1
    strategy = (
        tf.distribute.get_strategy() if alone else tf.distribute.MultiWorkerMirroredStrategy()
    )

    training = Training(
        network(plan.network),
        policy=policy(plan.precision),
        seed=plan.seed,
        learning_rate=plan.learning_rate,
        strategy=strategy,
    )
    home = open_store(options.run)
    chief = context.get_world_rank() == 0
    progress = _load_checkpoint(training)
    if chief:
        home.put(PROGRESS, json.dumps({"step": progress.step}).encode())
    record = Record(home, options, plan, training, progress.seconds) if chief else None

    shard = ray.train.get_dataset_shard("train")
    batches = _batches(shard, options.batch_size) if progress.step < plan.total_steps else iter(())
    while progress.step < plan.total_steps:
        started = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - started
        losses = training.step(batch["blurred"], batch["sharp"])
        if record:
            record.step(progress.step, losses, waited)
        progress = replace(progress, step=progress.step + 1)
        ends_epoch = progress.step % plan.steps_per_epoch == 0 or progress.step == plan.total_steps
        if ends_epoch and record:
            epoch = -(-progress.step // plan.steps_per_epoch)
            if epoch % options.validate_every == 0 or progress.step == plan.total_steps:
                record.validate(progress.step, epoch)
        if ends_epoch or progress.step % options.checkpoint_steps == 0:
            if record:
                progress = replace(progress, seconds=record.seconds)
            _save_checkpoint(training, progress, chief)
    if record:
        record.finish(progress.step)


def _batches(shard: Any, batch_size: int) -> Iterator[Mapping[str, Any]]:
    yield from shard.iter_batches(batch_size=batch_size, batch_format="numpy", prefetch_batches=4)
    raise DeblurError("the training data ended before the run did")


@dataclass(frozen=True)
class _Progress:
    """Where a checkpoint stands."""

    step: int = 0
    seconds: float = 0.0


def _load_checkpoint(training: Any) -> _Progress:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return _Progress()
    with checkpoint.as_directory() as folder:
        training.load(Path(folder))
        return _Progress(**json.loads((Path(folder) / _PROGRESS_FILE).read_text()))


def _save_checkpoint(training: Any, progress: _Progress, chief: bool) -> None:
    """Report to Ray Train, which is a barrier: all workers come here, worker 0 with the files."""
    if not chief:
        ray.train.report({})
        return
    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        training.save(Path(folder))
        (Path(folder) / _PROGRESS_FILE).write_text(json.dumps(asdict(progress)))
        ray.train.report(
            asdict(progress),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"step-{progress.step:08d}",
        )
