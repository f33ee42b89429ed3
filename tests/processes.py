"""The processes below another one, from /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def below(parent: int) -> Iterator[tuple[int, str]]:
    """Yield (pid, title) of all processes below a process, and of no other's."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # gone since
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    for pid in titles:
        above = pid
        while (above := parents.get(above, 0)) > 1:
            if above == parent:
                yield pid, titles[pid]
                break
