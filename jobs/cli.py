"""The `deblur` command. Each job's options are declared once, in its dataclass; this file only names the jobs.

Stdout carries one JSON summary; everything else goes to stderr. TensorFlow and Ray are imported when a job runs.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from deblur import __version__
from deblur.errors import DeblurError
from jobs import demo, evaluate, preprocess, restore, runtime, train

app = App(
    name="deblur",
    help="Takes a bucket of blurred photos and gives back sharp ones, and trains its own models from your sharp photos.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    help_format="markdown",
)


def _add(name: str, options_type: type, run: Callable[[Any], dict[str, Any]]) -> None:
    def command(options: Any) -> int:
        return _run(run, options)

    command.__doc__ = options_type.__doc__
    command.__annotations__ = {"options": options_type, "return": int}
    Parameter(name="*")(options_type)
    app.command(command, name=name)


def _run(run: Callable[[Any], dict[str, Any]], options: Any) -> int:
    """Run a job and return its exit code: 0 done; 1 failed; 2 wrong usage or input; 3 done, but some photos failed."""
    try:
        summary = run(options)
    except KeyboardInterrupt:
        runtime.note("deblur: interrupted; the same command goes on where it was")
        return 130
    except BaseException as raised:
        if isinstance(raised, SystemExit):
            raise
        error = runtime.cause(raised)
        if options.verbose:
            traceback.print_exception(raised)
        if isinstance(error, DeblurError):
            runtime.note(f"deblur: error: {error}")
            return error.exit_code
        text = " ".join(str(error).split()) or "no message"
        runtime.note(f"deblur: error: the job failed: {type(error).__name__}: {text[:500]}")
        if not options.verbose:
            runtime.note("deblur: run it again with --verbose for the whole trace")
        return 1
    print(json.dumps(summary, indent=2))
    return 3 if summary.get("failed") else 0


_add("demo", demo.Options, demo.run)
_add("preprocess", preprocess.Options, preprocess.run)
_add("train", train.Options, train.run)
_add("restore", restore.Options, restore.run)
_add("evaluate", evaluate.Options, evaluate.run)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the job's code."""
    try:
        code = app(arguments, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
