from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from deblur import photo, webp


def animation(still: bytes, width: int, height: int) -> bytes:
    """Return an animation of this one frame."""

    def u24(*values: int) -> bytes:
        return b"".join(value.to_bytes(3, "little") for value in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    canvas = u24(width - 1, height - 1)
    body = chunk(b"VP8X", b"\x02\0\0\0" + canvas) + chunk(b"ANIM", bytes(6))
    body += chunk(b"ANMF", bytes(6) + canvas + u24(100) + b"\x02" + still[12:])
    return chunk(b"RIFF", b"WEBP" + body)


@pytest.mark.parametrize("lossless", [False, True])
def test_the_one_frame_of_an_animation_is_coded_as_it_was(photos: Any, lossless: bool) -> None:
    still = photos.file(photos.pixels(), "WEBP", lossless=lossless, exact=True)
    for data in (still, animation(still, 64, 48)):
        assert webp.header(data) == (64, 48, lossless)
        source = photo.decode(data)
        again = photo.decode(photo.encode(source))
        assert again.coding["lossless"] == lossless
        if lossless:
            np.testing.assert_array_equal(source.pixels, photos.pixels())
            np.testing.assert_array_equal(again.pixels, source.pixels)


@pytest.mark.parametrize("kept", range(0, 60, 3))
def test_headers_that_are_cut_off(photos: Any, kept: int) -> None:
    still = photos.file(photos.pixels(), "WEBP", lossless=True)
    assert webp.header(animation(still, 64, 48)[:kept]) in {None, (64, 48, False), (64, 48, True)}
