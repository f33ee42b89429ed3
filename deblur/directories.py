"""The directories of a TIFF, which is also what an EXIF block is: reading them, laying them out."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Bytes of a value by its kind.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}

# A directory to be laid out: tag, kind, count and value, which may be a directory in its turn.
Laid = Sequence[tuple[int, int, int, Any]]


@dataclass(frozen=True)
class Entry:
    """One entry of a directory: where it stands, and its value, in the order of its block."""

    tag: int
    kind: int
    count: int
    at: int
    value: bytes


def order_of(tiff: bytes | bytearray | memoryview) -> str | None:
    """Return the byte order of a TIFF, as `struct` has it."""
    return {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))


def entries(tiff: bytes | bytearray | memoryview, order: str, at: int) -> Iterator[Entry]:
    """Yield the entries of the directory that begins there; struct.error if it is damaged."""
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    for position in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", tiff, position)
        size = _SIZES.get(kind, 0) * number
        start = position + 8
        if size > 4:
            (start,) = struct.unpack_from(f"{order}I", tiff, start)
        value = bytes(tiff[start : start + size])
        if size and len(value) == size:
            yield Entry(tag, kind, number, start, value)


def first(tiff: bytes | bytearray | memoryview, order: str) -> int:
    """Return where the first directory begins."""
    return int(struct.unpack_from(f"{order}I", tiff, 4)[0])


def lay(order: str, directory: Laid, at: int) -> bytes:
    """Return a directory that will stand there, with the values that do not fit into it behind."""
    behind = b""
    room = 2 + 12 * len(directory) + 4
    out = struct.pack(f"{order}H", len(directory))
    for tag, kind, count, value in sorted(directory, key=lambda entry: entry[0]):
        here = at + room + len(behind)
        if not isinstance(value, bytes):
            behind += lay(order, value, here)
            value = struct.pack(f"{order}I", here)
        elif len(value) > 4:
            behind += value + b"\0" * (len(value) % 2)
            value = struct.pack(f"{order}I", here)
        out += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return out + bytes(4) + behind
