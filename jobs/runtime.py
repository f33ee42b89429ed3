"""Joins a Ray cluster, or starts an embedded one; keeps it quiet; shows progress."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cyclopts import Parameter

from deblur import __version__
from deblur.errors import DeblurError, UsageError

_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OPENCV_LOG_LEVEL": "ERROR",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
# For all processes of a job, on whichever node.
_ALWAYS = {
    "KERAS_BACKEND": "tensorflow",
    "RAY_TRAIN_V2_ENABLED": "1",
    # Who asked for no GPU sees none: TensorFlow takes all memory of all that it sees.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


@Parameter(name="*")
@dataclass(frozen=True)
class Cluster:
    """Where a job runs, and how much it says: part of every job's options."""

    address: str | None = None
    "Ray cluster to join from one of its machines, such as `auto`; else $RAY_ADDRESS, else one starts on this machine."
    cpus: int | None = None
    "Cores that an embedded Ray uses; else all of this machine's."
    verbose: bool = False
    "Show the logs of Ray and TensorFlow, and whole traces of errors."


def note(text: str) -> None:
    """Tell the user something, on stderr."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Tell the user of something to look at, on stderr."""
    note(f"warning: {text}")


@contextmanager
def cluster(where: Cluster) -> Iterator[None]:
    """Have Ray for a while. A cluster that is up already is left as it is."""
    environment = {**_ALWAYS, **({} if where.verbose else _QUIET)}
    # An embedded Ray's workers inherit this; on another cluster it goes along with the job.
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

    import ray

    if ray.is_initialized():
        quieten(where.verbose)
        yield
        return
    address = _address(where)
    arguments: dict[str, Any] = {"log_to_driver": where.verbose}
    if not where.verbose:
        arguments["logging_level"] = logging.ERROR
    if address == "local":
        arguments["include_dashboard"] = False
        arguments["num_cpus"] = where.cpus
    else:
        arguments["runtime_env"] = {"env_vars": environment}
    try:
        with hushed(not where.verbose):
            ray.init(address=address, **arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "local":
            raise DeblurError(f"Ray does not start on this machine: {error}") from error
        if isinstance(error, ConnectionError):
            raise DeblurError(
                f"no Ray cluster answers at {address!r}: give its address, or none to run on this machine"
            ) from error
        why = " ".join(str(error).split())
        raise DeblurError(f"the Ray cluster at {address!r} cannot be joined: {why}") from error
    quieten(where.verbose)
    # Ray prints the warnings of its raylets whatever `log_to_driver` says, and to stdout, which is the
    # summary's; those that it holds back as repetitions, when it shuts down.
    with open(os.devnull, "w") as sink, redirect_stdout(sys.stderr if where.verbose else sink):
        try:
            yield
        finally:
            ray.shutdown()


def _address(where: Cluster) -> str:
    address = where.address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        # Ray's client has no streaming tasks, of which Ray Data is made.
        raise UsageError(
            f"{address}: jobs do not run through Ray's client; from outside the cluster use "
            "`deblur submit --address http://HEAD:8265 -- ...`"
        )
    return address


def is_embedded(where: Cluster) -> bool:
    """Say whether Ray runs on this machine alone, for this command alone."""
    return _address(where) == "local"


def require_gpus(count: int, where: Cluster) -> None:
    """Raise UsageError where Ray would wait for GPUs for ever; a cluster may grow."""
    import ray

    found = ray.cluster_resources().get("GPU", 0)
    if found >= count:
        return
    if is_embedded(where):
        raise UsageError(f"--gpu: {count} wanted, and Ray sees {found:g} on this machine")
    warn(f"{count} GPUs are wanted and the cluster has {found:g}: the job waits until it has grown")


def quieten(verbose: bool) -> None:
    """Keep Ray Data's and Train's own bars and logs off the terminal; ours say what a user wants to know."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.enable_operator_progress_bars = verbose
    context.print_on_execution_start = verbose
    if not verbose:
        for name in ("ray", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # As an error it prints the whole trace of what it raises, which cli.py then says in a line.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)


@contextmanager
def hushed(wanted: bool = True) -> Iterator[None]:
    """Keep stderr quiet for a moment: the C++ of Ray and TensorFlow greets on the descriptor itself."""
    if not wanted:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def cause(error: BaseException) -> BaseException:
    """Return what went wrong in a worker, out of the wrappers that Ray puts around it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, DeblurError) and type(error).__module__.startswith("deblur"):
            return error
        # Ray Data raises what ends an actor from an exception that says nothing.
        if not isinstance(inner, BaseException) or not str(inner):
            break
        error = inner
    return error


RETRIES = 3
"""Of a task or an actor whose process died, where Ray's default is to retry for ever."""


@contextmanager
def bounded_retries() -> Iterator[None]:
    """Let Ray Data be told of RETRIES: in the Ray that we pin they have no named parameters, of which it warns."""
    from ray.util.annotations import RayDeprecationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RayDeprecationWarning)
        yield


def versions() -> dict[str, str]:
    """Return what a result depends on. A submitted deblur need not be installed where it runs."""
    return {"deblur": __version__} | {
        name: version(name) for name in ("tensorflow", "keras", "ray")
    }


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere; both on stderr."""

    _LINE_EVERY_S = 10.0

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._text = ""
        # Rates count from the first sign of work: starting Ray and loading models would spoil them.
        self._first: tuple[float, int] | None = None
        self._printed = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
            )
            self._bar = Bar(
                *columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True)
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, text="")
        return self

    def advance(self, count: int = 1, text: str = "") -> None:
        """Count some more as done. `text` says how it goes, such as a loss."""
        self.done += count
        self._text = text
        now = time.monotonic()
        if self._first is None and self.done:
            self._first = now, self.done
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self.done, total=self.total, text=self._state(now)
            )
        elif now - self._printed >= self._LINE_EVERY_S:
            self._printed = now
            note(f"{self.title}: {self.done} of {self.total} {self.unit}{self._state(now)}")

    def note(self, text: str) -> None:
        """Tell the user something without breaking the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            note(text)

    def _state(self, now: float) -> str:
        started, first = self._first or (now, 0)
        if now <= started or self.done <= first:
            return f", {self._text}" if self._text else ""
        rate = (self.done - first) / (now - started)
        left_s = (self.total - self.done) / rate
        return f", {self._text or f'{rate:.1f}/s'}, {duration(left_s)} left"

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Return `90 s`, `12 min` or `3 h 5 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours >= 10:
        return f"{hours} h"
    return f"{hours} h {minutes} min" if hours >= 2 else f"{60 * hours + minutes} min"


def counts(values: Mapping[str, int]) -> str:
    """Return `castle 250, forest 64` for a mapping."""
    return ", ".join(f"{name or '(no category)'} {count}" for name, count in values.items())
