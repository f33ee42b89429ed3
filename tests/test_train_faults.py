"""`deblur train` under faults: whatever is killed, and whenever, it ends with the same weights.

The matrix takes a quarter of an hour, and is run by `pytest -m slow`; tests/test_train.py has a run that
was cut off in each test run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deblur import models
from deblur.storage import S3Store, Store, open_store
from tests.faults_proxy import FaultsProxy
from tests.processes import awaited, below
from tests.stores import SeaweedFS

# Of 7 photos, two a step: 4 steps an epoch. Checkpoints after the steps 3, 6 and 9, and at each
# epoch's end, 4, 8 and 12.
STEPS = 12
WORDS = ["--network", "pix2pix-small", "--epochs", "3", "--batch-size", "2", "--workers", "2",
          "--checkpoint-steps", "3", "--precision", "float32", "--validate-every", "1"]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_numbers = itertools.count()


class Job:
    """A `deblur train` of its own, with an embedded Ray of its own, as a user starts it."""

    def __init__(
        self,
        pairs: Path,
        home: Store,
        environment: dict[str, str],
        log: Path,
        words: Sequence[str] = WORDS,
    ) -> None:
        self._home = home
        self.log, self._summary = log, log.with_name(f"{log.name}-{next(_numbers)}.json")
        with log.open("ab") as file, self._summary.open("wb") as summary:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", "train", str(pairs), home.uri, *words],
                env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
                | environment,
                stdin=subprocess.DEVNULL,
                stdout=summary,
                stderr=file,
            )

    def workers(self) -> list[int]:
        """Return the pids of the training workers that are at work."""
        title = "ray::RayTrainWorker"
        return [pid for pid, found in below(self._process.pid) if found.startswith(title)]

    def kill(self, victim: str) -> None:
        """Kill as a lost node or a lost driver would."""
        found = self.workers()
        if victim == "driver":
            everything = [pid for pid, _ in below(self._process.pid)]
            self._process.kill()
            self._process.wait()
            for pid in everything:  # a machine that goes takes all of them along
                _kill(pid)
            return
        assert len(found) == 2
        for pid in found[1:] if victim == "worker" else found:
            _kill(pid)

    def step(self) -> int:
        """Return the step that the run has told, as long as it has not failed."""
        assert self._process.poll() in {None, 0}, self.log.read_text()[-3000:]
        try:
            return int(json.loads(self._home.read("live.json"))["step"])
        except (OSError, ValueError):
            return -1

    def end(self) -> None:
        """Wait for a good end."""
        code = self._process.wait(timeout=200)
        assert code == 0, self.log.read_text()[-3000:]
        assert json.loads(self._summary.read_text())["job"] == "train"  # and no word of Ray's

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for pid, _title in [*below(self._process.pid)]:
            _kill(pid)
        self._process.kill()
        self._process.wait()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Place:
    """Where a run lives, and how a checkpoint's upload is caught half-way."""

    home: Store
    environment: dict[str, str]
    proxy: FaultsProxy | None

    def await_upload(self, job: Job, name: str) -> None:
        """Return while the checkpoint is being written there."""
        if self.proxy is not None:
            held: list[str] = []

            def hold(method: str, path: str) -> bool:
                caught = method in {"PUT", "POST"} and f"{name}/state.npz" in path
                if caught:
                    held.append(path)
                return caught

            self.proxy.held = hold
            awaited(lambda: bool(held), f"the upload of {name}", 240)
            return
        file = Path(self.home.uri, "checkpoints", name, "state.npz")
        awaited(file.exists, f"the copy of {name}", 240, every_s=0.002)

    def release(self) -> None:
        """Let the store answer again."""
        if self.proxy is not None:
            self.proxy.release()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, seaweed: SeaweedFS, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place(open_store(tmp_path / "run"), {}, None)
        return
    with FaultsProxy(seaweed.endpoint) as proxy:
        home = S3Store(f"s3://tests/train/{next(_numbers)}", seaweed.endpoint)
        yield Place(home, {"AWS_ENDPOINT_URL_S3": proxy.endpoint}, proxy)


@pytest.fixture(scope="module")
def undisturbed(made_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the weights of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    home = open_store(folder / "run")
    with Job(made_pairs, home, {}, folder / "log") as job:
        job.end()
    return weights(home)


def weights(home: Store, step: int = STEPS) -> dict[str, Any]:
    """Return the whole state of the last checkpoint."""
    state = io.BytesIO(home.read(f"checkpoints/step-{step:08d}/state.npz"))
    with np.load(state) as found:
        return dict(found)


MATRIX = [
    (victim, moment, place)
    for victim in ("worker", "all workers", "driver")
    for moment in ("mid-epoch", "upload")
    for place in ("local", "s3")
]


@pytest.mark.parametrize(("victim", "moment", "place"), MATRIX, indirect=["place"])
def test_the_same_weights(
    made_pairs: Path,
    undisturbed: dict[str, Any],
    place: Place,
    victim: str,
    moment: str,
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    with Job(made_pairs, place.home, place.environment, log) as job:
        if moment == "upload":
            place.await_upload(job, "step-00000006")
        else:
            awaited(lambda: job.step() >= 5, "the fifth step", 240)
        job.kill(victim)
        place.release()
        if victim == "driver":
            assert not place.home.exists("model/card.json")
        else:
            job.end()
    if victim == "driver":
        with Job(made_pairs, place.home, place.environment, log) as job:
            job.end()
    assert "going on after step " in log.read_text()
    found = weights(place.home)
    assert found.keys() == undisturbed.keys()
    for name, value in undisturbed.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert models.read_card(place.home / "model").figures["restored"]["psnr"] > 0
