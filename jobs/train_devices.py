"""What a training worker computes on: its cores, its GPUs, and the strategy that steps them with all others."""

from __future__ import annotations

import os
from typing import Any

import ray.train
import ray.train.collective
import tensorflow as tf

from deblur.errors import DeblurError
from deblur.precision import use_gpus
from jobs.runtime import working_nodes


class Unfit(DeblurError):
    """Worker 0 cannot train here; to start it again would lead to the same."""


def strategy(gpus: int) -> Any:
    """Set TensorFlow up, before it computes, and return the strategy of this worker.

    Args:
        gpus: how many this worker has reserved.

    Raises:
        Unfit: on all workers, if worker 0 does not see its own.
        DeblurError: if this one does not. It is for Ray to start it again, elsewhere maybe.
    """
    context = ray.train.get_context()
    # A worker alone on its node may use all of it; several share it evenly.
    threads = max(cores() // context.get_local_world_size(), 1)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    found, why = 0, ""
    try:
        found = use_gpus(gpus)
    except DeblurError as error:
        why = str(error)
    if first := ray.train.collective.broadcast_from_rank_zero(why):
        raise Unfit(first)
    if why:
        raise DeblurError(why)
    return _strategy(context.get_world_size(), found)


def cores() -> int:
    """Return the cores that this process may use: a container's limit is known to Ray alone."""
    here = ray.get_runtime_context().get_node_id()
    known = [node["Resources"]["CPU"] for node in working_nodes() if node["NodeID"] == here]
    # Not on macOS.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min([allowed or 1, *map(int, known)])


def _strategy(workers: int, gpus: int) -> Any:
    """Return the strategy with all other workers, and over all GPUs of this one."""
    if workers == 1:
        return tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy()
    collectives = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=collectives.NCCL if gpus else collectives.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
