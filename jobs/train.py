"""Pairs -> a model. Ray Train's workers step together; Ray Data decodes and jitters what they see.

    deblur train pairs/ run/ --epochs 40                                 # the report's GAN: 40 epochs at batch 1

The order of the pairs and each pair's jitter depend on the seed alone, so a run that is killed and started again goes on
as if nothing had happened, and N workers with batch b take the steps of one worker with batch N b.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from deblur import models, pairs
from deblur.errors import DeblurError, UsageError
from deblur.networks import network
from deblur.sampling import Order
from deblur.storage import Store, open_store
from jobs.runtime import Cluster, Progress, cluster, hushed, note

CONFIGURATION = "config.json"
_CHECKPOINTS = "checkpoints"
PROGRESS = "progress.json"  # the step that the data begins at: worker 0 writes it before anyone asks for data
_LIVE = "live.json"  # what a terminal shows of a run: written by worker 0, read by the driver
_LIVE_EVERY_S = 1.0


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    pairs: str
    "Pairs that `deblur preprocess` made. Folder or s3://bucket/prefix."
    run: str
    "Where the run lives: checkpoints, TensorBoard events, and the model. Folder or s3://bucket/prefix."
    _: KW_ONLY
    name: str | None = None
    "What the model is called; else as its network."
    network: str = "pix2pix"
    "pix2pix (the report's, 57 M parameters) or pix2pix-small (a sixteenth)."
    epochs: int = 40
    "Times that every training pair is seen."
    batch_size: int = 1
    "Pairs a worker and step."
    workers: int = 1
    "Training processes; each takes a GPU with --gpu."
    gpu: bool = False
    "Give each worker a GPU."
    learning_rate: float = 2e-4
    "Adam's, for generator and discriminator."
    precision: str = "auto"
    "bfloat16, float32, or auto: bfloat16 where the hardware has it."
    seed: int = 0
    "Decides the initial weights, the order of the pairs, their jitter and dropout."
    validate_every: int = 1
    "Epochs between validations on test pairs; each also writes a sample sheet."
    validation_photos: int = 64
    "Test pairs to validate on, at most."
    checkpoint_steps: int = 1000
    "Steps between checkpoints, besides the one after each epoch."
    max_steps: int | None = None
    "Stop after so many steps, whatever the epochs."
    max_failures: int = 3
    "Lost workers to recover from before the run gives up."
    cluster: Cluster = Cluster()


def run(options: Options) -> dict[str, Any]:
    """Train, and return the summary."""
    _check(options)
    source, home = open_store(options.pairs), open_store(options.run)
    dataset = pairs.read_dataset(source)
    if not dataset.total("train"):
        raise UsageError(f"{source.uri} has no training pairs")
    _check_size(options, dataset)
    home.make_ready()
    plan = _plan(options, dataset)
    _claim(home, plan, options)
    if home.exists(_model_file()):
        note(f"{home.uri} is finished already")
        return _summary(home)
    note(
        f"training {options.network} on {dataset.total('train')} pairs of {dataset.recipe}: "
        f"{plan.total_steps} steps of {plan.global_batch}, {options.workers} worker(s)"
    )
    with cluster(options.cluster):
        _fit(options, home, plan, dataset)
    return _summary(home)


@dataclass(frozen=True)
class Plan:
    """What a run is: two runs with equal plans are the same run."""

    network: str
    precision: str
    learning_rate: float
    global_batch: int
    workers: int
    seed: int
    total_steps: int
    steps_per_epoch: int
    pairs: int
    recipe: str
    fingerprint: str


def _plan(options: Options, dataset: pairs.Dataset) -> Plan:
    order = Order(dataset.total("train"), options.batch_size * options.workers, options.seed)
    steps = options.epochs * order.steps_per_epoch
    return Plan(
        network=options.network,
        precision=options.precision,
        learning_rate=options.learning_rate,
        global_batch=order.global_batch,
        workers=options.workers,
        seed=options.seed,
        total_steps=min(steps, options.max_steps or steps),
        steps_per_epoch=order.steps_per_epoch,
        pairs=order.pairs,
        recipe=dataset.recipe,
        fingerprint=dataset.fingerprint,
    )


def _claim(home: Store, plan: Plan, options: Options) -> None:
    """Write the run's configuration, or make sure that it is the one that is there."""
    mine = asdict(plan)
    try:
        theirs = json.loads(home.read(CONFIGURATION))["plan"]
    except FileNotFoundError:
        text = json.dumps({"plan": mine, "command": command(options), "pairs": options.pairs}, indent=2)
        home.put(CONFIGURATION, text.encode())
        return
    different = [f"{name} {theirs.get(name)!r}, now {mine[name]!r}" for name in mine if theirs.get(name) != mine[name]]
    if different:
        raise UsageError(
            f"{home.uri} holds a run with another configuration ({'; '.join(different)}): "
            "repeat its command to go on with it, or give another place"
        )


def command(options: Options) -> str:
    """Return the command line, for the card. Options that are secrets do not exist."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv[1:] else f"deblur train {options.pairs} {options.run}"


# === Driver ===


def _fit(options: Options, home: Store, plan: Plan, dataset: pairs.Dataset) -> None:
    import ray

    with hushed(not options.cluster.verbose):  # this imports TensorFlow, which greets
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.tensorflow import TensorflowTrainer

        from jobs import training_data
        from jobs.tensorflow_backend import TensorflowConfig

    filesystem, path = home.arrow()
    cpus = cpus_per_worker(ray.cluster_resources().get("CPU", 1), options.workers)
    trainer = TensorflowTrainer(
        train_worker,
        train_loop_config={"options": options, "plan": plan, "cpus": cpus},
        tensorflow_config=TensorflowConfig(),
        datasets={"train": training_data.encoded(open_store(options.pairs))},
        dataset_config=training_data.Planned(home, plan.global_batch, plan.seed, plan.total_steps, plan.recipe),
        scaling_config=ScalingConfig(
            num_workers=options.workers,
            use_gpu=options.gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if options.gpu else {})},
        ),
        run_config=RunConfig(
            name=_CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=options.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    with Progress("train", plan.total_steps, "steps") as progress, _watching(home, plan, progress):
        trainer.fit()


def cpus_per_worker(total: float, workers: int) -> float:
    """Return the CPUs that Ray reserves for each training worker: all but one, which decodes what they see.

    A reservation only keeps others off. On two cores, two workers reserve half a core each and use what there is.
    """
    share = (total - 1 if total > 1 else total / 2) / workers
    return float(int(share)) if share >= 1 else max(int(share * 100) / 100, 0.01)


class _watching:  # noqa: N801  # reads as a statement
    """Shows on the terminal what worker 0 writes to `live.json`."""

    def __init__(self, home: Store, plan: Plan, progress: Progress) -> None:
        import threading

        self._home, self._plan, self._progress = home, plan, progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(_LIVE_EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            live = json.loads(self._home.read(_LIVE))
        except (OSError, ValueError):
            return
        for line in live["lines"][len(self._shown) :]:
            self._shown.append(line)
            self._progress.note(line)
        self._progress.advance(live["step"] - self._progress.done, live["text"])

    def __enter__(self) -> None:
        self._shown: list[str] = []
        self._home.delete(_LIVE)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._home.delete(_LIVE)


def _summary(home: Store) -> dict[str, Any]:
    card = models.read_card(f"{home.uri}/model")
    return {
        "job": "train",
        "model": f"{home.uri}/model",
        "model_id": card.model_id,
        "steps": card.steps,
        "seconds": round(card.seconds, 1),
        "figures": card.figures,
        "measured_on": card.measured_on,
    }


def _model_file() -> str:
    return f"model/{models.CARD}"


# === Worker ===


def train_worker(config: Mapping[str, Any]) -> None:
    """The loop of one worker. Every worker takes the same steps; worker 0 also writes and tells."""
    import ray.train
    import tensorflow as tf

    options, plan = config["options"], config["plan"]
    context = ray.train.get_context()
    # A worker alone on its node may use all of it; several share it evenly.
    threads = max((os.cpu_count() or 1) // context.get_local_world_size(), 1)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)
    if options.workers > 1:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.get_strategy()

    from deblur.precision import policy
    from deblur.training import Training
    from jobs.training_record import Record

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


_PROGRESS_FILE = "progress.json"


def _load_checkpoint(training: Any) -> _Progress:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return _Progress()
    with checkpoint.as_directory() as folder:
        training.load(Path(folder))
        return _Progress(**json.loads((Path(folder) / _PROGRESS_FILE).read_text()))


def _save_checkpoint(training: Any, progress: _Progress, chief: bool) -> None:
    """Report to Ray Train, which is a barrier: all workers come here, worker 0 with the files."""
    import ray.train

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


# === Usage ===


def _check(options: Options) -> None:
    network(options.network)
    if options.precision not in {"auto", "bfloat16", "float32"}:
        raise UsageError(f"--precision {options.precision!r}: expected auto, bfloat16 or float32")
    for name in ("epochs", "batch_size", "workers", "validate_every", "checkpoint_steps"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more")


def _check_size(options: Options, dataset: pairs.Dataset) -> None:
    stride = network(options.network).stride
    if dataset.size_px % stride:
        raise UsageError(
            f"the pairs are {dataset.size_px} pixels wide, and {options.network} takes multiples of {stride}: "
            f"make pairs with --size {stride}"
        )
