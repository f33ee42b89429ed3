"""What a job tells its user while it runs, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any


def note(text: str) -> None:
    """Tell the user something, on stderr."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Tell the user of something to look at, on stderr."""
    note(f"warning: {text}")


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

    def begin_at(self, count: int) -> None:
        """Count what an earlier run did, which says nothing of this one's rate."""
        self.done = count
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total)

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
