"""`deblur train` on a cluster of several nodes that come and go. Slow: `pytest -m slow`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deblur.recipes import recipe
from deblur.storage import open_store
from deblur.training import Training
from tests.processes import awaited, below
from tests.test_train_faults import Job, weights

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# With 6 cores in all each of at most two workers reserves 2, and a node of 3 holds one of them; the
# third makes examples.
CORES = 3
# This network has no dropout, whose masks would differ with the number of workers.
WORDS = ["--network", "wiener-box14", "--epochs", "6", "--batch-size", "2", "--precision",
         "float32", "--validate-every", "6"]  # fmt: skip
STEPS = 24


@pytest.fixture
def nodes() -> Iterator[tuple[Any, list[Any]]]:
    """Run a head without cores and two nodes; yield the cluster and the nodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        yield cluster, [cluster.add_node(num_cpus=CORES) for _ in range(2)]
    finally:
        cluster.shutdown()


def hosts(nodes: list[Any]) -> list[Any]:
    """Return the nodes that a training worker runs on."""
    return [node for node in nodes if any(_is_worker(title) for _, title in below(_raylet(node)))]


def _raylet(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    pid: int = raylet.process.pid
    return pid


def _is_worker(title: str) -> bool:
    return title.startswith("ray::RayTrainWorker")


def test_a_lost_node_leaves_one_worker(
    made_pairs: Path, nodes: tuple[Any, list[Any]], tmp_path: Path
) -> None:
    cluster, both = nodes
    home = tmp_path / "run"
    words = [*WORDS, "--workers", "1-2", "--checkpoint-steps", "3", "--address", cluster.address]
    with Job(made_pairs, open_store(home), {}, tmp_path / "log", words) as job:
        awaited(lambda: job.step() >= 7, "the seventh step", 240)
        assert hosts(both) == both
        cluster.remove_node(both[1], allow_graceful=False)
        awaited(lambda: job.step() >= 10, "the tenth step", 240)
        assert hosts(both[:1]) == both[:1]
        job.end()
    other = open_store(tmp_path / "undisturbed")
    words = [*WORDS, "--workers", "1"]
    with Job(made_pairs, other, {}, tmp_path / "other-log", words) as job:
        job.end()
    found, expected = weights(open_store(home), STEPS), weights(other, STEPS)
    assert found.keys() == expected.keys()
    untrained = Training(replace(recipe("report"), network="wiener-box14"), seed=0)
    before = {name: variable.numpy() for name, variable in untrained.variables()}

    def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
        names = [name for name in expected if name.startswith("generator/")]
        return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in names)))

    off, way = distance(found, expected), distance(expected, before)
    # Sums in another order, through 24 steps of Adam.
    assert off < 0.1 * way, f"{off} off after a way of {way}"


def test_notice_of_a_preemption_makes_a_checkpoint(
    made_pairs: Path, nodes: tuple[Any, list[Any]], tmp_path: Path
) -> None:
    cluster, both = nodes
    home = tmp_path / "run"
    words = [*WORDS, "--workers", "1", "--address", cluster.address]
    for name in ("--epochs", "--validate-every"):
        words[words.index(name) + 1] = "60"
    with Job(made_pairs, open_store(home), {}, tmp_path / "log", words) as job:
        awaited(lambda: job.step() >= 5, "the fifth step", 240)
        (host,) = hosts(both)
        deadline_s = 20
        words = ["--address", cluster.address, "--node-id", host.node_id,
                 "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot instance",
                 "--deadline-remaining-seconds", str(deadline_s)]  # fmt: skip
        ray = Path(sys.executable).with_name("ray")
        subprocess.run([ray, "drain-node", *words], check=True, capture_output=True)
        noticed = time.monotonic()
        awaited(lambda: any((home / "checkpoints").glob("step-*/progress.json")), "a checkpoint")
        assert time.monotonic() - noticed < deadline_s
        cluster.remove_node(host, allow_graceful=False)
        saved = max((home / "checkpoints").glob("step-*")).name
        awaited(lambda: job.step() > int(saved[-8:]), "what comes after it", 240)
