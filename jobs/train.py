"""Pairs -> a model. Ray Train's workers step together; Ray Data decodes and jitters what they see.

    deblur train pairs/ run/ --epochs 40        # the report's GAN: 40 epochs at batch 1

The order of the pairs and each pair's jitter depend on the seed alone, so a run that is killed and
started again goes on as if nothing had happened, and N workers with batch b take the steps of one
worker with batch N b.
"""

from __future__ import annotations

import json
import shlex
import sys
import threading
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from deblur import models, pairs, precision
from deblur.errors import UsageError
from deblur.networks import network
from deblur.sampling import Order
from deblur.storage import Store, open_store
from jobs.runtime import Cluster, Progress, cluster, hushed, is_embedded, note

CONFIGURATION = "config.json"
_CHECKPOINTS = "checkpoints"
LIVE = "live.json"  # what a terminal shows of a run: written by worker 0, read by the driver
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
    options = replace(options, pairs=source.uri, run=home.uri)  # workers have other working folders
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
        text = json.dumps(
            {"plan": mine, "command": command(options), "pairs": options.pairs}, indent=2
        )
        home.put(CONFIGURATION, text.encode())
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


def command(options: Options) -> str:
    """Return the command line, for the card. Options that are secrets do not exist."""
    return (
        shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        if sys.argv[1:]
        else f"deblur train {options.pairs} {options.run}"
    )


# === Driver ===


def _fit(options: Options, home: Store, plan: Plan, dataset: pairs.Dataset) -> None:
    import ray

    with hushed(not options.cluster.verbose):  # this imports TensorFlow, which greets
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.tensorflow import TensorflowTrainer

        from jobs import train_data
        from jobs.tensorflow_backend import TensorflowConfig
        from jobs.train_worker import train_worker

    if options.gpu and not ray.cluster_resources().get("GPU") and is_embedded(options.cluster):
        raise UsageError("--gpu: this machine has no GPU that Ray can see")
    filesystem, path = home.arrow()
    cpus = cpus_per_worker(ray.cluster_resources().get("CPU", 1), options.workers)
    trainer = TensorflowTrainer(
        train_worker,
        train_loop_config={"options": options, "plan": plan},
        tensorflow_config=TensorflowConfig(),
        datasets={"train": train_data.encoded(open_store(options.pairs))},
        dataset_config=train_data.Planned(
            home, plan.global_batch, plan.seed, plan.total_steps, plan.recipe
        ),
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
    with Progress("train", plan.total_steps, "steps") as progress, _Watcher(home, progress):
        trainer.fit()


def cpus_per_worker(total: float, workers: int) -> float:
    """Return the CPUs to reserve for each worker: all but one, which decodes what they see.

    A reservation only keeps others off. On two cores, two workers reserve half a core each and use
    what there is.
    """
    share = (total - 1 if total > 1 else total / 2) / workers
    return float(int(share)) if share >= 1 else max(int(share * 100) / 100, 0.01)


class _Watcher:
    """Shows on the terminal what worker 0 writes to `live.json`."""

    def __init__(self, home: Store, progress: Progress) -> None:
        self._home, self._progress = home, progress
        self._shown: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(_LIVE_EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            live = json.loads(self._home.read(LIVE))
        except (OSError, ValueError):
            return
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
        self._home.delete(LIVE)


def _summary(home: Store) -> dict[str, Any]:
    card = models.read_card(home / "model")
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


# === Usage ===


def _check(options: Options) -> None:
    network(options.network)
    precision.check(options.precision)
    for name in ("epochs", "batch_size", "workers", "validate_every", "checkpoint_steps"):
        if getattr(options, name) < 1:
            raise UsageError(
                f"--{name.replace('_', '-')} {getattr(options, name)}: expected 1 or more"
            )


def _check_size(options: Options, dataset: pairs.Dataset) -> None:
    stride = network(options.network).stride
    if dataset.size_px % stride:
        raise UsageError(
            f"the pairs are {dataset.size_px} pixels wide, and {options.network} takes multiples of {stride}: "
            f"make pairs with --size {stride}"
        )
