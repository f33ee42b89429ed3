"""A cluster's dashboard: its address, a client of it, and a job that is sent to it, once."""

from __future__ import annotations

import http.client
import logging
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any, Protocol
from urllib.parse import urlsplit

from deblur.errors import DeblurError, UsageError
from jobs.progress import note

_ANSWER_S = 10.0  # for the first answer of a dashboard; Ray itself would wait for minutes
# A cluster's dashboard answers some seconds before a node of it can take jobs. Ray 2.60 waits for 10 s,
# too few for the nodes of a new cluster on a busy machine.
_READY_S = 120.0
_NOT_READY = "No available agent to submit job"
_ASK_AGAIN_S = 2.0
LOST = 5
"""Times in a row that contact may be lost before we give up sending or following a job."""


class Client(Protocol):
    """What we use of `ray.job_submission.JobSubmissionClient`."""

    def submit_job(
        self, *, entrypoint: str, runtime_env: dict[str, Any], submission_id: str
    ) -> str:
        """Submit and return the submission id."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """Yield the job's output from its beginning, in pieces, until it ends."""

    def get_job_info(self, job_id: str) -> Any:
        """Return the job's details."""


def dashboard(address: str | None) -> str:
    """Return the address of the dashboard, with its scheme."""
    address = (
        address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    )
    example = "the cluster's dashboard, such as http://head:8265"
    if not address:
        raise UsageError(f"--address is missing: {example}")
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if "@" in (parts.netloc if fine else url):
        raise UsageError(
            f"--address must not hold a name and password: expected {example}, and Ray's token in RAY_AUTH_TOKEN"
        )
    if not fine or address in {"auto", "local"}:
        raise UsageError(f"--address {address!r}: expected {example}")
    return url


def connect(address: str) -> Client:
    """Return a client of the dashboard, which has answered."""
    from ray.job_submission import JobSubmissionClient

    # They tell of uploads and WebSockets, whatever the level of `ray`.
    for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk"):
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    for name in ("packaging", "working_dir"):
        logging.getLogger(f"ray._private.runtime_env.{name}").setLevel(logging.ERROR)
    # Ray prefers these to what it is told.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        _knock(address)
        client: Client = JobSubmissionClient(address)
        return client
    except failures() as error:
        raise DeblurError(f"no Ray dashboard answers at {address}: {reason(error)}") from error


_NO_DASHBOARD = "what answers there is no Ray dashboard"


def _knock(address: str) -> None:
    """Raise OSError unless something answers soon."""
    try:
        with urllib.request.urlopen(f"{address}/api/version", timeout=_ANSWER_S):
            pass
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:  # Ray's client knows better what other codes mean
            raise OSError(_NO_DASHBOARD) from error
    except http.client.HTTPException as error:
        raise OSError(_NO_DASHBOARD) from error
    except urllib.error.URLError as error:
        raise OSError(getattr(error.reason, "strerror", None) or str(error.reason)) from error


def fresh_name(word: str) -> str:
    """Return a name for a job of this kind that no other has."""
    return f"deblur-{word}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def send(client: Client, entrypoint: str, folder: str, name: str) -> None:
    """Submit a job, again while the cluster is not ready to take any, or contact with it is lost.

    The name makes it one job, however often it is sent.

    Args:
        client: of the cluster.
        entrypoint: the command.
        folder: the working directory, which goes along.
        name: the submission id.

    Raises:
        FileExistsError: if the cluster has another job of this name.
        Exception: one of `failures`, if it does not take the job.
    """
    end, sent, lost = time.monotonic() + _READY_S, False, 0
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint, runtime_env={"working_dir": folder}, submission_id=name
            )
            return
        except failures() as error:
            if "already exists" in str(error):
                if sent:  # it was taken, and the answer came too late
                    return
                raise FileExistsError(name) from error
            not_ready = _NOT_READY in str(error)
            # What Ray's client raises of connections that break, or are refused, are OSErrors.
            lost = lost + 1 if isinstance(error, OSError) else 0
            if not (not_ready or lost) or lost > LOST or time.monotonic() > end:
                raise
        if not sent:
            what = "the cluster is not ready to take jobs yet" if not_ready else "lost contact"
            note(f"{what}; trying again")
        sent = True
        time.sleep(_ASK_AGAIN_S)


def reason(error: object) -> str:
    """Return the last line, which is what happened where Ray gives a whole trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__


def failures() -> tuple[type[Exception], ...]:
    """Return what Ray's client raises when the other side fails."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    return (RayError, RuntimeError, OSError, ValueError, ClientError)
