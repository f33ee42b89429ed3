"""Joins a Ray cluster, or starts an embedded one; keeps it quiet; shows progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass
from types import TracebackType
from typing import Any

from deblur.errors import DeblurError

_QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "OPENCV_LOG_LEVEL": "ERROR",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "PYTHONWARNINGS": "ignore",
}
# For all processes of a job, on whichever node.
_ALWAYS = {
    "KERAS_BACKEND": "tensorflow",
    "RAY_TRAIN_V2_ENABLED": "1",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}


@dataclass(frozen=True)
class JobOptions:
    """What every job takes."""

    _: KW_ONLY
    address: str | None = None
    "Ray cluster to join, such as `auto` or `ray://head:10001`; else $RAY_ADDRESS, else one starts on this machine."
    verbose: bool = False
    "Show the logs of Ray and TensorFlow, and whole traces of errors."


def note(text: str) -> None:
    """Tell the user something, on stderr."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Tell the user of something to look at, on stderr."""
    note(f"warning: {text}")


@contextmanager
def cluster(options: JobOptions) -> Iterator[None]:
    """Have Ray for a while. A cluster that is up already is left as it is."""
    environment = {**_ALWAYS, **({} if options.verbose else _QUIET)}
    # An embedded Ray's workers inherit this; on another cluster it goes along with the job.
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

    import ray

    if ray.is_initialized():
        quieten(options.verbose)
        yield
        return
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    arguments: dict[str, Any] = {"log_to_driver": options.verbose}
    if not options.verbose:
        arguments["logging_level"] = logging.ERROR
    if address == "local":
        arguments["include_dashboard"] = False
    else:
        arguments["runtime_env"] = {"env_vars": environment}
    try:
        with _nothing_on_stderr(not options.verbose):
            ray.init(address=address, **arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "local":
            raise DeblurError(f"Ray does not start on this machine: {error}") from error
        raise DeblurError(
            f"no Ray cluster answers at {address!r}: give its address, or none to run on this machine"
        ) from error
    quieten(options.verbose)
    try:
        yield
    finally:
        ray.shutdown()


def quieten(verbose: bool) -> None:
    """Keep Ray Data's and Train's own bars and logs off the terminal; ours say what a user wants to know."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.enable_operator_progress_bars = verbose
    context.print_on_execution_start = verbose
    if not verbose:
        for name in ("ray", "ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _nothing_on_stderr(wanted: bool) -> Iterator[None]:
    """Ray's C++ side writes its greetings to the descriptor itself."""
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
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere; both on stderr."""

    _LINE_EVERY_S = 10.0

    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._started = self._printed = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._text = ""

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, text="")
        return self

    def advance(self, count: int = 1, text: str = "") -> None:
        """Count some more as done. `text` says how it goes, such as a loss."""
        self.done += count
        self._text = text
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, text=text or self._rate())
        elif time.monotonic() - self._printed >= self._LINE_EVERY_S:
            self._printed = time.monotonic()
            note(self._line())

    def _rate(self) -> str:
        elapsed = time.monotonic() - self._started
        return f"{self.done / elapsed:.1f} {self.unit}/s" if elapsed > 0 else ""

    def _line(self) -> str:
        of = f" of {self.total}" if self.total else ""
        left = ""
        if self.total and self.done:
            seconds = (time.monotonic() - self._started) / self.done * (self.total - self.done)
            left = f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"
        return f"{self.title}: {self.done}{of} {self.unit}, {self._text or self._rate()}{left}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with suppress(Exception):
                self._bar.stop()


def counts(values: Mapping[str, int]) -> str:
    """Return `castle 250, forest 64` for a mapping."""
    return ", ".join(f"{name or '(no category)'} {count}" for name, count in values.items())


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call returns, and the seconds that it took."""
    started = time.perf_counter()
    value = call()
    return value, time.perf_counter() - started
