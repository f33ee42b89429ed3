from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deblur import bands, exif, photo
from deblur.directories import entries, lay
from deblur.errors import PhotoError

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

SECRET = b"Maker\0 whose secrets point to absolute places \x01\x02\xff"


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def block_of_a_camera(
    thumbnail: bytes, orientation: int = 6, order: str = "<", size: tuple[int, int] = (64, 48)
) -> bytes:
    """Return a block with sizes, a subject's place, maker notes, GPS and a thumbnail."""

    def shorts(*values: int) -> tuple[int, int, bytes]:
        return 3, len(values), struct.pack(f"{order}{len(values)}H", *values)

    def long(value: int) -> tuple[int, int, bytes]:
        return 4, 1, struct.pack(f"{order}I", value)

    below = [
        (0x9214, *shorts(10, 20, 4, 6)), (0x927C, 7, len(SECRET), SECRET),
        (0xA002, *long(size[0])), (0xA003, *shorts(size[1])), (0xA214, *shorts(10, 20)),
    ]  # fmt: skip
    main = [
        (0x010F, 2, 5, b"Make\0"), (0x0112, *shorts(orientation)),
        (34665, 4, 1, below), (34853, 4, 1, [(1, 2, 2, b"N\0")]),
    ]  # fmt: skip
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    first = lay(order, main, 8)
    link = 2 + 12 * len(main)
    at = 8 + len(first)
    start = at + 2 + 12 * 4 + 4
    second = lay(
        order,
        [
            (0x0103, *shorts(6)), (0x0112, *shorts(orientation)),
            (0x0201, *long(start)), (0x0202, *long(len(thumbnail))),
        ],
        at,
    )  # fmt: skip
    first = first[:link] + struct.pack(f"{order}I", at) + first[link + 4 :]
    return exif.PREFIX + head + first + second + thumbnail


def thumbnail_of(block: bytes | None) -> np.ndarray | None:
    assert block is not None
    tiff = block[6:]
    order = "<" if tiff.startswith(b"II") else ">"
    (count,) = struct.unpack_from(f"{order}H", tiff, 8)
    (second,) = struct.unpack_from(f"{order}I", tiff, 10 + 12 * count)
    if not second:
        return None
    directory = {entry.tag: entry for entry in entries(tiff, order, second)}
    assert directory[0x0112].value == struct.pack(f"{order}H", 1)
    start, length = (
        struct.unpack(f"{order}I", directory[tag].value)[0] for tag in (0x0201, 0x0202)
    )
    data = tiff[start : start + length]
    assert data.endswith(b"\xff\xd9")
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_what_turning_makes_untrue_follows(photos: Any, orientation: int, order: str) -> None:
    block = block_of_a_camera(jpeg(photos.pixels(24, 32)), orientation, order)
    data = photos.file(photos.pixels(), exif=block)
    source = photo.decode(data)
    read = Image.Exif()
    read.load(source.exif)
    below = read.get_ifd(34665)
    assert (below[0xA002], below[0xA003]) == (source.width, source.height)
    assert below[0x927C] == SECRET
    assert read.get_ifd(34853)[1] == "N"
    x, y, width, height = below[0x9214]
    assert below[0xA214] == (x, y)
    # The subject is found where turning puts it.
    spot = np.zeros((48, 64), np.uint8)
    spot[20, 10] = 1
    assert bands.turn(spot, orientation)[y, x] == 1
    assert (width, height) == ((6, 4) if orientation >= 5 else (4, 6))
    assert len(source.exif or b"") == len(block)
    if orientation == 1:
        assert source.exif == block


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_thumbnail_shows_the_photo_as_it_is(photos: Any, order: str, format: str) -> None:
    """A TIFF made from it has none, which is not stale either."""
    old = jpeg(255 - photos.pixels(120, 160))
    block = block_of_a_camera(old, 6, order)
    source = photo.decode(photos.jpeg(480, 640, exif=block))
    data = photo.encode(photo.converted(source, format, None))
    again = photo.decode(data)
    if format == "TIFF":
        assert Image.open(io.BytesIO(data)).n_frames == 1  # type: ignore[attr-defined]
        return
    thumbnail = thumbnail_of(again.exif)
    assert thumbnail is not None
    assert thumbnail.shape == (160, 120, 3)
    small = np.asarray(Image.fromarray(source.pixels).resize((120, 160), Image.Resampling.BOX))
    assert np.abs(thumbnail.astype(int) - small).mean() < 4
    # All that is not the thumbnail is where it was.
    assert again.exif is not None
    assert again.exif.index(SECRET) == block.index(SECRET)
    assert len(again.exif) == len(block)


@pytest.mark.parametrize("old", [b"\xff\xd8 too short for any picture \xff\xd9", b"", b"no JPEG"])
def test_a_thumbnail_that_cannot_be_made_anew_is_cut_off(photos: Any, old: bytes) -> None:
    block = block_of_a_camera(old)
    data = photos.file(photos.pixels(), exif=block)
    again = photo.decode(photo.encode(photo.decode(data)))
    assert thumbnail_of(again.exif) is None
    read = Image.Exif()
    read.load(again.exif)
    assert read.get_ifd(34665)[0x927C] == SECRET


def test_a_thumbnail_with_little_room_is_of_less_quality(photos: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    block = block_of_a_camera(jpeg(np.full_like(noise, 99)) + bytes(9000), 1)
    made = exif.with_thumbnail_of(block, noise)
    thumbnail = thumbnail_of(made)
    assert thumbnail is not None
    assert np.corrcoef(thumbnail.mean(2).ravel(), noise.mean(2).ravel())[0, 1] > 0.5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_holds_the_whole_block(photos: Any, dtype: type, order: str) -> None:
    """Exposure, place and maker notes, these where they were; from there they travel on."""
    block = block_of_a_camera(jpeg(photos.pixels(24, 32)), 1, order)
    made = photo.Photo(photos.pixels(dtype=dtype), exif=block, format="TIFF")
    data = photo.encode(made)
    assert data.index(SECRET) == block.index(SECRET) - 6
    for file in (data, photo.encode(photo.converted(photo.decode(data), "png", None))):
        image = Image.open(io.BytesIO(file))
        read = image.getexif()
        assert read[0x010F] == "Make"
        assert read.get_ifd(34665)[0x927C] == SECRET
        assert read.get_ifd(34853)[1] == "N"
    again = photo.decode(data)
    np.testing.assert_array_equal(again.pixels, made.pixels)
    assert photo.decode(photo.encode(again)).exif == again.exif


def test_the_orientation_goes_and_the_rest_stays() -> None:
    block = block_of_a_camera(b"", 1)
    made = exif.without_orientation(block)
    assert made is not None
    assert len(made) == len(block)
    read = Image.Exif()
    read.load(made)
    assert 0x0112 not in read
    assert read.get_ifd(34665)[0x927C] == SECRET
    assert exif.without_orientation(made) == made


@given(data=st.data())
def test_damaged_blocks_are_passed_on(photos: Any, data: st.DataObject) -> None:
    block = bytearray(block_of_a_camera(jpeg(photos.pixels(12, 16))))
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(6, 250))] = data.draw(st.integers(0, 255))
    cut = bytes(block[: data.draw(st.integers(6, len(block)))])
    made, orientation = exif.upright(cut, 64, 48)
    assert 1 <= orientation <= 8
    for again in (
        made,
        exif.without_orientation(made),
        exif.with_thumbnail_of(made, photos.pixels()),
    ):
        assert again is not None
        assert len(again) == len(cut)
    exif.of_tiff(cut[6:])
    with contextlib.suppress(PhotoError):
        photo.encode(photo.Photo(photos.pixels(8, 8), exif=made, format="TIFF"))
