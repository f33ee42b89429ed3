import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deblur import models
from deblur.errors import DeblurError, UsageError
from deblur.storage import LocalStore, S3Store
from jobs import runtime


def test_hushed_keeps_the_descriptor_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with runtime.hushed():
        os.write(2, b"chatter\n")
    os.write(2, b"news\n")
    assert capfd.readouterr().err == "news\n"


def test_a_process_that_is_asked_to_end_while_ray_starts_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def init(**_: object) -> None:
        sys.exit(signal.SIGTERM)  # as Ray's own handler does

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(KeyboardInterrupt), runtime.cluster(runtime.Cluster()):
        raise AssertionError("it went on")


def _refuse(
    monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Exception | None = None
) -> None:
    """Have Ray not join a cluster."""
    import ray

    def init(**_: object) -> None:
        raise error from cause

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)


def test_wrong_address_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse(monkeypatch, ConnectionError("nobody there"))
    with (
        pytest.raises(DeblurError, match="no Ray cluster answers at 'nowhere:1'"),
        runtime.cluster(runtime.Cluster(address="nowhere:1")),
    ):
        pass


def test_a_cluster_that_wants_a_token_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's error says that it cannot connect; why is in the trace that its cause has for a text."""
    trace = "Traceback:\nray.exceptions.AuthenticationError: RPC error: InvalidAuthToken"
    _refuse(monkeypatch, ConnectionError("Failed to connect"), RuntimeError(trace))
    with (
        pytest.raises(UsageError, match="at 'head:6379' wants its token: set RAY_AUTH_MODE=token"),
        runtime.cluster(runtime.Cluster(address="head:6379")),
    ):
        pass


def test_what_ray_says_of_a_cluster_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    mismatch = "Version mismatch:\n  Python 3.11, not\n  Python 3.12"
    _refuse(monkeypatch, RuntimeError(mismatch))
    text = (
        "the Ray cluster at 'head:6379' cannot be joined: Version mismatch: Python 3.11, not Python"
    )
    with (
        pytest.raises(DeblurError, match=text),
        runtime.cluster(runtime.Cluster(address="head:6379")),
    ):
        pass


def test_jobs_do_not_run_through_ray_s_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(UsageError, match="deblur submit --address http://HEAD:8265"),
        runtime.cluster(runtime.Cluster(address="ray://head:10001")),
    ):
        pass


@pytest.mark.parametrize("cpus", [0, -1])
def test_cores_that_ray_would_wait_with_for_ever_are_refused(cpus: int) -> None:
    with pytest.raises(UsageError, match=f"--cpus {cpus}: expected 1 or more"):
        runtime.Cluster(cpus=cpus)


def test_a_cluster_without_cores_is_said_to_be_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    head = {"Alive": True, "Resources": {"memory": 1.0}, "NodeID": "head"}
    worker = head | {"Resources": {"CPU": 4.0}}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for nodes, told in (([head], True), ([head, worker], False)):
        monkeypatch.setattr(ray, "nodes", lambda nodes=nodes: nodes)
        with runtime.cluster(runtime.Cluster(address="head:6379")):
            said = capsys.readouterr().err
        assert ("the job waits until it has grown" in said) == told


# Ray tells of the first worker at once, and of the second when it shuts down.
TWO_DEATHS = """
import os, time, ray
from jobs import runtime
with runtime.cluster(runtime.Cluster(address="local", cpus=2)):
    @ray.remote(max_retries=0)
    def die():
        os.kill(os.getpid(), 9)
    for dying in [die.remote() for _ in range(2)]:
        try:
            ray.get(dying)
        except ray.exceptions.WorkerCrashedError:
            pass
    time.sleep(3)
print("the summary")
"""


def test_stdout_has_the_summary_alone_whoever_dies() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    words = [sys.executable, "-c", TWO_DEATHS]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "the summary\n"), done.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_who_asks_for_no_gpu_sees_none() -> None:
    import ray

    @ray.remote(runtime_env={"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1"}})
    def seen() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    assert ray.get(seen.remote()) == ""


class ElsewhereStore(LocalStore):
    """A folder of which another machine has one of the same name."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        LocalStore(f"{self.root}-of-the-driver").put(key, data)

    def delete(self, key: str) -> None:
        LocalStore(f"{self.root}-of-the-driver").delete(key)


@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_that_other_machines_do_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    there, gone = LocalStore(str(tmp_path)), LocalStore(str(tmp_path / "gone"))
    runtime.require_shared([gone])  # alone on this machine, where listing it says so
    here = ray.get_runtime_context()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: Elsewhere(here))
    runtime.require_shared([there, S3Store("bucket", "")], there)
    host = ray.nodes()[0]["NodeManagerHostname"]
    with pytest.raises(UsageError, match=f"/gone is a folder of this machine, and {host} does not"):
        runtime.require_shared([there, gone])
    with pytest.raises(UsageError, match="share, or a bucket"):
        runtime.require_shared([there], ElsewhereStore(str(tmp_path / "out")))
    assert list(tmp_path.rglob(".deblur-probe-*")) == []
    nodes = [node | {"Alive": False} for node in ray.nodes()]  # a cluster that has yet to grow
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(UsageError, match="another machine does not have it"):
        runtime.require_shared([gone])


@pytest.mark.usefixtures("ray_cluster")
def test_a_shipped_model_is_looked_for_where_each_machine_has_deblur(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    here = ray.get_runtime_context()
    monkeypatch.setattr(ray, "get_runtime_context", lambda: Elsewhere(here))
    monkeypatch.setattr(models, "_SHIPPED", tmp_path)  # of the driver alone
    shutil.copytree(Path(models.__file__).parent / "weights/photo", tmp_path / "photo")
    model = models.open_model("photo")
    shutil.rmtree(tmp_path / "photo")  # what the other machine has at this path
    runtime.require_shared([model])


class Elsewhere:
    """The context of a driver on another machine."""

    def __init__(self, here: Any) -> None:
        self._here = here

    def get_node_id(self) -> str:
        return "another"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._here, name)
