"""The processes of a job, for tests that kill some of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path


def below(parent: int) -> Iterator[tuple[int, str]]:
    """Yield (pid, title) of all processes below a process, and of no other's."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):  # gone since
            continue
    for pid in titles:
        above = pid
        while (above := parents.get(above, 0)) > 1:
            if above == parent:
                yield pid, titles[pid]
                break


def awaited(
    holds: Callable[[], bool], what: str, timeout_s: float = 300, every_s: float = 0.2
) -> None:
    """Return when something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(every_s)
