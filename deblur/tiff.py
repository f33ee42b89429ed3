"""TIFF: reading 16 bits a sample, which Pillow reads as 8, its EXIF, and writing with all of that."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import zlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from PIL import Image

from deblur import bands, exif
from deblur.directories import BEGINNINGS, BIG_KINDS, Laid, entries, first, lay, order_of
from deblur.errors import PhotoError

_STRIP_BYTES = 1 << 20
# Tags of a TIFF that speak of how its pixels lie, or of another picture inside: kind of file, size,
# bits, compression, photometry, strips, tiles, planes, resolution, predictor, colour map, inks,
# further directories, further samples, JPEG tables, YCbCr; XMP, Photoshop's resources and layers,
# profile, and DNG's version, which would make it a raw file.
_LAYOUT = frozenset(
    {*range(254, 260), *range(262, 267), 273, 274, *range(277, 285), *range(288, 292), 296, 317}
    | {320, *range(322, 326), 330, *range(332, 335), 336, *range(338, 343), 347}
    | {*range(512, 522), *range(529, 533), 700, 34377, 34675, 37724, 50706}
)
# What red, green and blue are, where there is no profile: white, the primaries, and what light each
# of the 256 levels stands for. The 65536 of a TIFF of 16 bits are more than a JPEG's EXIF can hold.
_COLOURS = (318, 319, 301)
_TRANSFER, _LEVELS = 301, 3 * 256
_PHOTOMETRY, _RGB, _ORIENTATION, _LONG = 262, 2, 274, 4
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability


def bits(image: Image.Image) -> int:
    """Return the bits a sample of an opened TIFF."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(max(tags.get(258, (1,))))


def refuse(image: Image.Image) -> None:
    """Raise PhotoError for a TIFF that would lose something."""
    with contextlib.suppress(EOFError):
        image.seek(1)  # to count all pages would take Pillow the square of their number
        raise PhotoError("has several pages; only single photos are restored")
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(254, 0) & 1 or 50706 in tags:
        raise PhotoError("a camera's raw file is not supported")  # Pillow would give its preview
    deep, channels = bits(image), tags.get(277, 1)
    if channels > len(image.getbands()):  # infrared, masks, spot colours: Pillow leaves them out
        raise PhotoError("TIFF with channels besides colours and alpha is not supported")
    if deep > 8 and deep != 16:
        raise PhotoError(f"TIFF of {deep} bits is not supported; 8 and 16 bits are")
    if set(tags.get(339, (1,))) != {1}:
        raise PhotoError("TIFF of signed numbers is not supported; unsigned ones are")
    if deep == 16 and image.mode not in {"RGB", "RGBA", "I;16", "I;16B"}:
        raise PhotoError(f"TIFF of 16 bits in {image.mode} is not supported; grey and RGB are")
    if tags.get(284, 1) != 1 and (channels == 2 or (deep == 16 and channels > 1)):
        kind = "16 bits" if deep == 16 else "grey and alpha"
        raise PhotoError(f"TIFF of {kind} in separate planes is not supported")


def read(image: Any, data: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Return (pixels, alpha, grey) of 16 bits, upright, of a TIFF that is opened and not loaded."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        white_is_zero = tags.get(262) == 0
        image.load()
        grey = np.asarray(image).astype(np.uint16)
        if white_is_zero:
            grey = 65535 - grey
        return np.repeat(grey[..., None], 3, axis=2), None, True
    premultiplied = image.mode == "RGBA" and tags.get(338, (2,))[0] == 1
    pixels, alpha = bands.of_16_bits(_halves(image, data))
    if alpha is not None and premultiplied:
        for part in bands.slices(len(pixels)):
            share = np.maximum(alpha[part], 1).astype(np.float32)[..., None] / np.float32(65535)
            pixels[part] = np.minimum(np.rint(pixels[part] / share), 65535)
    return pixels, alpha, False


def _halves(image: Any, data: bytes) -> Iterator[Any]:
    yield _bytes_of(image, low=False)
    with Image.open(io.BytesIO(data), formats=("TIFF",)) as again:
        yield _bytes_of(again, low=True)


def _bytes_of(image: Any, *, low: bool) -> Any:
    """Let the image give the upper or the lower bytes: in the wrong order, it takes the lower."""
    tiles = []
    for tile in image.tile:
        args: Any = tile.args
        mode = args if isinstance(args, str) else args[0]
        name, _, order = mode.partition(";16")
        little = order == "L" or (order == "N" and sys.byteorder == "little")
        # As if it were not premultiplied: Pillow would divide the bytes one by one.
        mode = f"{name.replace('a', 'A')};16{'L' if little != low else 'B'}"
        tiles.append(tile._replace(args=mode if isinstance(args, str) else (mode, *args[1:])))
    image.tile = tiles
    image.load()  # it may turn the image: only now the size is true
    return image


def write(
    samples: np.ndarray,
    *,
    block: bytes | None = None,
    icc: bytes | None = None,
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> bytes:
    """Code (H, W, 1 to 4) uint8 or uint16: differences of neighbours, deflated, in strips.

    The file begins with the EXIF block, byte for byte, whose directories it then points to: so all
    of its offsets stay true, those of maker notes included.
    """
    height, width, channels = samples.shape
    deep = samples.dtype.itemsize
    order, about = _about(block, rgb=channels >= 3)
    begin = block[len(exif.PREFIX) :] if block and about else BEGINNINGS[order] + bytes(4)
    buffer = io.BytesIO()
    buffer.write(begin + b"\0" * (len(begin) % 2))
    rows = max(1, _STRIP_BYTES // (width * channels * deep))
    starts, sizes = [], []
    for top in range(0, height, rows):
        strip = samples[top : top + rows].copy()
        strip[:, 1:] -= samples[top : top + rows, :-1]
        # As for PNG, level 1 is as good as 6 where there are lower bytes, which are noise.
        coded = zlib.compress(strip.astype(f"{order}u{deep}").data, 1 if deep == 2 else 6)
        starts.append(buffer.tell())
        sizes.append(len(coded))
        buffer.write(coded + b"\0" * (len(coded) % 2))
    at = buffer.tell()
    directory = [
        *about, *_layout(order, samples, rows, starts, sizes), *_further(order, icc, xmp, dpi)
    ]  # fmt: skip
    buffer.write(lay(order, directory, at))
    buffer.seek(4)
    buffer.write(struct.pack(f"{order}I", at))
    return buffer.getvalue()


def _layout(
    order: str, samples: np.ndarray, rows: int, starts: list[int], sizes: list[int]
) -> Laid:
    height, width, channels = samples.shape
    deep = [8 * samples.dtype.itemsize] * channels
    colour = 2 if channels >= 3 else 1

    def shorts(*values: int) -> tuple[int, int, bytes]:
        return 3, len(values), struct.pack(f"{order}{len(values)}H", *values)

    def longs(*values: int) -> tuple[int, int, bytes]:
        return 4, len(values), struct.pack(f"{order}{len(values)}I", *values)

    return [
        (256, *longs(width)), (257, *longs(height)), (258, *shorts(*deep)), (259, *shorts(8)),
        (262, *shorts(colour)), (273, *longs(*starts)), (277, *shorts(channels)),
        (278, *longs(rows)), (279, *longs(*sizes)), (284, *shorts(1)), (317, *shorts(2)),
        *([(338, *shorts(2))] if channels in {2, 4} else []),
    ]  # fmt: skip


def _further(
    order: str, icc: bytes | None, xmp: bytes | None, dpi: tuple[float, float] | None
) -> Laid:
    found = [*exif.resolution(order, dpi)] if dpi else []
    if xmp:
        found.append((700, 1, len(xmp), xmp))
    if icc:
        found.append((34675, 7, len(icc), icc))
    return found


# === EXIF ===


def exif_of(data: bytes) -> bytes | None:
    """Return an EXIF block of what the tags of a TIFF say about the photo, or None."""
    big = order_of(data, big=True) is not None
    order = order_of(data, big=big)
    if order is None:
        return None
    try:
        at = first(data, order, big=big)
        skip = _LAYOUT - {_ORIENTATION, _PHOTOMETRY}
        found = _gathered(memoryview(data), order, at, skip, big=big)
    except struct.error:
        return None
    rgb = (_PHOTOMETRY, 3, 1, struct.pack(f"{order}H", _RGB)) in found
    about = [entry for entry in found if entry[0] != _PHOTOMETRY and _stays(entry, rgb=rgb)]
    return exif.laid(order, about) if about else None


def _stays(entry: tuple[int, int, int, Any], *, rgb: bool) -> bool:
    """Return whether an entry is still true of the pixels: colours are only of what was and is RGB."""
    tag, _, count, _ = entry
    return tag not in _COLOURS or (rgb and (tag != _TRANSFER or count == _LEVELS))


def _gathered(
    tiff: memoryview, order: str, at: int, skip: Collection[int], depth: int = 0, *, big: bool
) -> list[tuple[int, int, int, Any]]:
    found: dict[int, tuple[int, int, int, Any]] = {}
    for entry in entries(tiff, order, at, big=big):
        kind, count = entry.kind, entry.count
        value: Any = entry.value
        if entry.tag in skip or entry.tag in found:  # a second pointer may lead to as much again
            continue
        if entry.tag in _DIRECTORIES:
            code = "Q" if kind in BIG_KINDS else "I"
            if depth > 1 or len(value) != struct.calcsize(code):
                continue
            (below,) = struct.unpack(f"{order}{code}", value)
            kind, count = _LONG, 1
            value = _gathered(tiff, order, below, (), depth + 1, big=big)
        if kind not in BIG_KINDS:
            found[entry.tag] = (entry.tag, kind, count, value)
    return [entry for entry in found.values() if entry[3]]


def _about(block: bytes | None, *, rgb: bool) -> tuple[str, Laid]:
    """Return the order of the block and those entries of its main directory that a TIFF can take.

    Offsets to further directories are as they were: the TIFF is to begin with the block.
    """
    tiff = block[len(exif.PREFIX) :] if block else b""
    found: dict[int, tuple[int, int, int, bytes]] = {}
    if order := order_of(tiff):
        with contextlib.suppress(struct.error):
            for entry in entries(tiff, order, first(tiff, order)):
                if entry.tag not in _LAYOUT:
                    found[entry.tag] = (entry.tag, entry.kind, entry.count, entry.value)
    return order or "<", [entry for entry in found.values() if _stays(entry, rgb=rgb)]
