"""`deblur submit`: with a client made here, with sockets that misbehave, and once for real."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from deblur.errors import DeblurError, UsageError
from jobs import submit, submit_dashboard, submit_output

WORDS = ("restore", "s3://in", "s3://out", "--model", "s3://models/box14")
ADDRESS = "http://head:8265"
SUMMARY = {"job": "restore", "photos": 3, "failed": 1, "nested": {"a": [1]}}


@dataclass
class Details:
    """What Ray says of a job."""

    status: str = "SUCCEEDED"
    driver_exit_code: int | None = 0
    message: str = ""


@dataclass
class Cluster:
    """Stands in for a cluster: what `tail_job_logs` gives at each call, then how the job ended."""

    outputs: Sequence[str | BaseException | Sequence[str | BaseException]] = ("",)
    details: Sequence[Details] = (Details(),)
    refusals: list[Exception] = field(default_factory=list)
    asked: int = 0
    submitted: dict[str, Any] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)

    def submit_job(self, **arguments: Any) -> str:
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop(0)
        folder = Path(arguments["runtime_env"]["working_dir"])
        self.sent = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        self.submitted = arguments
        self._outputs, self._details = iter(self.outputs), iter(self.details)
        return str(arguments["submission_id"])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        output = next(self._outputs)
        for piece in [output] if isinstance(output, str | BaseException) else output:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def get_job_info(self, job_id: str) -> Details:
        return next(self._details)


def run(cluster: Cluster, words: tuple[str, ...] = WORDS, **options: Any) -> dict[str, Any]:
    return submit.submit(submit.Options(words, **options), cluster, ADDRESS)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_POLL_S", 0.0)
    monkeypatch.setattr(submit, "_RECONNECT_S", 0.0)
    monkeypatch.setattr(submit_dashboard, "_ASK_AGAIN_S", 0.0)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


# === The command ===


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "received nothing"),
        (("models", "s3://m"), "received 'models s3://m'"),  # nothing to run on a cluster
        (("restore", "s3://in"), "requires an argument"),
        ((*WORDS, "--limit", "x"), "--limit"),
        ((*WORDS, "--modle", "x"), "--modle"),
        ((*WORDS, "--address", "auto"), "belongs before"),
        (("preprocess", "photos", "s3://pairs"), "SOURCE 'photos'"),
        (("preprocess", "--train", "3", "s3://photos", "pairs"), "PAIRS 'pairs'"),
        ((*WORDS[:-1], "runs/1/model"), "MODEL 'runs/1/model'"),
        (("evaluate", "s3://p", "s3://r", "--model", "s3://m", "--model", "./m"), "MODEL './m'"),
        (("demo",), "FOLDER 'deblur-demo'"),
        (("train", "s3://p", "s3://r", "--start-from", "runs/1"), "START-FROM 'runs/1'"),
        (("train", "s3://p", "s3://r", "--workers", "2"), "--batch-size 1 is a step's"),
        ((*WORDS, "--quality", "101"), "--quality 101: expected 1 to 100"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_sent(
    words: tuple[str, ...], expected: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        submit.check(words)
    assert expected in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (WORDS, ""),
        (("train", "s3://p", "s3://r", "--gpu", "--workers", "2", "--batch-size", "2"), ""),
        (("train", "s3://p", "s3://r", "--start-from", "photo"), ""),
        (("evaluate", "s3://p", "s3://r", "--no-baselines", "--model", "s3://m"), ""),
        (("preprocess", "/data/my photos", "s3://p", "--categories", "a,b"), "/data/my photos"),
        (("demo", "/shared/demo"), "/shared/demo"),
    ],
)
def test_a_good_command_passes_and_folders_are_pointed_out(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submit.check(words)
    error = capsys.readouterr().err
    assert (told in error) if told else not error


@pytest.mark.parametrize(
    "words",
    [
        ("restore", "s3://AKIA:SECRET@in/photos", "s3://out"),
        ("restore", "s3://in", "s3://AKIA:SEC/RET@out"),
        (*WORDS[:-2], "--model=s3://AKIA:SECRET@models/box14"),
        (
            "evaluate",
            "s3://p",
            "s3://r",
            "--model",
            "s3://m",
            "--model",
            "gs://m?access_token=SECRET",
        ),
        ("train", "s3://p", "abfss://:SECRET@account.dfs.core.windows.net/box"),
    ],
)
def test_credentials_in_a_place_are_refused_and_not_repeated(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="must not hold credentials") as refusal:
        submit.check(words)
    assert "SEC" not in str(refusal.value)


def test_what_only_looks_like_credentials_passes() -> None:
    submit.check(("preprocess", "s3://in/a@b", "s3://out/x?key=1", "--categories", "a@b,c:d@e"))
    submit.check(("train", "s3://p", "s3://r", "--licence", "see https://example.org/licence"))


def test_the_command_arrives_word_by_word() -> None:
    words = ("preprocess", "/a b/it's $HOME", "s3://p", "--categories", "a,b;c")
    cluster = Cluster()
    run(cluster, words)
    assert shlex.split(cluster.submitted["entrypoint"]) == ["python", "-m", "jobs.cli", *words]


def test_the_code_goes_along_and_nothing_else() -> None:
    cluster = Cluster()
    run(cluster)
    assert {"deblur/errors.py", "jobs/cli.py", "deblur/templates"} <= cluster.sent
    assert {path.split("/")[0] for path in cluster.sent} == {"deblur", "jobs"}
    assert not [path for path in cluster.sent if "__pycache__" in path]
    assert not Path(cluster.submitted["runtime_env"]["working_dir"]).exists()


def test_a_silent_connection_is_given_up_and_the_job_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Silent(Cluster):
        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            yield next(self._outputs)
            await asyncio.sleep(3600)

    monkeypatch.setattr(submit, "_SILENCE_S", 0.05)
    cluster = Silent(
        outputs=("one\n", "one\ntwo\n"), details=(Details("RUNNING"), Details(driver_exit_code=3))
    )
    assert run(cluster)["exit_code"] == 3
    assert capsys.readouterr().err.splitlines()[1:] == ["one", "two"]


# === The address ===


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://head:8265", "http://head:8265"),
        ("head:8265", "http://head:8265"),
        ("127.0.0.1:8265/", "http://127.0.0.1:8265"),
        ("https://ray.example.org/cluster/", "https://ray.example.org/cluster"),
    ],
)
def test_address(given: str, expected: str) -> None:
    assert submit_dashboard.dashboard(given) == expected


@pytest.mark.parametrize("given", ["auto", "local", "ray://head:10001", "http://[::1", "head:x"])
def test_an_address_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="such as http://head:8265"):
        submit_dashboard.dashboard(given)


@pytest.mark.parametrize(
    "given",
    [
        "http://user:geheim@head:8265", "http://user:geheim@head", "user:geheim@head:8265",
        "http://user:ge/heim@head:8265", "https://geheim@head/ray", "http://user:geheim@head:x",
    ],
)  # fmt: skip
def test_a_password_in_an_address_is_refused_and_not_repeated(given: str) -> None:
    with pytest.raises(UsageError, match="must not hold a name and password") as refusal:
        submit_dashboard.dashboard(given)
    assert "heim" not in str(refusal.value)


def test_an_at_sign_in_an_address_is_no_password() -> None:
    url = "https://hub.example.org/user/me@example.org/proxy/8265"
    assert submit_dashboard.dashboard(url) == url


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--address is missing"):
        submit_dashboard.dashboard(None)
    monkeypatch.setenv("RAY_ADDRESS", "http://one:8265")
    assert submit_dashboard.dashboard(None) == "http://one:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://two:8265")
    assert submit_dashboard.dashboard(None) == "http://two:8265"
    assert submit_dashboard.dashboard("three:8265") == "http://three:8265"


@contextlib.contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server, f"http://127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def _restored_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # `connect` sets it; this undoes it
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def _one_line(address: str) -> str:
    with pytest.raises(DeblurError) as failure:
        submit_dashboard.connect(address)
    text = str(failure.value)
    assert text.startswith(f"no Ray dashboard answers at {address}: ")
    assert "\n" not in text
    assert failure.value.exit_code == 1
    return text


@pytest.mark.usefixtures("_restored_environment")
def test_nothing_listens() -> None:
    with listening() as (_, address):
        pass
    assert "Connection refused" in _one_line(address)


@pytest.mark.usefixtures("_restored_environment")
def test_what_listens_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_dashboard, "_ANSWER_S", 0.2)
    with listening() as (_, address):
        assert "timed out" in _one_line(address)


@pytest.mark.usefixtures("_restored_environment")
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, b"not here", "no Ray dashboard"),
        (200, b"<html>", ""),
        (401, b"Unauthorized: Missing authentication token", ""),
        (500, b"broken", "500"),
    ],
)
def test_what_answers_is_no_dashboard(status: int, body: bytes, expected: str) -> None:
    with answering(status, body) as address:
        assert expected in _one_line(address)


@pytest.mark.usefixtures("_restored_environment")
def test_an_address_that_nobody_can_be_asked_at() -> None:
    _one_line("http://127.0.0.1:8265/a b")


@pytest.mark.usefixtures("_restored_environment")
def test_what_answers_speaks_no_http() -> None:
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"\x00\x00\x12\x04\x00\x00\n")

    with listening() as (server, address):
        thread = threading.Thread(target=answer)
        thread.start()
        assert "no Ray dashboard" in _one_line(address)
        thread.join()


# === Submitting ===


def test_a_second_job_of_the_same_name_is_wrong_usage() -> None:
    trace = (
        "Request failed with status code 400: Traceback (most recent call last):\n  File ...\n"
        "ValueError: Job with submission_id same already exists. Please use a different one.\n"
    )
    with pytest.raises(UsageError, match="has a job 'same' already: give another"):
        run(Cluster(refusals=[RuntimeError(trace)]), submission_id="same")


NOT_READY = RuntimeError(
    "Request failed with status code 500: No available agent to submit job, please try again later."
)
THERE = RuntimeError("ValueError: Job with submission_id x already exists.")


def test_a_cluster_that_is_not_ready_is_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    cluster = Cluster(refusals=[NOT_READY, NOT_READY])
    summary = run(cluster)
    assert (cluster.asked, summary["status"]) == (3, "SUCCEEDED")
    assert capsys.readouterr().err.count("not ready to take jobs yet; trying again\n") == 1


def test_a_job_that_was_taken_without_an_answer_is_not_sent_twice() -> None:
    cluster = Cluster(refusals=[NOT_READY, THERE])
    summary = run(cluster, wait=False, submission_id="mine")
    assert (cluster.asked, summary["submission_id"]) == (2, "mine")


def test_a_cluster_that_never_gets_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit_dashboard, "_READY_S", 0.0)
    with pytest.raises(DeblurError, match=r"does not take the job: .*No available agent"):
        run(Cluster(refusals=[NOT_READY] * 9))


def test_contact_that_is_lost_while_a_job_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    gone = OSError("Remote end closed connection without response")
    cluster = Cluster(refusals=[gone, NOT_READY, *[gone] * 5])
    assert run(cluster)["status"] == "SUCCEEDED"
    assert cluster.asked == 8
    assert capsys.readouterr().err.splitlines()[0] == "lost contact; trying again"
    with pytest.raises(DeblurError, match="does not take the job: Remote end closed connection"):
        run(Cluster(refusals=[gone] * 6))


def test_jobs_without_a_name_have_one_each() -> None:
    names = [run(Cluster(), wait=False)["submission_id"] for _ in range(2)]
    assert names[0] != names[1]
    assert all(name.startswith("deblur-restore-2") for name in names)


def test_a_refusal_is_told_in_one_line() -> None:
    trace = "Request failed with status code 500: Traceback:\n  File ...\nOSError: disk full\n"
    with pytest.raises(DeblurError, match=r"does not take the job: OSError: disk full$"):
        run(Cluster(refusals=[RuntimeError(trace)]))


def test_not_waiting_says_how_to_follow(capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(Cluster(), wait=False, submission_id="mine")
    assert summary == {
        "job": "submit", "address": ADDRESS, "submission_id": "mine", "status": "SUBMITTED",
    }  # fmt: skip
    error = capsys.readouterr().err
    assert f"ray job logs --address {ADDRESS} --follow mine" in error
    assert f"ray job stop --address {ADDRESS} mine" in error


# === Following ===


def test_the_output_goes_on_and_the_summary_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "Running entrypoint for job raysubmit_1: python -m jobs.cli\n"
        "2026-11-22 12:14:33,226\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        f"listing s3://in\n{json.dumps(SUMMARY, indent=2)}\n"
        "*** SIGTERM received at time=1795349909 on cpu 1 ***\n    @     0x7f5c7ee5a050  2125\n"
    )
    pieces = [text[start : start + 7] for start in range(0, len(text), 7)]
    summary = run(Cluster([pieces], [Details("FAILED", 3)]))
    assert summary["summary"] == SUMMARY
    assert (summary["status"], summary["exit_code"]) == ("FAILED", 3)
    assert capsys.readouterr().err.splitlines()[1:] == ["listing s3://in"]


@pytest.mark.parametrize(
    "text", ["{\nnot a summary\n}\nend", "{\n", '{\n  "a": 1\n}\n', "{\n{\n}\n", "no newline"]
)
def test_what_only_looks_like_a_summary_is_output(text: str) -> None:
    shown: list[str] = []
    output = submit_output.Output(shown.append)
    output.write(text)
    output.close()
    assert shown == text.splitlines()
    assert output.summary is None


@pytest.mark.parametrize(
    ("details", "code", "told"),
    [
        (Details("SUCCEEDED", 0), 0, ""),
        (Details("FAILED", 2), 2, ""),
        (Details("FAILED", -9), 137, "ended by signal 9"),
        (Details("STOPPED", None), 1, "was stopped"),
        (Details("FAILED", None, "Trace\n  File\nOSError: no pip"), 1, "OSError: no pip"),
    ],
)
def test_how_it_ended(
    details: Details, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Details("RUNNING", None)  # the output may end just before the job does
    summary = run(Cluster(["a\n", "a\n"], [running, details]))
    assert summary["exit_code"] == code
    assert summary["status"] == details.status
    assert summary["summary"] is None
    error = capsys.readouterr().err
    assert error.count("a\n") == 1
    assert told in error


def test_a_lost_connection_is_taken_up_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    lost = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
    outputs = [
        ["one\ntw", lost],
        [OSError("refused")],
        [*"one\ntwo\nthr", lost],
        "one\ntwo\nthree\n",
    ]
    assert run(Cluster(outputs))["exit_code"] == 0
    assert capsys.readouterr().err.splitlines()[1:] == ["one", "two", "three"]


def test_contact_that_is_lost_for_good(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = [OSError("refused")] * 20
    with pytest.raises(DeblurError, match=r"lost contact .* the job may well go on") as failure:
        run(Cluster(outputs))
    assert "--follow deblur-restore-" in str(failure.value)


def test_ctrl_c_leaves_the_job_alone_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(Cluster([["one\n", KeyboardInterrupt()]]))
    assert (summary["status"], summary["exit_code"]) == ("RUNNING", 130)
    error = capsys.readouterr().err
    assert "the job goes on" in error
    assert "--follow deblur-restore-" in error


# === For real ===


def _free_ports(count: int) -> list[int]:
    """Return ports that are taken seconds later: below those that connections of other tests get."""
    free: list[int] = []
    for port in random.sample(range(20_000, 32_000), 100):  # Ray's own workers have those below
        with contextlib.suppress(OSError), socket.socket() as server:
            server.bind(("127.0.0.1", port))
            free.append(port)
    return free[:count]


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """Start a Ray head of our own and return its dashboard's address; end it by its processes."""
    gcs, dashboard, client, agent, agent_grpc = _free_ports(5)
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1",
    }
    folder = Path(tempfile.mkdtemp(prefix="deblur-"))  # Ray's sockets need a short path
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--num-cpus", "2", "--object-store-memory", "100000000", "--temp-dir", str(folder / "r")),
        *("--port", gcs, "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard),
        *("--ray-client-server-port", client),
        *("--dashboard-agent-listen-port", agent, "--dashboard-agent-grpc-port", agent_grpc),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)), cwd="/", env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{dashboard}"
        # It answers some seconds before it takes jobs.
        _wait_for(
            lambda: _answers(f"{address}/api/jobs/", b'{"entrypoint": "true"}'), 300, folder / "log"
        )
        yield address
    finally:
        ours = [process.pid, *_descendants(process.pid)]
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        for log in [folder / "log", *folder.glob("r/session_2*/logs/dashboard*")]:
            print(log.name, log.read_text(errors="replace")[-3000:], sep="\n")  # if a test failed
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str, sent: bytes) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, sent, {"Content-Type": "application/json"})
    with contextlib.suppress(OSError, http.client.HTTPException), opener.open(request, timeout=30):
        return True
    return False


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


def _wait_for(condition: Callable[[], bool], seconds: float, log: Path) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)


def _deblur_submit(head: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": "127.0.0.1:9",  # Ray's client would go there, whatever it is told
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", "--address", head, *words],
        cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_a_cluster_runs_the_command(head: str, tmp_path: Path, photos: Any) -> None:
    source, pairs = tmp_path / "my photos", tmp_path / "it's pairs"
    for number in range(3):
        (source / "sea").mkdir(parents=True, exist_ok=True)
        (source / "sea" / f"{number}.jpg").write_bytes(photos.jpeg(64, 64, seed=number))

    words = ["preprocess", str(source), str(pairs), "--train", "2", "--test", "1", "--size", "64"]
    done = _deblur_submit(head, "--submission-id", "first", "--", *words)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if not line.startswith("preprocess: ")]
    assert told == [  # and on a busy machine how far it is
        f"note: {source}, {pairs}: on the cluster, not on this machine; "
        "several nodes must share the folder",
        f"submitted first: {shlex.join(['deblur', *words])}",
        f"listing {source}",
        "3 photos; chose 2 to train on and 1 to test on",
    ]
    summary = json.loads(done.stdout)
    assert summary["status"] == "SUCCEEDED"
    assert summary["summary"]["train"] == 2
    assert (pairs / "dataset.json").exists()

    again = _deblur_submit(head, "--submission-id", "first", "--", *words)
    assert again.returncode == 2
    assert "has a job 'first' already" in again.stderr.splitlines()[-1]

    missing = _deblur_submit(head, "--", "preprocess", str(tmp_path / "none"), str(pairs))
    assert missing.returncode == 2, missing.stderr
    assert "there is no folder" in missing.stderr.splitlines()[-1]
    assert json.loads(missing.stdout)["exit_code"] == 2
