"""The EXIF block: a small TIFF of its own that travels inside photos of every format.

It is changed in place only: maker notes hold offsets into the block that nobody but the maker
knows, and writing it anew would move what they point to.
"""

from __future__ import annotations

import contextlib
import io
import struct

import cv2
import numpy as np
from PIL import Image

from deblur.directories import BEGINNINGS, Entry, Laid, entries, first, lay, order_of

PREFIX = b"Exif\0\0"
_ORIENTATION, _SUBJECT_AREA, _SUBJECT_LOCATION = 274, 0x9214, 0xA214
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_INCH, _INCHES = 2, {2: 1.0, 3: 1 / 2.54}  # the usual unit of resolution, and those that there are
_THUMBNAIL, _THUMBNAIL_LENGTH = 513, 514
_THUMBNAIL_PX = 1024  # at most; as DCF has it, 160


def normal(exif: bytes | None) -> bytes | None:
    """Return the block with the prefix that JPEG needs and WebP leaves out."""
    if not exif:
        return None
    return exif if exif.startswith(PREFIX) else PREFIX + exif


# === Changed in place ===


class _Block:
    """A block under change."""

    def __init__(self, exif: bytes) -> None:
        self.tiff = bytearray(exif[len(PREFIX) :])
        self.order = order_of(self.tiff) or ""

    def directory(self, at: int) -> dict[int, Entry]:
        return {entry.tag: entry for entry in entries(self.tiff, self.order, at)}

    def numbers(self, entry: Entry) -> tuple[int, ...]:
        code = {3: "H", 4: "I"}.get(entry.kind)
        return struct.unpack(f"{self.order}{entry.count}{code}", entry.value) if code else ()

    def put(self, entry: Entry | None, *numbers: int) -> None:
        """Write integers over those that are there; leave alone what is of another kind."""
        if entry is not None and len(self.numbers(entry)) == len(numbers):
            code = {3: "H", 4: "I"}[entry.kind]
            struct.pack_into(f"{self.order}{len(numbers)}{code}", self.tiff, entry.at, *numbers)

    @property
    def main(self) -> dict[int, Entry]:
        return self.directory(first(self.tiff, self.order))

    def below(self, tag: int) -> dict[int, Entry]:
        """Return the directory that an entry of the main one points to."""
        pointer = self.main.get(tag)
        numbers = self.numbers(pointer) if pointer else ()
        return self.directory(numbers[0]) if numbers else {}

    def bytes(self) -> bytes:
        return PREFIX + self.tiff


def upright(
    exif: bytes | None, width: int, height: int, orientation: int | None = None
) -> tuple[bytes | None, int]:
    """Return the block as it is after turning a photo of this stored size, and its orientation.

    The orientation in it becomes 1. If it was another, or is said to be one that the file has
    elsewhere, the size, the resolution and the subject's place follow.
    """
    exif = normal(exif)
    if exif is None:
        return None, orientation or 1
    block = _Block(exif)
    if block.order:
        with contextlib.suppress(struct.error):  # a damaged block is passed on as far as it goes
            entry = block.main.get(_ORIENTATION)
            numbers = block.numbers(entry) if entry else ()
            if len(numbers) == 1:
                block.put(entry, 1)
                if orientation is None and 1 <= numbers[0] <= 8:
                    orientation = numbers[0]
            if orientation and orientation > 1:
                _turn(block, orientation, width, height)
    return block.bytes(), orientation or 1


def _turn(block: _Block, orientation: int, width: int, height: int) -> None:
    size = (height, width) if orientation >= 5 else (width, height)
    for directory, tags in ((block.main, (256, 257)), (block.below(34665), (0xA002, 0xA003))):
        for tag, value in zip(tags, size, strict=True):
            block.put(directory.get(tag), value)
    across, down = (block.main.get(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    if orientation >= 5 and across and down and len(across.value) == len(down.value):
        for one, other in ((across, down), (down, across)):
            block.tiff[one.at : one.at + len(one.value)] = other.value
    for tag in (_SUBJECT_AREA, _SUBJECT_LOCATION):
        if (entry := block.below(34665).get(tag)) and len(numbers := block.numbers(entry)) >= 2:
            x, y, *extent = numbers
            x = width - 1 - x if orientation in {2, 3, 7, 8} else x
            y = height - 1 - y if orientation in {3, 4, 6, 7} else y
            if orientation >= 5:
                x, y, extent = y, x, extent[::-1]
            block.put(entry, max(x, 0), max(y, 0), *extent)


def without_orientation(exif: bytes | None) -> bytes | None:
    """Return the block with that entry gone; the entries behind it move up, the values stay."""
    if exif is None:
        return None
    block = _Block(exif)
    if block.order:
        with contextlib.suppress(struct.error):
            at = first(block.tiff, block.order)
            (count,) = struct.unpack_from(f"{block.order}H", block.tiff, at)
            end = at + 2 + 12 * count + 4
            for position in range(at + 2, end - 4, 12):
                (tag,) = struct.unpack_from(f"{block.order}H", block.tiff, position)
                if tag == _ORIENTATION and end <= len(block.tiff):
                    block.tiff[position : end - 12] = block.tiff[position + 12 : end]
                    struct.pack_into(f"{block.order}H", block.tiff, at, count - 1)
                    break
    return block.bytes()


def with_thumbnail_of(exif: bytes | None, pixels: np.ndarray) -> bytes | None:
    """Return the block with its thumbnail, if it has one, made anew from (H, W, 3) pixels.

    It is written over the old one, if necessary in a lower quality. Where that cannot be, the
    directory of the thumbnail is cut off.
    """
    if exif is None:
        return None
    block = _Block(exif)
    if block.order:
        with contextlib.suppress(struct.error):
            at = first(block.tiff, block.order)
            (count,) = struct.unpack_from(f"{block.order}H", block.tiff, at)
            link = at + 2 + 12 * count
            (second,) = struct.unpack_from(f"{block.order}I", block.tiff, link)
            if second and not _replaced(block, second, pixels):
                struct.pack_into(f"{block.order}I", block.tiff, link, 0)
    return block.bytes()


def _replaced(block: _Block, at: int, pixels: np.ndarray) -> bool:
    try:
        directory = block.directory(at)
        (start,) = block.numbers(directory[_THUMBNAIL])
        (room,) = block.numbers(directory[_THUMBNAIL_LENGTH])
    except (struct.error, KeyError, ValueError):
        return False
    old = block.tiff[start : start + room]
    try:
        with Image.open(io.BytesIO(old), formats=("JPEG",)) as image:
            longest = min(max(image.size), _THUMBNAIL_PX)
    except (OSError, SyntaxError, ValueError, struct.error):
        return False
    thumbnail = _small(pixels, longest)
    for quality in (90, 75, 60, 40, 20):
        buffer = io.BytesIO()
        thumbnail.save(buffer, "JPEG", quality=quality)
        if (size := len(new := buffer.getvalue())) <= room == len(old):
            block.tiff[start : start + room] = new.ljust(room, b"\0")
            block.put(directory[_THUMBNAIL_LENGTH], size)
            for tag, value in ((_ORIENTATION, 1), (256, thumbnail.width), (257, thumbnail.height)):
                block.put(directory.get(tag), value)
            return True
    return False


def _small(pixels: np.ndarray, longest: int) -> Image.Image:
    height, width = pixels.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return Image.fromarray(small if small.dtype == np.uint8 else (small >> 8).astype(np.uint8))


# === The resolution, and new blocks ===


def laid(order: str, directory: Laid) -> bytes:
    """Return a new block of this one directory."""
    return PREFIX + BEGINNINGS[order] + struct.pack(f"{order}I", 8) + lay(order, directory, 8)


def dpi(exif: bytes | None) -> tuple[float, float] | None:
    """Return the dots per inch that the block states, across and down, or None."""
    block = _Block(exif or PREFIX)
    with contextlib.suppress(struct.error, KeyError, ValueError, ZeroDivisionError):
        main = block.main if block.order else {}
        (unit,) = block.numbers(main[_RESOLUTION_UNIT]) if _RESOLUTION_UNIT in main else (_INCH,)
        values = (main[tag].value for tag in (_X_RESOLUTION, _Y_RESOLUTION))
        ratios = (struct.unpack(f"{block.order}II", value) for value in values)
        x, y = (dots / units / _INCHES[unit] for dots, units in ratios)
        return x, y
    return None


def resolution(order: str, dpi: tuple[float, float]) -> Laid:
    """Return the entries that state a resolution."""
    x, y = (struct.pack(f"{order}II", round(value * 1000), 1000) for value in dpi)
    unit = struct.pack(f"{order}H", _INCH)
    return [(_X_RESOLUTION, 5, 1, x), (_Y_RESOLUTION, 5, 1, y), (_RESOLUTION_UNIT, 3, 1, unit)]


def with_dpi(exif: bytes | None, dpi: tuple[float, float]) -> bytes:
    """Return the block with a resolution: this one, if it has none.

    Its main directory is written once more, at the end, since nothing else may move.
    """
    if exif is None:
        return laid("<", resolution("<", dpi))
    block = _Block(exif)
    if block.order:
        with contextlib.suppress(struct.error):
            at, main = first(block.tiff, block.order), block.main
            if _X_RESOLUTION in main and _Y_RESOLUTION in main:
                return exif
            (count,) = struct.unpack_from(f"{block.order}H", block.tiff, at)
            (second,) = struct.unpack_from(f"{block.order}I", block.tiff, at + 2 + 12 * count)
            added = resolution(block.order, dpi)
            tags = {entry[0] for entry in added}
            kept = [(e.tag, e.kind, e.count, e.value) for e in main.values() if e.tag not in tags]
            start = len(block.tiff) + len(block.tiff) % 2
            directory = bytearray(lay(block.order, [*kept, *added], start))
            # Behind its entries, it says where the directory of the thumbnail is.
            struct.pack_into(f"{block.order}I", directory, 2 + 12 * len([*kept, *added]), second)
            struct.pack_into(f"{block.order}I", block.tiff, 4, start)
            return PREFIX + bytes(block.tiff).ljust(start, b"\0") + directory
    return exif
