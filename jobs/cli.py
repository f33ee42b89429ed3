"""The `deblur` command: names the jobs and turns their outcome into an exit code.

Each job's options are declared once, in its dataclass. A job's module is imported when it is asked
for, so that `deblur --help` answers at once. Stdout carries one JSON summary; everything else goes
to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from deblur import __version__
from deblur.errors import DeblurError
from jobs import runtime
from jobs.interruption import terminable
from jobs.progress import note

# Name -> what it does, and an example that works when pasted after the ones above it.
JOBS = {
    "demo": "Do everything, small, in minutes, on photos that the package ships.\n\nExample: `deblur demo`",
    "preprocess": "Make blurred/sharp pairs from photos, in Parquet.\n\n"
    "Example: `deblur preprocess deblur-demo/photos my-pairs --train 3 --test 1`",
    "train": "Train a GAN on pairs; the same command again goes on where it was.\n\n"
    "Example: `deblur train my-pairs my-run --network pix2pix-small --epochs 2`",
    "restore": "Restore a folder or bucket of photos; the same command again does only what is missing.\n\n"
    "Example: `deblur restore deblur-demo/blurred my-restored --model my-run/model`",
    "evaluate": "Measure models and classical methods on test pairs, and write a report.\n\n"
    "Example: `deblur evaluate my-pairs my-report --model my-run/model`",
    "ledger": "Summarise what became of the photos of a restored bucket.\n\n"
    "Example: `deblur ledger my-restored --csv my-restored.csv`",
    "models": "List the models that come with deblur, or say what a model's card says.\n\n"
    "Example: `deblur models photo`",
    "export": "Write a model for other programs: ONNX, or TensorFlow's SavedModel.\n\n"
    "Example: `deblur export photo photo-onnx`",
    "submit": "Run a job on another cluster, through Ray's Jobs API.\n\n"
    "Example: `deblur submit --address http://head:8265 -- restore s3://in s3://out --model s3://models/box14`",
}

_KEEP_ON = {"preprocess", "train", "restore", "demo"}  # the others begin anew

app = App(
    name="deblur",
    help="Takes a bucket of blurred photos and gives back sharp ones, "
    "and trains its own models from your sharp photos.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # it is said below what an interrupted command needs
    error_console=Console(stderr=True),
)
for _name, _help in JOBS.items():
    app.command(f"jobs.{_name}:run", name=_name, help=_help)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done; 1 failed; 2 wrong usage or input; 3 done, but some photos failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(words))


def _run(words: list[str]) -> int:
    verbose = "--verbose" in words
    try:
        with terminable():
            summary = app(words, exit_on_error=False, result_action="return_value")
    except CycloptsError:
        note(f"deblur: see `deblur {words[0] + ' ' if words and words[0] in JOBS else ''}--help`")
        return 2
    except KeyboardInterrupt:
        goes_on = bool(words) and words[0] in _KEEP_ON
        note(f"deblur: interrupted{'; the same command goes on where it was' if goes_on else ''}")
        return 130
    except Exception as raised:  # the boundary of the program
        if verbose:
            traceback.print_exception(raised)
        return _explain(runtime.cause(raised), verbose)
    if isinstance(summary, dict):
        _tell(json.dumps(summary, indent=2))
        return 3 if summary.get("failed") else int(summary.get("exit_code", 0))
    return 0


def _tell(summary: str) -> None:
    """Print the summary, unless nobody reads it any more, as after `deblur ... | head -3`."""
    try:
        print(summary, flush=True)
    except BrokenPipeError:
        # Else Python tries again when it exits, and says so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explain(error: BaseException, verbose: bool) -> int:
    """Say in a line or two what went wrong, and return the exit code."""
    if isinstance(error, DeblurError):
        note(f"deblur: error: {error}")
        return error.exit_code
    note(f"deblur: error: the job failed: {_in_short(error)}")
    if not verbose:
        note("deblur: run it again with --verbose for the whole trace")
    return 1


def _in_short(error: BaseException) -> str:
    """Return one line: the last one where the text is a worker's whole trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    if any(sign in str(error) for sign in ("Traceback (most recent call last):", '\n  File "')):
        return lines[-1][:500]
    return f"{type(error).__name__}: {' '.join(lines)[:500]}"


if __name__ == "__main__":
    main()
