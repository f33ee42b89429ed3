from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from deblur import bands, photo, png16
from deblur.errors import PhotoError

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def grey_of(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[..., 1])


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def chunk(name: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + checksum


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_of_16_bits(photos: Any, channels: int) -> None:
    pixels = photos.pixels(dtype=np.uint16)
    alpha = grey_of(photos.pixels(seed=1, dtype=np.uint16))
    samples = np.dstack([pixels, alpha])[..., :channels] if channels > 1 else grey_of(pixels)
    # OpenCV is the oracle here: it reads and writes them, with blue first.
    order = [2, 1, 0, 3][:channels]
    data = cv2.imencode(".png", samples[..., order] if channels > 1 else samples)[1].tobytes()
    source = photo.decode(data)
    assert source.grey == (channels == 1)
    stored = source.as_stored().pixels
    np.testing.assert_array_equal(stored, rgb(samples) if channels == 1 else pixels)
    assert (source.alpha is not None) == (channels == 4)
    again = cv2.imdecode(np.frombuffer(photo.encode(source), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(again[..., order] if channels > 1 else again, samples)


def test_png_of_16_bits_grey_with_alpha(photos: Any) -> None:
    pixels = rgb(grey_of(photos.pixels(dtype=np.uint16)))
    alpha = grey_of(photos.pixels(seed=1, dtype=np.uint16))
    made = photo.Photo(pixels, alpha, grey=True)
    data = photo.encode(made)
    assert data[24:26] == b"\x10\x04"
    source = photo.decode(data)
    np.testing.assert_array_equal(source.as_stored().pixels, pixels)
    np.testing.assert_array_equal(source.alpha, alpha)
    assert source.grey


def test_the_colour_that_is_transparent_in_16_bits() -> None:
    pixels = [[[1000, 2000, 3000], [1000, 2000, 3001]]]
    data = png16.write(np.array(pixels, np.uint16))
    clear = chunk(b"tRNS", struct.pack(">3H", *pixels[0][0]))
    source = photo.decode(data[:33] + clear + data[33:])
    assert source.as_stored().pixels.tolist() == pixels
    assert source.alpha is not None
    assert source.alpha.tolist() == [[0, 65535]]


def test_the_depth_is_in_the_header(photos: Any) -> None:
    assert png16.depth(png16.write(photos.pixels(dtype=np.uint16))) == 16
    assert png16.depth(photos.file(photos.pixels(), "PNG")) == 8
    for data in [b"", b"\x89PNG\r\n\x1a\n", photos.jpeg()]:
        assert png16.depth(data) == 0


@pytest.mark.parametrize("height", [1, 63, 64, 65, 200])
def test_bands_make_the_whole(photos: Any, height: int) -> None:
    pixels = photos.pixels(height, 5)
    for array in (pixels, grey_of(pixels)):
        np.testing.assert_array_equal(bands.array(Image.fromarray(array)), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_whose_checksums_are_wrong_is_refused(photos: Any, dtype: type) -> None:
    """Pillow would give other pixels, or black rows, and say nothing."""
    data = photo.encode(photo.Photo(photos.pixels(300, 400, dtype=dtype)))
    for share in (0.3, 0.8, 0.9, 0.99):
        kept = int(len(data) * share)
        with pytest.raises(PhotoError, match=r"the PNG is damaged|cannot be decoded"):
            photo.decode(data[:kept] + bytes(len(data) - kept))
        damaged = bytearray(data)
        damaged[kept] ^= 1
        with pytest.raises(PhotoError, match="the PNG is damaged: a checksum is wrong"):
            photo.decode(bytes(damaged))
    with pytest.raises(PhotoError, match="the PNG is damaged: its end is missing"):
        photo.decode(data[:-12])


@pytest.mark.parametrize("name", [b"tIME", b"tEXt"])
def test_damage_that_is_nothing_to_the_pixels(photos: Any, name: bytes) -> None:
    """It goes; what is behind it, and behind the end, is nothing to it."""
    data = photos.file(photos.pixels(), "PNG")
    damaged = chunk(name, b"Title\0a castle")[:-1] + b"?"
    whole = chunk(b"tEXt", b"Author\0Ann")
    source = photo.decode(data[:-12] + damaged + whole + data[-12:] + b"whatever")
    np.testing.assert_array_equal(source.pixels, photos.pixels())
    assert source.coding["chunks"] == [(b"tEXt", b"Author\0Ann")]
