from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deblur.networks import NETWORKS
from deblur.training import LOSSES, Training

# pix2pix, narrow; and without what differs between replicas and a batch.
NARROW = replace(NETWORKS["pix2pix"], arguments={"width": 4})
PLAIN = replace(NARROW, generator_arguments={"dropout": 0.0})

STEPS = 4


def pairs(step: int, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return blurred and sharp photos, (count, 256, 256, 3) uint8."""
    grid = np.random.default_rng(step).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    sharp = grid.repeat(4, axis=1).repeat(4, axis=2)
    wide = sharp.astype(np.float32)
    blurred = (np.roll(wide, 3, 1) + np.roll(wide, -3, 1) + np.roll(wide, 3, 2) + wide) / 4
    return blurred.astype(np.uint8), sharp


def state(training: Training) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in training.variables()}


def check_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


# === A step ===


def test_two_photos_are_learnt_by_heart() -> None:
    training = Training(NETWORKS["pix2pix-small"], learning_rate=2e-3)
    blurred, sharp = pairs(0)
    history = [
        {name: float(loss) for name, loss in training.step(blurred, sharp).items()}
        for _ in range(25)
    ]
    assert tuple(history[0]) == LOSSES
    for losses in history:
        assert losses["generator"] == pytest.approx(losses["gan"] + 100 * losses["l1"], rel=1e-5)
    first, last = history[0], {name: np.mean([h[name] for h in history[-3:]]) for name in LOSSES}
    assert last["l1"] < 0.7 * first["l1"]
    assert last["generator"] < 0.7 * first["generator"]
    assert min(losses["discriminator"] for losses in history) < 0.8 * first["discriminator"]
    restored = training.restore(blurred)
    assert (restored.shape, restored.dtype) == (blurred.shape, np.float32)
    assert 2 * np.abs(restored - sharp / 255).mean() < first["l1"]


def test_restoring_changes_nothing() -> None:
    training = Training(NARROW)
    before = state(training)
    blurred, _ = pairs(0)
    np.testing.assert_array_equal(training.restore(blurred), training.restore(blurred))
    check_equal(state(training), before)


def test_the_seed_decides() -> None:
    one, again, other = (state(Training(NARROW, seed=seed)) for seed in (1, 1, 2))
    check_equal(one, again)
    drawn = [name for name in one if "kernel/" in name or "seed_generator" in name]
    assert len(drawn) == 16 + 3 + 5  # of generator, dropout, discriminator
    for name in drawn:
        assert (one[name] != other[name]).any(), name


# === State ===


def test_a_resumed_run_is_the_undisturbed_one(tmp_path: Path) -> None:
    undisturbed = Training(NARROW, policy="mixed_bfloat16", seed=1)
    for step in range(STEPS // 2):
        undisturbed.step(*pairs(step))
    undisturbed.save(tmp_path)
    resumed = Training(NARROW, policy="mixed_bfloat16", seed=2, learning_rate=1.0)
    resumed.step(*pairs(7))  # whatever it was before
    resumed.load(tmp_path)
    check_equal(state(resumed), state(undisturbed))
    for step in range(STEPS // 2, STEPS):
        undisturbed.step(*pairs(step))
        resumed.step(*pairs(step))
    check_equal(state(resumed), state(undisturbed))


@pytest.mark.parametrize(
    ("other", "odd"),
    [
        (replace(NARROW, arguments={"width": 8}), "discriminator/0000/kernel/4x4x6x4 is on one"),
        (PLAIN, "[0-9]+ variables, expected [0-9]+; .* is on one side alone"),
    ],
)
def test_another_network_s_state_is_refused(other: object, odd: str, tmp_path: Path) -> None:
    Training(NARROW).save(tmp_path)
    training = Training(other, seed=3)  # type: ignore[arg-type]
    before = state(training)
    with pytest.raises(ValueError, match=f"state.npz is another network's state: .*{odd}"):
        training.load(tmp_path)
    check_equal(state(training), before)


# === Replicas ===

WORKER = """
import sys
from pathlib import Path
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import test_training as tests
from deblur.training import Training
rank = strategy.cluster_resolver.task_id
for name, network in (("plain", tests.PLAIN), ("dropout", tests.NARROW)):
    training = Training(network, seed=rank, strategy=strategy)
    for step in range(tests.STEPS):
        blurred, sharp = tests.pairs(step)
        losses = training.step(blurred[rank : rank + 1], sharp[rank : rank + 1])
    training.save(tests.made(Path(sys.argv[1]) / name / str(rank)))
    if name == "plain":
        print(*(float(loss) for loss in losses.values()))
"""


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    """Two processes train together; return their states' folder and the last losses of each."""
    folder = tmp_path_factory.mktemp("workers")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    here = Path(__file__).parent
    processes = []
    for rank in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = os.environ | {
            "TF_CONFIG": json.dumps(task),
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
        }
        with (folder / f"{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, str(folder)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
            )
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, (folder / f"{rank}.log").read_text()[-3000:]
    return folder, [[float(word) for word in output.split()] for output in outputs]


def saved(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "state.npz") as file:
        return dict(file)


@pytest.mark.parametrize("name", ["plain", "dropout"])
def test_workers_agree_to_the_bit(workers: tuple[Path, list[list[float]]], name: str) -> None:
    folder, losses = workers
    check_equal(saved(folder / name / "0"), saved(folder / name / "1"))
    assert losses[0] == losses[1]


def test_two_workers_take_the_steps_of_one_with_twice_the_batch(
    workers: tuple[Path, list[list[float]]],
) -> None:
    folder, losses = workers
    alone = Training(PLAIN, seed=0)
    before = state(alone)
    for step in range(STEPS):
        last = alone.step(*pairs(step))
    np.testing.assert_allclose([float(loss) for loss in last.values()], losses[0], rtol=1e-4)
    expected, found = state(alone), saved(folder / "plain" / "0")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        moved = np.abs(value.astype(float) - before[name]).max()
        # Sums are in another order. Seen are 6e-6 of the way for the optimisers, and 3e-4 for the
        # weights: Adam enlarges the rounding of gradients that are almost zero.
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-2 * moved, err_msg=name)


def test_several_replicas_in_a_process_are_refused() -> None:
    class Two:
        def run(self, function: Callable[[], Any]) -> list[Any]:
            return [function(), function()]

        def experimental_local_results(self, values: list[Any]) -> list[Any]:
            return values

    with pytest.raises(ValueError, match="2 replicas in this process; expected one a worker"):
        Training(PLAIN, strategy=Two())
