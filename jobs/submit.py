"""The same command on another cluster, through Ray's Jobs API.

    deblur submit --address http://head:8265 -- restore s3://in s3://out --model s3://models/box14

The packages `jobs` and `deblur` go along as the job's working directory, so the cluster needs only what they depend on.
Credentials do not go along: the cluster's nodes have their own (a role, or secrets in their environment).
"""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import KW_ONLY, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Annotated, Any

from cyclopts import Parameter

from deblur.errors import DeblurError, UsageError
from jobs.runtime import note


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    words: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True)]
    "The command to run there, after `--`: as on this machine, without `deblur`."
    _: KW_ONLY
    address: str
    "The cluster's dashboard, such as http://head:8265."
    wait: Annotated[bool, Parameter(negative="--no-wait")] = True
    "Follow the job's output until it ends."
    submission_id: str | None = None
    "A name for the job; a second job of the same name is refused by the cluster."


_SUBMITTABLE = ("preprocess", "train", "restore", "evaluate", "demo")
_IN_THE_CLUSTER = "auto"  # the job's driver runs on the head node


def run(options: Options) -> dict[str, Any]:
    """Submit the job and, if asked to wait, follow it to its end."""
    if not options.words or options.words[0] not in _SUBMITTABLE:
        received = " ".join(options.words) or "nothing"
        raise UsageError(f"after `--` one of {', '.join(_SUBMITTABLE)} is expected, received {received!r}")
    if local := [word for word in options.words[1:3] if not word.startswith("-") and "://" not in word]:
        note(f"note: {', '.join(local)} will be looked for on the cluster's nodes, not on this machine")
    entrypoint = shlex.join(["python", "-m", "jobs.cli", *options.words, "--address", _IN_THE_CLUSTER])

    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(options.address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DeblurError(f"no Ray dashboard answers at {options.address!r}: {error}") from error
    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        for package in ("deblur", "jobs"):
            with as_file(files(package)) as path:
                copytree(path, Path(folder) / package, ignore=ignore_patterns("__pycache__"))
        job = client.submit_job(
            entrypoint=entrypoint, runtime_env={"working_dir": folder}, submission_id=options.submission_id
        )
    note(f"submitted {job}: {entrypoint}")
    if not options.wait:
        return {"job": "submit", "submission_id": job, "status": "SUBMITTED"}
    return _follow(client, job)


def _follow(client: Any, job: str) -> dict[str, Any]:
    import asyncio

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            note(lines.rstrip("\n"))

    asyncio.run(tail())
    details = client.get_job_info(job)
    code = details.driver_exit_code
    return {
        "job": "submit",
        "submission_id": job,
        "status": str(details.status),
        "exit_code": code if code is not None else 1,
    }
