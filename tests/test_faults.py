"""`deblur restore` on a real store under faults: the outputs are those of a clean run, each once."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from deblur import ledger
from deblur.storage import S3Store
from jobs import restore
from tests import processes
from tests.faults_proxy import FAULTS, FaultsProxy
from tests.stores import SeaweedFS

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Three tasks' worth of fetching: 32 photos, 32 and 6.
KEYS = [f"trip {number % 3}/{number:02}.jpg" for number in range(70)]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def source(seaweed: SeaweedFS, photos: Any) -> S3Store:
    store = S3Store("s3://tests/faults/in", seaweed.endpoint)
    for number, key in enumerate(KEYS):
        store.put(key, photos.jpeg(40, 60, seed=number))
    return store


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tiny: Path, source: S3Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs the job, as the driver, on the store at an endpoint."""

    def job(endpoint: str, target: S3Store, **more: Any) -> dict[str, Any]:
        # Only the driver is told: the stores that it opens take their endpoint to the workers.
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
            return restore.run(replace(_options(source, target, tiny), **more))

    return job


@pytest.fixture
def target(seaweed: SeaweedFS) -> S3Store:
    return S3Store(f"s3://tests/faults/out-{next(_numbers)}", seaweed.endpoint)


@pytest.fixture(scope="module")
def clean(seaweed: SeaweedFS, source: S3Store, tiny: Path, ray_cluster: None) -> dict[str, bytes]:
    """Return the outputs of a run without faults."""
    target = S3Store("s3://tests/faults/clean", seaweed.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", seaweed.endpoint)
        summary = restore.run(_options(source, target, tiny))
    assert (summary["restored"], summary["failed"], summary["not_done"]) == (len(KEYS), 0, 0)
    return outputs(target)


def _options(source: S3Store, target: S3Store, tiny: Path) -> restore.Options:
    # Without the guard, which an untrained model does not pass.
    return restore.Options(source.uri, target.uri, model=str(tiny), no_guard=True)


def outputs(target: S3Store) -> dict[str, bytes]:
    keys = [entry.key for entry in target.list() if not entry.key.startswith("_deblur/")]
    return {key: target.read(key) for key in keys}


def rows(target: S3Store) -> list[dict[str, Any]]:
    parts = [entry.key for entry in target.list(ledger.FOLDER) if entry.key.endswith(".parquet")]
    tables = [pq.read_table(io.BytesIO(target.read(key))) for key in parts]
    return [row for table in tables for row in table.to_pylist()]


def restored_once(target: S3Store, besides: Collection[str] = ()) -> bool:
    restored = Counter(row["key"] for row in rows(target) if row["status"] == "restored")
    return restored == {key: 1 for key in KEYS if key not in besides}


def _path(store: S3Store, key: str) -> str:
    return f"/{store.bucket}/{store.prefix}/{key}"


# === Processes ===


def _await_actor(timeout_s: float = 300) -> int:
    """Return the pid of the actor that holds the model, of this process' own Ray."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for pid, title in processes.below(os.getpid()):
            if title.startswith("ray::MapWorker") and "Restore" in title:
                return pid
        time.sleep(0.05)
    raise AssertionError("no actor has come up")


# === What the job survives ===


def test_throttling_resets_truncated_bodies_and_photos_that_vanish_or_change(
    seaweed: SeaweedFS,
    clean: dict[str, bytes],
    run: Run,
    target: S3Store,
    source: S3Store,
    photos: Any,
) -> None:
    gone, other = KEYS[3], KEYS[40]
    before = source.read(other)
    with FaultsProxy(seaweed.endpoint, share=0.25, seed=1) as proxy:
        proxy.missing = {_path(source, gone)}
        proxy.held = lambda method, path: method == "GET" and path == _path(source, other)

        def change() -> None:
            try:
                proxy.wait_for("GET", lambda path: path.endswith(".jpg"))  # all are listed
                source.put(other, photos.jpeg(40, 60, seed=1000))
            finally:
                proxy.release()

        thread = threading.Thread(target=change)
        thread.start()
        try:
            summary = run(proxy.endpoint, target)
        finally:
            thread.join()
            source.put(other, before)
    assert set(proxy.faults) == {*FAULTS, "missing"}
    assert sum(proxy.faults.values()) > 30
    assert (summary["restored"], summary["failed"]) == (len(KEYS) - 2, 2)
    failed = {row["key"]: row["reason"] for row in rows(target) if row["status"] == "failed"}
    assert failed == {
        gone: "cannot be read: vanished since it was listed",
        other: "cannot be read: changed since it was listed",
    }
    assert outputs(target) == {key: data for key, data in clean.items() if key not in failed}
    assert restored_once(target, besides=failed)


def test_a_model_in_a_store_that_throttles(
    seaweed: SeaweedFS, clean: dict[str, bytes], run: Run, target: S3Store, tiny: Path
) -> None:
    model = S3Store("s3://tests/faults/model", seaweed.endpoint)
    for path in tiny.iterdir():
        model.put(path.name, path.read_bytes())
    with FaultsProxy(seaweed.endpoint) as proxy:
        # Some 6 s: more than a store gets that has never answered. The actor knows that it has.
        proxy.busy[_path(model, "model.keras")] = 6
        summary = run(proxy.endpoint, target, model=model.uri, limit=2)
        assert proxy.busy.total() == 0
    assert summary["this_run"]["restored"] == 2
    assert outputs(target).items() < clean.items()


def test_an_actor_that_is_killed(
    seaweed: SeaweedFS, clean: dict[str, bytes], run: Run, target: S3Store, source: S3Store
) -> None:
    # The last task's photos are not to be read before the actor is dead, so that there is work
    # for the one that takes its place.
    last = {_path(source, key) for key in sorted(KEYS)[64:]}
    with FaultsProxy(seaweed.endpoint) as proxy:
        proxy.held = lambda method, path: method == "GET" and path in last
        killed = []

        def kill() -> None:
            try:
                proxy.wait_for("PUT", lambda path: path.endswith(".jpg"))
                killed.append(_await_actor())
                os.kill(killed[0], signal.SIGKILL)
            finally:
                proxy.release()

        thread = threading.Thread(target=kill)
        thread.start()
        summary = run(proxy.endpoint, target)
        thread.join()
    assert killed
    assert (summary["restored"], summary["failed"]) == (len(KEYS), 0)
    assert outputs(target) == clean
    assert restored_once(target)


def test_a_driver_that_is_killed_and_run_again(
    seaweed: SeaweedFS,
    clean: dict[str, bytes],
    run: Run,
    target: S3Store,
    source: S3Store,
    tiny: Path,
) -> None:
    import ray

    last = {_path(source, key) for key in sorted(KEYS)[64:]}
    with FaultsProxy(seaweed.endpoint, share=0.1, seed=2) as proxy:
        proxy.held = lambda method, path: method == "GET" and path in last
        address = ray.get_runtime_context().gcs_address
        words = ["restore", source.uri, target.uri, "--model", str(tiny), "--no-guard"]
        driver = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *words, "--address", address],
            env=os.environ | {"AWS_ENDPOINT_URL_S3": proxy.endpoint},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            proxy.wait_for("PUT", lambda path: path.endswith(".parquet"))
        finally:
            driver.kill()
            said = driver.communicate()[1].decode()
            proxy.release()
        assert driver.returncode == -signal.SIGKILL, said
        before = len(rows(target))
        assert 0 < before < len(KEYS)
        summary = run(proxy.endpoint, target)
    assert (summary["restored"], summary["failed"]) == (len(KEYS), 0)
    assert summary["this_run"]["restored"] <= len(KEYS) - before
    assert outputs(target) == clean
    assert restored_once(target)


def test_a_store_that_is_restarted_in_mid_run(
    seaweed: SeaweedFS, clean: dict[str, bytes], run: Run, target: S3Store
) -> None:
    with FaultsProxy(seaweed.endpoint) as proxy:

        def restart() -> None:
            proxy.wait_for("PUT", lambda path: path.endswith(".jpg"))
            seaweed.kill()
            time.sleep(2)
            seaweed.start()

        thread = threading.Thread(target=restart)
        thread.start()
        summary = run(proxy.endpoint, target)
        thread.join()
    assert (summary["restored"], summary["failed"]) == (len(KEYS), 0)
    assert outputs(target) == clean
    assert restored_once(target)
