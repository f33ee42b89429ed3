"""The directories of a TIFF, which is also what an EXIF block is: reading them, laying them out."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# How a TIFF begins, by its byte order, and how a BigTIFF does, whose offsets have 8 bytes.
BEGINNINGS = {"<": b"II*\0", ">": b"MM\0*"}
_BIG_BEGINNINGS = {"<": b"II+\0\x08\0\0\0", ">": b"MM\0+\0\x08\0\0"}
# Bytes of a value by its kind; only a BigTIFF has integers of 8 bytes.
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
BIG_KINDS = frozenset({16, 17, 18})
_BIG_SIZES = _SIZES | dict.fromkeys(BIG_KINDS, 8)
_MOST_ENTRIES = 0xFFFF

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


def order_of(tiff: bytes | bytearray | memoryview, *, big: bool = False) -> str | None:
    """Return the byte order of a TIFF, or a BigTIFF, as `struct` has it; None if it is no such."""
    for order, beginning in (_BIG_BEGINNINGS if big else BEGINNINGS).items():
        if tiff[: len(beginning)] == beginning:
            return order
    return None


def entries(
    tiff: bytes | bytearray | memoryview, order: str, at: int, *, big: bool = False
) -> Iterator[Entry]:
    """Yield the entries of the directory that begins there; struct.error if it is damaged.

    Their values are no more than the file in all: a small file could else claim gigabytes of them.
    """
    number_code, offset_code, sizes = ("Q", "Q", _BIG_SIZES) if big else ("H", "I", _SIZES)
    room = struct.calcsize(offset_code)
    if at >= len(tiff):  # further than `struct` can count, maybe
        raise struct.error(f"no directory at {at}")
    (count,) = struct.unpack_from(f"{order}{number_code}", tiff, at)
    if count > _MOST_ENTRIES:
        raise struct.error(f"a directory of {count} entries")
    at += struct.calcsize(number_code)
    step, left = 4 + 2 * room, len(tiff)
    for position in range(at, at + step * count, step):
        tag, kind, number = struct.unpack_from(f"{order}HH{offset_code}", tiff, position)
        size = sizes.get(kind, 0) * number
        start = position + 4 + room
        if size > room:
            (start,) = struct.unpack_from(f"{order}{offset_code}", tiff, start)
        if size and start + size <= len(tiff):
            left -= size
            if left < 0:
                raise struct.error("values of more bytes than there are")
            yield Entry(tag, kind, number, start, bytes(tiff[start : start + size]))


def first(tiff: bytes | bytearray | memoryview, order: str, *, big: bool = False) -> int:
    """Return where the first directory begins."""
    code, at = ("Q", 8) if big else ("I", 4)
    return int(struct.unpack_from(f"{order}{code}", tiff, at)[0])


def lay(order: str, directory: Laid, at: int) -> bytes:
    """Return a directory that will stand there, with the values that do not fit into it behind."""
    behind, room = bytearray(), 2 + 12 * len(directory) + 4
    out = bytearray(struct.pack(f"{order}H", len(directory)))
    for tag, kind, count, value in sorted(directory, key=lambda entry: entry[0]):
        here = at + room + len(behind)
        if not isinstance(value, bytes):
            behind += lay(order, value, here)
            value = struct.pack(f"{order}I", here)
        elif len(value) > 4:
            behind += value + b"\0" * (len(value) % 2)
            value = struct.pack(f"{order}I", here)
        out += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return bytes(out + bytes(4) + behind)
