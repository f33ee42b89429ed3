"""The same command on another cluster, through Ray's Jobs API.

    deblur submit --address http://head:8265 -- restore s3://in s3://out --model s3://models/box14

The packages `jobs` and `deblur` go along as the job's working directory, so the cluster needs only
what they depend on. Credentials do not go along: the cluster's nodes have their own (a role, or
secrets in their environment). The command is checked here before anything is sent.
"""

from __future__ import annotations

import asyncio
import shlex
import tempfile
import time
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from deblur.errors import DeblurError, UsageError
from deblur.storage import refuse_secrets
from jobs.progress import note, warn
from jobs.submit_dashboard import (
    LOST,
    Client,
    connect,
    dashboard,
    failures,
    fresh_name,
    reason,
    send,
)
from jobs.submit_output import Output

_SUBMITTABLE = ("preprocess", "train", "restore", "evaluate", "demo")
_PLACES = ("source", "destination", "pairs", "run", "report", "folder", "model", "start_from")
_MODELS = {"model", "start_from"}  # which may be the names of shipped ones

_RECONNECT_S = 2.0
_POLL_S = 1.0
_SILENCE_S = 60.0  # after which the job is asked for; one of ours says something every ten seconds


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    words: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)]
    "The command to run there, after `--`: as on this machine, without `deblur`."
    _: KW_ONLY
    address: str | None = None
    "The cluster's dashboard, such as http://head:8265; else $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS."
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True
    "Follow the job's output until it ends."
    submission_id: str | None = None
    "A name for the job; a second job of the same name is refused by the cluster."


def run(options: Options) -> dict[str, Any]:
    """Submit the job and, if asked to wait, follow it to its end."""
    check(options.words)
    address = dashboard(options.address)
    return submit(options, connect(address), address)


def submit(options: Options, client: Client, address: str) -> dict[str, Any]:
    """Submit to this client, and follow."""
    entrypoint = shlex.join(["python", "-m", "jobs.cli", *options.words])
    job = options.submission_id or fresh_name(options.words[0])
    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        _pack(Path(folder))
        try:
            send(client, entrypoint, folder, job)
        except FileExistsError as error:
            raise UsageError(
                f"{address} has a job {job!r} already: give another --submission-id, or none"
            ) from error
        except failures() as error:
            raise DeblurError(f"{address} does not take the job: {reason(error)}") from error
    note(f"submitted {job}: {shlex.join(['deblur', *options.words])}")
    summary = {"job": "submit", "address": address, "submission_id": job}
    if not options.wait:
        note(_what_next(address, job))
        return summary | {"status": "SUBMITTED"}
    try:
        return summary | follow(client, job)
    except KeyboardInterrupt:
        note(f"\ndeblur: the job goes on without you\n{_what_next(address, job)}")
        return summary | {"status": "RUNNING", "exit_code": 130}
    except failures() as error:
        raise DeblurError(
            f"lost contact with {address} ({reason(error)}); the job may well go on\n"
            f"{_what_next(address, job)}"
        ) from error


# === Before ===


def check(words: tuple[str, ...]) -> None:
    """Make sure that the command is one that can run on the cluster; nothing has been sent yet."""
    if not words or words[0] not in _SUBMITTABLE:
        received = repr(" ".join(words)) if words else "nothing"
        raise UsageError(
            f"after `--` one of {', '.join(_SUBMITTABLE)} is expected, received {received}"
        )
    for word in words:  # places are options' values, too
        if "://" in word:
            refuse_secrets(word.partition("=")[2] if word.startswith("-") else word)
    job = App(default_parameter=Parameter(negative=()), help_flags=(), version_flags=())
    module = import_module(f"jobs.{words[0]}")
    job.default(module.run)
    try:
        bound = job.parse_args(words[1:], exit_on_error=False, print_error=False)[1]
    except CycloptsError as error:
        raise UsageError(f"{error} See `deblur {words[0]} --help`") from error
    options = bound.arguments.get("options")
    if options is None:  # of `demo`, which has a default for everything
        options = module.Options()
    getattr(module, "check", lambda _: None)(options)
    if options.cluster.address:
        raise UsageError("--address belongs before `--`: a job runs on the cluster it is sent to")
    local = []
    for name in _PLACES:
        value = getattr(options, name, None) or ()
        for place in (value,) if isinstance(value, str) else value:
            if place.startswith(("/", "file://")):
                local.append(place)
            elif "://" not in place and not (name in _MODELS and "/" not in place):
                raise UsageError(
                    f"{name.upper().replace('_', '-')} {place!r} would be a folder of the job's own, which goes away "
                    "with it: give s3://…, or an absolute path that the cluster's nodes have"
                )
    if local:
        note(
            f"note: {', '.join(local)}: on the cluster, not on this machine; "
            "several nodes must share the folder"
        )


def _pack(folder: Path) -> None:
    """Copy the code that goes along."""
    for package in ("deblur", "jobs"):
        source = files(package)
        copytree(str(source), folder / package, ignore=ignore_patterns("__pycache__", "*.pyc"))


# === After ===


def follow(client: Client, job: str) -> dict[str, Any]:
    """Show the job's output until it ends, and return how it ended."""
    output = Output(note)
    lost = 0
    while True:
        before = output.seen
        try:
            asyncio.run(_tail(client, job, output))
            details = client.get_job_info(job)
        except failures():
            # Mostly a port-forward or a proxy that gave up. The output comes again from its start.
            lost = 1 if output.seen > before else lost + 1
            if lost > LOST:
                raise
            time.sleep(_RECONNECT_S)
            continue
        if str(details.status) in {"SUCCEEDED", "FAILED", "STOPPED"}:
            break
        time.sleep(_POLL_S)
    output.close()
    return _outcome(details, output.summary)


async def _tail(client: Client, job: str, output: Output) -> None:
    """Show what there is until the job ends, or nothing has come for a while: a connection may be dead."""
    skip = output.seen
    texts = client.tail_job_logs(job)
    with suppress(StopAsyncIteration, TimeoutError):
        while True:
            text = await asyncio.wait_for(anext(texts), _SILENCE_S)
            output.write(text[skip:])
            skip = max(skip - len(text), 0)


def _outcome(details: Any, summary: dict[str, Any] | None) -> dict[str, Any]:
    code = details.driver_exit_code
    status = str(details.status)
    if code is None:  # there was no process, or none that ended by itself
        code = 0 if status == "SUCCEEDED" else 1
        if status == "STOPPED":
            warn("the job was stopped")
        elif code:
            note(f"deblur: error: the cluster did not run the job: {reason(details.message)}")
    elif code < 0:
        note(f"deblur: error: the job's process on the cluster was ended by signal {-code}")
        code = 128 - code
    return {"status": status, "exit_code": code, "summary": summary}


def _what_next(address: str, job: str) -> str:
    return (
        f"follow it: ray job logs --address {address} --follow {job}\n"
        f"stop it:   ray job stop --address {address} {job}"
    )
