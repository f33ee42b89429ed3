"""The output of a submitted job: passed on by line, without Ray's own words, its summary kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# What Ray itself says about the job, in the same stream.
_CHATTER = re.compile(
    r"Running entrypoint for job |[\d-]+ [\d:,]+\tINFO job_manager\.py"
    r"|\*\*\* SIGTERM received at |PC: @ |    @ "  # its farewell to a job that is stopped
)


@dataclass
class Output:
    """Passes on a job's lines, all but its summary, which it keeps."""

    show: Callable[[str], None]
    seen: int = 0
    summary: dict[str, Any] | None = None
    _rest: str = ""
    _held: list[str] = field(default_factory=list)

    def write(self, text: str) -> None:
        """Take some more of the output, which may end in the middle of a line."""
        self.seen += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """Pass on what is left."""
        if self._rest:
            self._line(self._rest)
        self._release()

    def _line(self, line: str) -> None:
        if _CHATTER.match(line):
            return
        if line == "{":
            self._release()
        elif not self._held:
            self.show(line)
            return
        self._held.append(line)
        if line != "}":
            return
        try:
            found = json.loads("\n".join(self._held))
        except ValueError:
            found = {}
        if "job" in found:
            self.summary = found
            self._held = []
        self._release()

    def _release(self) -> None:
        for line in self._held:
            self.show(line)
        self._held = []
