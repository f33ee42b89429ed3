"""HEIF and AVIF: the boxes that say what the decoders do not, and the plug-in that HEIF needs."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Iterator

from deblur.errors import PhotoError

_HOW = "pip install pillow-heif"


def register() -> None:
    """Teach Pillow HEIF. PhotoError where the library for it is not installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise PhotoError(f"HEIF needs pillow-heif: {_HOW}") from None


def chroma(data: bytes) -> int:
    """Return how colours are subsampled: 444, 422, 420, or 400 for a grey photo.

    Raises:
        PhotoError: for what would lose bits or colours, since all is decoded to 8 bits and only
            ICC profiles are kept.
    """
    meta = _meta(data)
    codings = [_av1(each) for each in _each(meta, b"av1C", 4)]
    kind = "AVIF" if codings else "HEIF"
    codings = codings or [_hevc(each) for each in _each(meta, b"hvcC", 23)]
    if not codings:
        raise PhotoError("neither HEVC nor AV1 codes this HEIF; others are not supported")
    # Alpha, depth and gain maps have boxes of their own, in any order, and are grey.
    found, bits = max(codings, key=lambda coding: (coding[0] != 400, coding[1]))
    if bits > 8:
        raise PhotoError(f"{kind} of {bits} bits is not supported; 8 bits are")
    profile = b"colrprof" in data or b"colrrICC" in data
    named = next(_each(data, b"colrnclx", 4), None)
    if named and not profile and wide_gamut(*struct.unpack(">HH", named)):
        raise PhotoError(f"{kind} of wide gamut without an ICC profile is not supported")
    return found


def wide_gamut(primaries: int, transfer: int) -> bool:
    """Return whether these code points (ITU-T H.273) are of colours that sRGB would misstate."""
    return primaries in {9, 10, 11, 12, 22} or transfer in {8, 16, 18}


def _av1(configuration: bytes) -> tuple[int, int]:
    """Return subsampling and bits."""
    bits = 8 + 2 * (configuration[2] >> 6 & 1) + 2 * (configuration[2] >> 5 & 1)
    grey, subsampled = configuration[2] >> 4 & 1, configuration[2] >> 2 & 3
    return 400 if grey else {2: 422, 3: 420}.get(subsampled, 444), bits


def _hevc(configuration: bytes) -> tuple[int, int]:
    """Return subsampling and bits."""
    bits = 8 + max(configuration[17] & 7, configuration[18] & 7)
    return (400, 420, 422, 444)[configuration[16] & 3], bits


def _meta(data: bytes) -> bytes:
    """Return the box of all properties: in megabytes of coded pixels any name may come up."""
    at = data.find(b"meta")
    size = int.from_bytes(data[at - 4 : at], "big") if at >= 4 else 0
    return data[at : at - 4 + size] if size > 8 else data


def _each(data: bytes, name: bytes, size: int) -> Iterator[bytes]:
    at = data.find(name)
    while at >= 0:
        found = data[at + len(name) : at + len(name) + size]
        if len(found) == size:
            yield found
        at = data.find(name, at + len(name))
