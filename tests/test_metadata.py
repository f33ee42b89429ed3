from __future__ import annotations

import contextlib
import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from deblur import metadata, photo
from deblur.errors import PhotoError

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def exif_block(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """Return a block with a make, an orientation and what looks like a maker's own secrets."""
    make = b"Camera Maker\0"
    value = struct.pack(f"{order}I", orientation) if kind == 4 else b""
    value = value or struct.pack(f"{order}HH", orientation, 0)
    entries = struct.pack(f"{order}HHII", 0x010F, 2, len(make), 8 + 2 + 24 + 4)
    entries += struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    directory = struct.pack(f"{order}H", 2) + entries + struct.pack(f"{order}I", 0)
    return b"Exif\0\0" + head + directory + make + b"\0secret \x01\x12\xff"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "PNG of 16 bits"])
def test_photos_come_out_upright(photos: Any, orientation: int, format: str) -> None:
    block = exif_block(orientation)
    if format == "PNG of 16 bits":
        pixels = photos.pixels(dtype=np.uint16)
        data = photo.encode(photo.Photo(pixels, exif=block))
        upright = np.asarray(ImageOps.exif_transpose(opened(data)))
        source = photo.decode(data)
        np.testing.assert_array_equal(source.pixels >> 8, upright)
    else:
        tags = Image.Exif()
        tags[0x0112] = orientation
        exif = tags if format == "TIFF" else block
        options = {"exif": exif} | LOSSLESS.get(format, {"quality": 95})
        data = photos.file(photos.pixels(), format, **options)
        upright = np.asarray(ImageOps.exif_transpose(opened(data)))
        source = photo.decode(data)
        np.testing.assert_array_equal(source.pixels, upright)
    assert (source.height, source.width) == upright.shape[:2]
    again = opened(photo.encode(source))
    assert again.getexif().get(0x0112, 1) == 1
    assert again.size == (source.width, source.height)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "PNG of 16 bits"])
def test_the_rest_of_the_exif_is_untouched(photos: Any, order: str, kind: int, format: str) -> None:
    block = exif_block(6, order, kind)
    if format == "PNG of 16 bits":
        data = photo.encode(photo.Photo(photos.pixels(dtype=np.uint16), exif=block))
    else:
        data = photos.file(photos.pixels(), format, exif=block)
    source = photo.decode(data)
    assert source.exif == exif_block(1, order, kind)
    assert photo.decode(photo.encode(source)).exif == source.exif


def test_exif_behind_the_pixels_of_a_png(photos: Any) -> None:
    data = photos.file(photos.pixels(), "PNG")
    block = exif_block(6).removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(block)) + b"eXIf" + block
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    source = photo.decode(data[:-12] + chunk + data[-12:])
    assert source.exif == exif_block(1)
    assert (source.width, source.height) == (48, 64)


@given(data=st.data())
def test_damaged_exif_is_passed_on(photos: Any, data: st.DataObject) -> None:
    block = bytearray(exif_block(6))
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(6, len(block) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(block[: data.draw(st.integers(6, len(block)))])
    patched, orientation = metadata.upright_exif(cut)
    assert patched is not None
    assert len(patched) == len(cut)
    assert 1 <= orientation <= 8


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "PNG of 16 bits"])
def test_the_colour_profile_is_untouched(photos: Any, format: str) -> None:
    if format == "PNG of 16 bits":
        source = photo.Photo(photos.pixels(dtype=np.uint16), icc=ICC, coding={"dpi": (96.0, 96.0)})
    else:
        source = photo.decode(photos.file(photos.pixels(), format, icc_profile=ICC))
    assert source.icc == ICC
    again = photo.decode(photo.encode(source))
    assert again.icc == ICC
    if format == "PNG of 16 bits":
        assert again.coding["dpi"] == pytest.approx((96, 96), abs=0.1)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6" dc:rights="Ann"/></x:xmpmeta>'


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_xmp_is_kept_and_turned_as_well(photos: Any, format: str) -> None:
    data = photos.file(photos.pixels(), format, xmp=XMP, exif=exif_block(6))
    again = opened(photo.encode(photo.decode(data)))
    assert again.info["xmp"] == XMP.replace(b'"6"', b'"1"')
    # Not so where it speaks of a motion picture that is behind the photo and gets lost.
    motion = XMP.replace(b"dc:rights", b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"')
    data = photos.file(photos.pixels(), format, xmp=motion)
    assert "xmp" not in opened(photo.encode(photo.decode(data))).info


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_xmp_of_png(photos: Any, dtype: type) -> None:
    made = photo.Photo(photos.pixels(dtype=dtype), coding={"xmp": XMP})
    source = photo.decode(photo.encode(made))
    assert source.coding["xmp"] == XMP
    assert photo.decode(photo.encode(source)).coding["xmp"] == XMP


@pytest.mark.parametrize("dpi", [(0, 0), (1e9, 72), (float("inf"), 72), (float("nan"), 1)])
def test_absurd_resolutions_are_left_out(dpi: tuple[float, float]) -> None:
    image = Image.new("RGB", (4, 4))
    image.info["dpi"] = dpi
    assert "dpi" not in metadata.coding(image, b"")


# === In another format ===


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_metadata_outlive_a_change_of_format(photos: Any, format: str, extension: str) -> None:
    """Who made it, how and where; but not the comment of a JPEG."""
    tags = Image.Exif()
    tags[0x0112], tags[315], tags[33432] = 6, "Ann", "(c) Ann"
    tags.get_ifd(34665)[33434] = 0.25
    tags.get_ifd(34853)[1] = "N"
    options = {"comment": b"hello"} if format == "JPEG" else {}
    data = photos.file(photos.pixels(), format, exif=tags, icc_profile=ICC, **options)
    source = photo.decode(data)
    xmp = XMP.replace(b'"6"', b'"1"')
    source = replace(source, coding={**source.coding, "xmp": xmp})
    again = opened(photo.encode(photo.named(source, f"a.{extension}")))
    exif = again.getexif()
    assert (exif[315], exif[33432], exif.get(0x0112, 1)) == ("Ann", "(c) Ann", 1)
    if extension != "tif":  # Pillow cannot
        assert exif.get_ifd(34665)[33434] == 0.25
        assert exif.get_ifd(34853)[1] == "N"
    assert again.info["icc_profile"] == ICC
    assert again.info["xmp"] == xmp
    assert ("comment" in again.info) == (format == "JPEG" and extension == "jpg")
    assert again.size == (source.width, source.height) == (48, 64)


def test_a_tiff_of_a_photo_of_another_format_is_no_larger_for_it(photos: Any) -> None:
    ramp = np.add.outer(np.arange(200), np.arange(300)).astype(np.uint8)[..., None].repeat(3, 2)
    data = photo.encode(photo.named(photo.Photo(ramp, exif=exif_block(1)), "a.tif"))
    assert opened(data).tag_v2[317] == 2  # type: ignore[attr-defined]
    assert len(data) < ramp.nbytes / 10


@given(data=st.data())
def test_damaged_exif_in_another_format(photos: Any, data: st.DataObject) -> None:
    """PhotoError is the only way out."""
    block = bytearray(exif_block(1))
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(6, len(block) - 1))] = data.draw(st.integers(0, 255))
    made = photo.Photo(photos.pixels(8, 8), exif=bytes(block), format="JPEG")
    named = photo.named(made, data.draw(st.sampled_from(["a.png", "a.webp", "a.bmp", "a.tif"])))
    with contextlib.suppress(PhotoError):
        assert photo.encode(named)


def test_formats_by_their_beginnings(photos: Any) -> None:
    for format in ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]:
        assert metadata.format_of(photos.file(photos.pixels(), format)) == format
    assert metadata.format_of(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") == "HEIF"
    for data in [b"", b"Dear diary, today"]:
        assert metadata.format_of(data) is None
