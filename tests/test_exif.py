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

from deblur import bands, exif, photo, tiff
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
    (at,) = struct.unpack_from(f"{order}I", tiff, 4)
    (count,) = struct.unpack_from(f"{order}H", tiff, at)
    (second,) = struct.unpack_from(f"{order}I", tiff, at + 2 + 12 * count)
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
    order = data.draw(st.sampled_from("<>"))
    block = bytearray(block_of_a_camera(jpeg(photos.pixels(12, 16)), order=order))
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
    tiff.exif_of(cut[6:])
    stated = exif.with_dpi(made, (300.0, 300.0))
    assert stated.startswith(made[:2])
    assert len(stated) == len(cut) or exif.dpi(stated) == (300, 300)
    pixels = photos.pixels(8, 8)
    for block in (made, stated):
        try:
            file = photo.encode(photo.Photo(pixels, exif=block, format="TIFF"))
        except PhotoError:
            continue
        np.testing.assert_array_equal(photo.decode(file).pixels, pixels)


# === Resolution ===


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_resolution_is_added_and_nothing_moves(photos: Any, order: str) -> None:
    block = block_of_a_camera(jpeg(photos.pixels(24, 32)), 1, order)
    assert exif.dpi(block) is None
    made = exif.with_dpi(block, (300.0, 240.5))
    assert exif.dpi(made) == (300, 240.5)
    assert exif.with_dpi(made, (72.0, 72.0)) == made
    assert made.index(SECRET) == block.index(SECRET)
    assert made[6 + 8 : len(block)] == block[6 + 8 :]
    read = Image.Exif()
    read.load(made)
    assert (read[0x010F], read[0x0112], read[282], read[296]) == ("Make", 1, 300, 2)
    assert read.get_ifd(34665)[0x927C] == SECRET
    assert thumbnail_of(exif.with_thumbnail_of(made, photos.pixels())) is not None


@pytest.mark.parametrize(
    ("ratios", "unit", "expected"),
    [
        ((300, 1, 240, 1), (3, 2), (300, 240)),
        ((1000, 10, 50, 1), (3, 3), (254, 127)),
        ((300, 1, 240, 1), None, (300, 240)),
        ((300, 1, 240, 1), (3, 1), None),
        ((300, 0, 240, 1), (3, 2), None),
        ((300, 1, 240, 1), (2, 50), None),
    ],
)
def test_what_a_block_says_about_the_resolution(
    ratios: tuple[int, ...], unit: tuple[int, int] | None, expected: tuple[int, int] | None
) -> None:
    laid: list[Any] = [
        (282 + at, 5, 1, struct.pack(">II", *ratios[2 * at : 2 * at + 2])) for at in (0, 1)
    ]
    if unit:
        laid.append((296, unit[0], 1, struct.pack(">H", unit[1])))
    block = exif.PREFIX + b"MM\0*" + struct.pack(">I", 8) + lay(">", laid, 8)
    assert exif.dpi(block) == (expected and pytest.approx(expected))
    for other in (None, exif.PREFIX, b"", block[:20], exif.PREFIX + b"no block"):
        assert exif.dpi(other) is None


# === BigTIFF ===


def big_tiff(pixels: np.ndarray, order: str) -> bytes:
    """Return a BigTIFF of (H, W, 3) uint8, by Ann, in a quarter of a second, in the north."""

    def lay_big(directory: list[tuple[int, int, int, bytes]], at: int) -> bytes:
        behind, out = b"", struct.pack(f"{order}Q", len(directory))
        for tag, kind, count, value in directory:
            if len(value) > 8:
                start = at + 8 + 20 * len(directory) + 8 + len(behind)
                behind += value
                value = struct.pack(f"{order}Q", start)
            out += struct.pack(f"{order}HHQ", tag, kind, count) + value.ljust(8, b"\0")
        return out + bytes(8) + behind

    def short(*values: int) -> tuple[int, int, bytes]:
        return 3, len(values), struct.pack(f"{order}{len(values)}H", *values)

    def offset(value: int, kind: int) -> tuple[int, int, bytes]:
        return kind, 1, struct.pack(f"{order}{'I' if kind == 4 else 'Q'}", value)

    height, width = pixels.shape[:2]
    file = {"<": b"II+\0\x08\0\0\0", ">": b"MM\0+\0\x08\0\0"}[order] + bytes(8) + pixels.tobytes()
    exposure = len(file)
    file += lay_big([(33434, 5, 1, struct.pack(f"{order}II", 1, 4))], exposure)
    place = len(file)
    file += lay_big([(1, 2, 2, b"N\0")], place)
    main = [
        (256, *short(width)), (257, *short(height)), (258, *short(8, 8, 8)), (259, *short(1)),
        (262, *short(2)), (273, *offset(16, 16)), (274, *short(6)), (277, *short(3)),
        (279, *offset(pixels.nbytes, 16)), (315, 2, len(ANN), ANN), (34665, *offset(exposure, 18)),
        (34853, *offset(place, 4)), (40_000, *offset(7, 16)),
    ]  # fmt: skip
    at = len(file)
    return file[:8] + struct.pack(f"{order}Q", at) + file[16:] + lay_big(main, at)


ANN = b"Ann, who has a name of many letters\0"


def test_what_a_bigtiff_says_is_kept(photos: Any) -> None:
    """All but what a TIFF cannot hold: integers of 8 bytes."""
    source = photo.decode(big_tiff(photos.pixels(), "<"))
    np.testing.assert_array_equal(source.pixels, np.rot90(photos.pixels(), 3))
    assert source.exif is not None
    for block in (source.exif, tiff.exif_of(big_tiff(photos.pixels(), ">"))):
        read = Image.Exif()
        read.load(block)
        assert set(read) == {274, 315, 34665, 34853}
        assert read[315] == ANN[:-1].decode()
        assert read.get_ifd(34665)[33434] == 0.25
        assert read.get_ifd(34853)[1] == "N"
    again = Image.open(io.BytesIO(photo.encode(source))).getexif()
    assert (again[315], again.get_ifd(34853)[1]) == (ANN[:-1].decode(), "N")


@given(data=st.data())
def test_damaged_bigtiffs(photos: Any, data: st.DataObject) -> None:
    """There may be no block, but no other error, and no endless directory."""
    file = bytearray(big_tiff(photos.pixels(4, 4), "<"))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(8, len(file) - 1))] = data.draw(st.integers(0, 255))
    block = tiff.exif_of(bytes(file[: data.draw(st.integers(8, len(file)))]))
    assert block is None or block.startswith(exif.PREFIX)
    with contextlib.suppress(PhotoError):
        photo.encode(photo.decode(bytes(file), max_megapixels=1))
