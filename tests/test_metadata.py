from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from deblur import exif, metadata, photo
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
    patched, orientation = exif.upright(cut, 64, 48)
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


PHONE = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:GPano="http://ns.google.com/photos/1.0/panorama/"%s
 xmp:Rating="4" GPano:ProjectionType="equirectangular"%s>
<dc:subject><rdf:Bag><rdf:li>a &gt; b</rdf:li></rdf:Bag></dc:subject>%s</rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


@pytest.mark.parametrize(
    ("spaces", "attributes", "elements"),
    [
        (b"", b"", b""),
        (
            b" xmlns:GCamera='http://ns.google.com/photos/1.0/camera/'",
            b" GCamera:MotionPhoto=\"1\"\n GCamera:MotionPhotoPresentationTimestampUs = '12'",
            b"<GCamera:MicroVideo>1</GCamera:MicroVideo><GCamera:Empty/>",
        ),
        (
            b' xmlns:Container="http://ns.google.com/photos/1.0/container/"'
            b' xmlns:Item="http://ns.google.com/photos/1.0/container/item/"'
            b' xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"',
            b' hdrgm:Version="1.0"',
            b'<Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource">'
            b'<Container:Item Item:Mime="image/jpeg" Item:Length="9"/></rdf:li></rdf:Seq>'
            b"</Container:Directory>",
        ),
        (
            b' xmlns:xmpNote="http://ns.adobe.com/xmp/note/"',
            b' xmpNote:HasExtendedXMP="0123456789ABCDEF0123456789ABCDEF"',
            b"",
        ),
    ],
    ids=["panorama", "motion", "gain map", "further segments"],
)
def test_xmp_about_what_gets_lost_goes_and_the_rest_stays(
    photos: Any, spaces: bytes, attributes: bytes, elements: bytes
) -> None:
    """Motion pictures, gain maps and XMP in further segments; not so how a panorama is projected."""
    data = photos.jpeg(xmp=PHONE % (spaces, attributes, elements))
    assert opened(photo.encode(photo.decode(data))).info["xmp"] == PHONE % (b"", b"", b"")


CAMERA = b'xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"'


@pytest.mark.parametrize(
    "xmp",
    [
        b"<a " + CAMERA + b"><GCamera:b></a>",
        b"<a " + CAMERA + b' GCamera:b="<"/>',
        b"<a " + CAMERA + b"><b/>",
        b"<a " + CAMERA + b"></GCamera:b></a>",
        b"<a " + CAMERA + b" GCamera:b='>' GCamera:c='1'/>",
        b'<a xmlns="http://ns.google.com/photos/1.0/camera/" b="1"/>',
    ],
)
def test_xmp_that_cannot_be_taken_apart_goes(xmp: bytes) -> None:
    assert metadata.upright_xmp(xmp, 1) is None


def test_xmp_that_no_jpeg_can_hold_goes(photos: Any) -> None:
    """A photo must not fail because of it. Other formats keep it."""
    fits, longer = (XMP + b" " * (65_504 - len(XMP) + more) for more in (0, 1))
    for xmp, kept in ((fits, True), (longer, False)):
        made = photo.Photo(photos.pixels(), format="JPEG", coding={"xmp": xmp})
        assert opened(photo.encode(made)).info.get("xmp") == (xmp if kept else None)
        for format in ("PNG", "WEBP", "TIFF", "AVIF"):
            again = photo.decode(photo.encode(replace(made, format=format)))
            assert again.coding["xmp"] == xmp


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_xmp_of_png(photos: Any, dtype: type) -> None:
    made = photo.Photo(photos.pixels(dtype=dtype), coding={"xmp": XMP})
    source = photo.decode(photo.encode(made))
    assert source.coding["xmp"] == XMP
    assert photo.decode(photo.encode(source)).coding["xmp"] == XMP


def test_xmp_follows_what_turning_makes_untrue() -> None:
    """Sizes as attributes and as elements; an old thumbnail goes in any case."""
    xmp = (
        b'<rdf:Description tiff:Orientation="8" tiff:ImageWidth="64" tiff:ImageLength="48">'
        b"<exif:PixelXDimension>64</exif:PixelXDimension>"
        b"<exif:PixelYDimension>48</exif:PixelYDimension>"
        b"<xmp:Thumbnails><rdf:Alt>abcd</rdf:Alt></xmp:Thumbnails></rdf:Description>"
    )
    turned = metadata.upright_xmp(xmp, 8)
    assert turned == (
        b'<rdf:Description tiff:Orientation="1" tiff:ImageWidth="48" tiff:ImageLength="64">'
        b"<exif:PixelXDimension>48</exif:PixelXDimension>"
        b"<exif:PixelYDimension>64</exif:PixelYDimension></rdf:Description>"
    )
    half = metadata.upright_xmp(xmp, 3)
    assert half is not None
    assert b'tiff:ImageWidth="64"' in half
    plain = metadata.upright_xmp(xmp, 1)
    assert plain is not None
    assert b"Thumbnails" not in plain


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("factors", "lying", "upright"), [
    ((1, 1), 0, 0), ((2, 1), 1, 0), ((1, 2), 0, 1), ((2, 2), 2, 2), ((4, 1), 0, 0)
])  # fmt: skip
def test_subsampling_is_turned_with_the_photo(
    photos: Any, orientation: int, factors: tuple[int, int], lying: int, upright: int
) -> None:
    sampled = {(1, 1): "411", (2, 1): "422", (1, 2): "440", (2, 2): "420", (4, 1): "411"}[factors]
    flag = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampled if factors != (1, 1) else '444'}")
    pixels = np.ascontiguousarray(photos.pixels()[..., ::-1])
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, flag])[1].tobytes()
    block = exif_block(orientation)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]
    source = photo.decode(data)
    assert source.coding["subsampling"] == (upright if orientation == 6 else lying)


def resource(kind: int, name: bytes, body: bytes) -> bytes:
    name = bytes([len(name)]) + name
    return (
        b"8BIM" + struct.pack(">H", kind) + name + b"\0" * (len(name) % 2)
        + struct.pack(">I", len(body)) + body + b"\0" * (len(body) % 2)
    )  # fmt: skip


def test_captions_of_the_press_are_kept_and_their_thumbnails_not(photos: Any) -> None:
    kept = resource(0x0404, b"", b"\x1c\x02\x78\0\x05Ahoy!") + resource(
        0x03ED, b"abc", b"x" * 70_000
    )
    body = resource(0x040C, b"ab", b"old thumbnail") + kept + resource(0x0409, b"", b"older")
    parts = [b"Photoshop 3.0\0" + body[at : at + 60_000] for at in (0, 60_000)]
    parts = [each for part in parts for each in (b"Adobe_CM\0\x02", part)]  # none of Photoshop's
    extra = b"".join(b"\xff\xed" + struct.pack(">H", 2 + len(part)) + part for part in parts)
    for progressive in (False, True):
        data = photos.jpeg(extra=extra, progressive=progressive)
        again = photo.encode(photo.decode(photo.encode(photo.decode(data))))
        found = [body for name, body in opened(again).applist if name == "APP13"]  # type: ignore[attr-defined]
        assert b"".join(part.removeprefix(b"Photoshop 3.0\0") for part in found) == kept


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_chunks_about_colours_and_by_the_author_are_kept(photos: Any, dtype: type) -> None:
    chunks = [
        (b"gAMA", struct.pack(">I", 45455)), (b"cHRM", bytes(32)), (b"tEXt", b"Author\0Ann"),
        (b"iTXt", b"Title\0\0\0\0\0A castle"),
    ]  # fmt: skip
    made = photo.Photo(photos.pixels(dtype=dtype), coding={"chunks": chunks})
    data = photo.encode(made)
    assert sorted(photo.decode(data).coding["chunks"]) == sorted(chunks)
    assert sorted(photo.decode(photo.encode(photo.decode(data))).coding["chunks"]) == sorted(chunks)


@pytest.mark.parametrize("name", ["exif", "APP1"])
def test_exif_that_a_png_has_as_a_text(photos: Any, name: str) -> None:
    block = exif_block(6)
    digits = "\n".join(block.hex()[at : at + 72] for at in range(0, 2 * len(block), 72))
    text = f"Raw profile type {name}\0\n{name}\n{len(block):8}\n{digits}\n".encode()
    made = photo.Photo(photos.pixels(), coding={"chunks": [(b"tEXt", text)]})
    source = photo.decode(photo.encode(made))
    assert source.exif == exif_block(1)
    assert (source.width, source.height) == (48, 64)
    assert "chunks" not in source.coding


@pytest.mark.parametrize("dpi", [(0, 0), (1e9, 72), (float("inf"), 72), (float("nan"), 1)])
def test_absurd_resolutions_are_left_out(dpi: tuple[float, float]) -> None:
    image = Image.new("RGB", (4, 4))
    image.info["dpi"] = dpi
    assert "dpi" not in metadata.coding(image, b"")


# === The resolution ===


@pytest.mark.parametrize("exif", [None, exif_block(1)], ids=["no EXIF", "EXIF"])
@pytest.mark.parametrize("extension", ["webp", "avif", "heic"])
def test_a_resolution_outlives_a_change_to_a_format_that_has_it_in_exif(
    photos: Any, exif: bytes | None, extension: str
) -> None:
    if extension == "heic":
        pytest.importorskip("pillow_heif")
    data = photos.jpeg(dpi=(300, 240), **({"exif": exif} if exif else {}))
    changed = photo.decode(photo.encode(photo.named(photo.decode(data), f"a.{extension}")))
    assert changed.coding["dpi"] == (300, 240)
    assert photo.decode(photo.encode(changed)).exif == changed.exif
    for other in ("jpg", "png", "tif"):
        image = opened(photo.encode(photo.named(changed, f"a.{other}")))
        assert image.info["dpi"] == pytest.approx((300, 240), abs=0.1)
        assert image.getexif().get(0x010F) == ("Camera Maker" if exif else None)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF", "HEIF"])
def test_the_resolution_of_a_photo_is_turned_with_it(
    photos: Any, format: str, orientation: int
) -> None:
    """Both as the format states it and in EXIF, and once only."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    block = exif.with_dpi(exif_block(orientation), (300.0, 240.0))
    options = {"dpi": (300, 240)} if format in {"JPEG", "PNG", "TIFF"} else {}
    source = photo.decode(photos.file(photos.pixels(), format, exif=block, **options))
    expected = (240, 300) if orientation == 6 else (300, 240)
    again = photo.decode(photo.encode(source))
    for each in (source, again, photo.decode(photo.encode(again))):
        assert each.coding["dpi"] == pytest.approx(expected, abs=0.1)
        assert format == "TIFF" or exif.dpi(each.exif) == expected


def test_a_jpeg_without_a_resolution_gets_none(photos: Any) -> None:
    """Pillow would have it that this is 72 dots an inch."""
    data = photos.jpeg(exif=exif_block(1))
    without = data[:2] + data[2 + 2 + int.from_bytes(data[4:6], "big") :]  # without JFIF
    assert opened(without).info["dpi"] == (72, 72)
    assert "dpi" not in photo.decode(without).coding
    assert "dpi" not in photo.decode(data).coding


# === In another format ===


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "tif", "avif"])
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
    """PhotoError is the only way out; what is written can be read."""
    block = bytearray(exif_block(1, data.draw(st.sampled_from("<>"))))
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(6, len(block) - 1))] = data.draw(st.integers(0, 255))
    coding = {"dpi": (300.0, 300.0)} if data.draw(st.booleans()) else {}
    made = photo.Photo(photos.pixels(8, 8), exif=bytes(block), format="JPEG", coding=coding)
    named = photo.named(made, data.draw(st.sampled_from(["a.png", "a.webp", "a.bmp", "a.tif"])))
    try:
        file = photo.encode(named)
    except PhotoError:
        return
    again = photo.decode(file)
    if named.format != "WEBP":
        np.testing.assert_array_equal(again.pixels, made.pixels)


def test_formats_by_their_beginnings(photos: Any) -> None:
    for format in ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]:
        assert metadata.format_of(photos.file(photos.pixels(), format)) == format
    assert metadata.format_of(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic") == "HEIF"
    for data in [b"", b"Dear diary, today"]:
        assert metadata.format_of(data) is None
