"""Joins a Ray cluster, or starts an embedded one, and keeps it quiet."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from cyclopts import Parameter

from deblur import __version__
from deblur.errors import DeblurError, UsageError
from deblur.storage import LocalStore, Store
from jobs.interruption import terminable
from jobs.progress import warn

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


_AUTHENTICATION = "AuthenticationError"  # of Ray, of which its ConnectionError has the trace alone
# Ray 2.60 starts a cluster with a token where there is one, and joins it without where an address is given.
_TOKEN_HELP = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to what its head has in "
    "~/.ray/auth_token"
)


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

    def __post_init__(self) -> None:
        """Refuse what Ray would wait with for ever."""
        if self.cpus is not None and self.cpus < 1:
            raise UsageError(f"--cpus {self.cpus}: expected 1 or more")


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
    except SystemExit as end:  # Ray's answer to SIGTERM, from here on until ours
        raise KeyboardInterrupt from end
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "local":
            raise DeblurError(f"Ray does not start on this machine: {error}") from error
        if _AUTHENTICATION in f"{error} {error.__cause__}":
            raise UsageError(
                f"the Ray cluster at {address!r} wants its token: {_TOKEN_HELP}"
            ) from error
        if isinstance(error, ConnectionError):
            raise DeblurError(
                f"no Ray cluster answers at {address!r}: give its address, or none to run on this machine"
            ) from error
        why = " ".join(str(error).split())
        raise DeblurError(f"the Ray cluster at {address!r} cannot be joined: {why}") from error
    quieten(where.verbose)
    if address != "local" and not working_nodes():
        warn("no machine of the cluster has cores to work with: the job waits until it has grown")
    # Ray prints the warnings of its raylets whatever `log_to_driver` says, and to stdout, which is the
    # summary's; those that it holds back as repetitions, when it shuts down.
    with open(os.devnull, "w") as sink, redirect_stdout(sys.stderr if where.verbose else sink):
        try:
            with terminable():
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


def working_nodes() -> list[dict[str, Any]]:
    """Return the cluster's nodes that are there now and have cores: a head without computes nothing."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def require_shared(read: Iterable[Store], written: Store | None = None) -> None:
    """Raise UsageError where a folder is not on all machines of the cluster, or not the same one.

    Each would miss what the others have, and keep its results to itself.

    Args:
        read: places that all read; copies of a folder will do.
        written: the place that all write to.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folders = {store.uri: store for store in read if isinstance(store, LocalStore)}
    here = ray.get_runtime_context().get_node_id()
    working = working_nodes()
    others = [node for node in working if node["NodeID"] != here]
    if working and not others:
        return
    with ExitStack() as stack:
        if isinstance(written, LocalStore):
            folders[written.uri] = written / stack.enter_context(written.probed())
        if not folders:
            return
        # On a cluster that has yet to grow, its first machine is asked.
        ask = ray.remote(num_cpus=0 if others else 1)(_missing)
        asked = {
            ask.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(folders): node["NodeManagerHostname"]
            for node in others
        } or {ask.remote(folders): "another machine"}
        for answer, machine in asked.items():
            try:
                missing = ray.get(answer)
            except ray.exceptions.RayError:  # it has left the cluster since
                continue
            if missing:
                raise UsageError(
                    f"{missing[0]} is a folder of this machine, and {machine} does not have it: give "
                    "a folder that all machines of the cluster share, or a bucket"
                )


def _missing(folders: Mapping[str, LocalStore]) -> list[str]:
    """Return whose folders are not on this machine. A network's file systems may be a moment late.

    They come as stores: those of shipped models know where this machine has them.
    """
    for wait_s in (0.0, 1.0, 3.0):
        time.sleep(wait_s)
        missing = [name for name, store in folders.items() if not os.path.exists(store.root)]
        if not missing:
            break
    return missing


def quieten(verbose: bool) -> None:
    """Keep Ray Data's and Train's own bars and logs off the terminal; ours say what a user wants to know."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.enable_operator_progress_bars = verbose
    context.print_on_execution_start = verbose
    context.raise_original_map_exception = True  # else `cause` finds a wrapper that says nothing
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
            error.args = (str(error).partition("\nFailed to apply UDF")[0],)  # Ray Data adds advice
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
