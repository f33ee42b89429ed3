"""The workers of a run, as Ray Train starts them, watches them and starts them again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from deblur import models
from deblur.errors import DeblurError
from deblur.examples import Maker
from deblur.networks import network
from deblur.storage import Store
from jobs import train_run, train_source
from jobs.progress import Progress
from jobs.runtime import require_gpus
from jobs.tensorflow_backend import TensorflowConfig
from jobs.train_data import Album, cores
from jobs.train_run import CHECKPOINTS, FAILURE, SCORE

if TYPE_CHECKING:
    from jobs.train import Options


def fit(
    options: Options,
    home: Store,
    plan: train_run.Plan,
    photos: train_source.Source,
    workers: tuple[int, int],
) -> None:
    """Take all steps that are left. Raises DeblurError if training went astray."""
    gpus = options.gpus_per_worker if options.gpu else 0
    require_gpus(workers[0] * gpus, options.cluster)
    shape = network(plan.recipe.network)
    middle_px = max(plan.size_px, shape.tile_px)
    maker = Maker(plan.blur, plan.size_px, plan.seed, middle_px, shape.stride)
    album = Album(photos.pieces(), maker, plan.held_out)
    number, cpus = group(cores(), workers, options.gpu)
    filesystem, path = home.arrow()
    home.delete(FAILURE)
    trainer = _Trainer(
        _train_worker,
        train_loop_config={
            "home": home, "plan": plan, "album": album, "name": options.name, "licence": options.licence,
            "parts": options.parts, "start_from": models.open_model(options.start_from) if options.start_from else None,
            "checkpoint_steps": options.checkpoint_steps, "cpus": cpus, "gpus": gpus,
        },
        backend_config=TensorflowConfig(),
        scaling_config=ScalingConfig(
            num_workers=number,
            use_gpu=options.gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name=CHECKPOINTS,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=options.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,  # the best, and besides it always the last
                checkpoint_score_attribute=SCORE if plan.held_out else None,
            ),
        ),
    )  # fmt: skip
    progress = Progress("train", plan.total_steps, "steps")
    with progress, train_run.Watcher(home, progress), _named_cluster():
        trainer.fit()
    if home.exists(FAILURE):
        raise DeblurError(json.loads(home.read(FAILURE))["error"])


class _Trainer(DataParallelTrainer):
    """Leaves Ctrl-C as it is, where Ray's own handler ends the process at once, with 1 and without a word."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


@contextmanager
def _named_cluster() -> Iterator[None]:
    """Name the cluster to Ray Train's own actors.

    One of them asks it every second whether the run's controller lives, and takes the workers away if
    not. Without a name it asks whichever cluster `ray start` began last on the machine, which knows
    nothing of the controller, and the run fails (Ray 2.60).
    """
    name = "RAY_ADDRESS"
    ENV_VARS_TO_PROPAGATE.add(name)
    before = os.environ.get(name)
    os.environ[name] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _train_worker(config: Mapping[str, Any]) -> None:
    # Imported in the workers alone, as it imports TensorFlow, which takes 5 s and 400 MB of each.
    from jobs.train_worker import train_worker

    train_worker(config)


def group(
    nodes: Sequence[float], workers: tuple[int, int], gpu: bool = False
) -> tuple[int | tuple[int, int], float]:
    """Return how many workers Ray is to have, as many as fit of a range, and the CPUs to reserve for each.

    Args:
        nodes: CPUs of each node.
        workers: the least and the largest number.
        gpu: whether they compute on GPUs, which are then what bounds their number.
    """
    least, most = workers
    if gpu or least == most:
        return least if least == most else workers, cpus_per_worker(nodes, most, gpu)
    cpus = cpus_per_worker(nodes, least)
    if cpus < 1 and any(nodes):
        return least, cpus  # which have less than a core each already
    return workers, max(cpus, 1.0) + _TRIFLE


# Ray fills each node up with the workers of a range. With this much more than whole cores for each the
# last core of a node stays free for the examples, without which none of them could go on.
_TRIFLE = 0.001


def cpus_per_worker(nodes: Sequence[float], workers: int, gpu: bool = False) -> float:
    """Return the CPUs to reserve for each worker: one beside a GPU, else all but one.

    What is not reserved makes examples. A reservation only keeps others off: on two cores, two
    workers reserve half a core each and use what there is.

    Args:
        nodes: CPUs of each node; a worker's have to be on one.
        workers: how many there may be.
        gpu: whether they compute on GPUs.
    """
    # A core of each node, or half of its only one, is left, so that whichever node goes, those that
    # stay can both train and make examples.
    # A cluster that grows on demand may have no core yet.
    free = [cpus - 1 if cpus > 1 else cpus / 2 for cpus in nodes if cpus] or [0.0]
    for whole in range(1 if gpu else int(max(free)), 0, -1):
        if sum(int(cpus // whole) for cpus in free) >= workers:
            return float(whole)
    return max(int(max(free) / math.ceil(workers / len(free)) * 100) / 100, 0.01)
