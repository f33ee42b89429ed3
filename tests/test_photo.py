from __future__ import annotations

import contextlib
import io
import itertools
import logging
import pickle
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, JpegImagePlugin

from deblur import bands, photo
from deblur.errors import PhotoError

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII4x", 1, 0x0112, 3, 1, 3)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def grey_of(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[..., 1])


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def png(
    width: int, height: int, depth: int, kind: int, rows: bytes, *extra: tuple[bytes, bytes]
) -> bytes:
    """Return a PNG of these raw rows, each with its filter's byte in front."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


# === JPEG ===


@pytest.mark.parametrize("quality", [60, 92, 98])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_coded_as_its_source(
    photos: Any, quality: int, subsampling: int, progressive: bool
) -> None:
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    data = photos.jpeg(96, 128, **options, dpi=(300, 300), comment=b"hello")
    source = photo.decode(data)
    np.testing.assert_array_equal(source.pixels, np.asarray(opened(data)))
    again = photo.encode(source)
    before, after = opened(data), opened(again)
    assert isinstance(after, JpegImagePlugin.JpegImageFile)
    assert after.quantization == before.quantization
    assert JpegImagePlugin.get_sampling(after) == subsampling
    assert bool(after.info.get("progressive")) == progressive
    assert after.info["dpi"] == (300, 300)
    assert after.info["comment"] == b"hello"
    assert psnr(photo.decode(again).pixels, source.pixels) > 40
    assert abs(len(again) / len(data) - 1) < 0.1


def test_a_grey_jpeg_stays_grey(photos: Any) -> None:
    data = photos.file(grey_of(photos.pixels()), quality=90)
    source = photo.decode(data)
    assert source.grey
    np.testing.assert_array_equal(source.pixels, rgb(np.asarray(opened(data))))
    assert opened(photo.encode(source)).mode == "L"


def test_the_channels_of_a_restored_grey_photo_are_averaged(photos: Any) -> None:
    source = photo.decode(photos.file(grey_of(photos.pixels()), "PNG"))
    restored = source.pixels.copy()
    restored[0, 0], restored[0, 1] = (10, 20, 40), (255, 255, 255)
    again = photo.decode(photo.encode(source.with_pixels(restored)))
    assert again.grey
    assert again.pixels[0, :2, 0].tolist() == [23, 255]
    np.testing.assert_array_equal(again.pixels[1:], source.pixels[1:])


@pytest.mark.parametrize("icc", [b"", b"no profile at all", ICC])
def test_inks_become_colours(photos: Any, icc: bytes) -> None:
    """CMYK without a profile of inks, with a broken one and with one of something else."""
    image = Image.fromarray(photos.pixels()).convert("CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=98, icc_profile=icc)
    source = photo.decode(buffer.getvalue())
    assert psnr(source.pixels, photos.pixels()) > 35
    assert source.icc is None
    assert opened(photo.encode(source)).mode == "RGB"


def profile(space: bytes, connection: bytes, **tags: bytes) -> bytes:
    """Return an ICC profile of a printer (ICC.1:2001-04)."""
    at = 128 + 4 + 12 * len(tags)
    table, bodies = struct.pack(">I", len(tags)), b""
    for name, body in tags.items():
        table += name.encode() + struct.pack(">II", at + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    size, white = at + len(bodies), (0xF6D6, 0x10000, 0xD32D)
    head = struct.pack(">I4xI4s4s4s12x4s28x", size, 2 << 24, b"prtr", space, connection, b"acsp")
    return (head + struct.pack(">3i", *white)).ljust(128, b"\0") + table + bodies


def profile_of_inks() -> bytes:
    """Return one of a table of 16 colours in Lab: those of no ink, of each, and of all mixtures."""
    colours = []
    for cyan, magenta, yellow, black in itertools.product((0, 1), repeat=4):
        light = 0xFF00 * 0.6**cyan * 0.5**magenta * 0.9**yellow * (1 - black)
        a, b = -20 * cyan + 30 * magenta, -20 * cyan + 40 * yellow
        colours += [round(light), 0x8000 + 256 * a * (1 - black), 0x8000 + 256 * b * (1 - black)]
    ramp = struct.pack(">2H", 0, 65535)
    table = b"mft2" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i2H", *(65536 * (at % 4 == 0) for at in range(9)), 2, 2)
    table += 4 * ramp + struct.pack(">48H", *colours) + 3 * ramp
    return profile(b"CMYK", b"Lab ", A2B0=table)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_become_what_their_profile_says(format: str) -> None:
    inks = np.kron(np.eye(4, 5, dtype=np.uint8) * 255, np.ones((16, 16), np.uint8))
    image = Image.merge("CMYK", [Image.fromarray(ink) for ink in np.split(inks, 4)])
    buffer = io.BytesIO()
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    image.save(buffer, format, icc_profile=profile_of_inks(), **options)
    source = photo.decode(buffer.getvalue())
    # Lab of (60, -20, -20), (50, 30, 0), (90, 0, 40), (0, 0, 0) and (100, 0, 0), as sRGB.
    expected = [(77, 156, 179), (166, 98, 120), (246, 225, 149), (0, 0, 0), (255, 255, 255)]
    np.testing.assert_allclose(source.pixels[8, 8::16].astype(int), expected, atol=2)
    assert source.icc is None


def test_a_jpeg_of_rgb_has_true_colours(photos: Any) -> None:
    source = photo.decode(photos.jpeg(quality=95, keep_rgb=True))
    assert psnr(source.pixels, photos.pixels()) > 38
    assert psnr(photo.decode(photo.encode(source)).pixels, source.pixels) > 38


def test_noise_as_a_progressive_jpeg_of_the_best_quality(capfd: pytest.CaptureFixture[str]) -> None:
    """Pillow's buffer is too small for it, so it is coded in one go."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    coding = {"progressive": True, "qtables": [[1] * 64] * 2, "subsampling": 0}
    again = photo.decode(photo.encode(photo.Photo(noise, format="JPEG", coding=coding)))
    assert psnr(again.pixels, noise) > 40
    capfd.readouterr()  # libjpeg says so; there is no switch


def test_a_preview_behind_the_photo_is_left_out(photos: Any) -> None:
    buffer = io.BytesIO()
    first, second = (Image.fromarray(photos.pixels(seed=seed)) for seed in (0, 1))
    first.save(buffer, "MPO", save_all=True, append_images=[second], quality=95)
    source = photo.decode(buffer.getvalue())
    assert source.format == "JPEG"
    assert psnr(source.pixels, photos.pixels()) > 35
    assert opened(photo.encode(source)).format == "JPEG"
    # But a picture for the other eye is no preview.
    stereo = bytearray(buffer.getvalue())
    index = stereo.index(b"MPF\0")
    at = stereo.rindex(struct.pack("<I", 0x030000), index, index + 200) + 16
    stereo[at : at + 4] = struct.pack("<I", 0x020002)
    with pytest.raises(PhotoError, match="has 2 frames"):
        photo.decode(bytes(stereo))


# === Lossless formats ===


@pytest.mark.parametrize(
    ("format", "kind"),
    # But for one: Pillow writes no alpha into a BMP that it reads again.
    [
        pair
        for pair in itertools.product(LOSSLESS, ["colour", "grey", "alpha", "palette", "two"])
        if pair != ("BMP", "alpha")
    ],
)
def test_lossless_formats_keep_every_bit(photos: Any, format: str, kind: str) -> None:
    pixels = photos.pixels()
    image = Image.fromarray(pixels)
    if kind == "grey":
        image = image.convert("L")
    elif kind == "palette":
        image = image.quantize(16)
    elif kind == "two":
        image = image.convert("1")
    elif kind == "alpha":
        image.putalpha(Image.fromarray(photos.pixels(seed=1)[..., 0]))
    buffer = io.BytesIO()
    image.save(buffer, format, **LOSSLESS[format])
    source = photo.decode(buffer.getvalue())
    expected = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(source.pixels, expected[..., :3])
    assert (source.alpha is not None) == (kind == "alpha")
    if source.alpha is not None:
        np.testing.assert_array_equal(source.alpha, expected[..., 3])
    assert source.grey == (kind in {"grey", "two"} and format != "WEBP")
    again = photo.decode(photo.encode(source))
    np.testing.assert_array_equal(again.pixels, source.pixels)
    assert (again.alpha == source.alpha) if source.alpha is None else True
    if source.alpha is not None:
        np.testing.assert_array_equal(again.alpha, source.alpha)
    assert (again.grey, again.format) == (source.grey, format)


def test_grey_with_alpha(photos: Any) -> None:
    grey, alpha = grey_of(photos.pixels()), grey_of(photos.pixels(seed=1))
    source = photo.decode(photos.file(np.dstack([grey, alpha]), "PNG"))
    np.testing.assert_array_equal(source.as_stored().pixels, rgb(grey))
    np.testing.assert_array_equal(source.alpha, alpha)
    assert opened(photo.encode(source)).mode == "LA"


def test_a_palette_with_transparency(photos: Any) -> None:
    image = Image.fromarray(photos.pixels()).quantize(8)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128, *[255] * 6]))
    source = photo.decode(buffer.getvalue())
    assert source.alpha is not None
    index = np.asarray(image)
    assert set(source.alpha[index == 0]) == {0}
    assert set(source.alpha[index == 1]) == {128}
    assert set(source.alpha[index > 1]) == {255}
    again = photo.decode(photo.encode(source))
    np.testing.assert_array_equal(again.alpha, source.alpha)


@pytest.mark.parametrize(
    ("depth", "row", "levels"),
    [(1, b"\x50", [0, 255, 0, 255]), (2, b"\x1b", [0, 85, 170, 255]), (4, b"\x05\xaf", None)],
)
def test_the_grey_that_is_transparent(depth: int, row: bytes, levels: list[int] | None) -> None:
    """Pillow forgets it where there are 2 or 4 bits."""
    levels = levels or [0, 85, 170, 255]
    clear = (2**depth - 1) // 3 or 1
    source = photo.decode(png(4, 1, depth, 0, b"\0" + row, (b"tRNS", struct.pack(">H", clear))))
    assert source.as_stored().pixels[0, :, 0].tolist() == levels
    assert source.alpha is not None
    assert source.alpha[0].tolist() == [0 if v == levels[1] else 255 for v in levels]


@pytest.mark.parametrize("extra", [{}, {"exif": EXIF}, {"icc_profile": ICC}])
def test_webp_stays_lossless_or_lossy(photos: Any, extra: dict[str, Any]) -> None:
    for lossless in (False, True):
        data = photos.file(photos.pixels(), "WEBP", lossless=lossless, quality=80, **extra)
        source = photo.decode(data)
        assert source.coding["lossless"] == lossless
        again = photo.decode(photo.encode(source))
        assert again.coding["lossless"] == lossless
        assert psnr(again.pixels, source.pixels) > (100 if lossless else 38)


def test_tiff_keeps_who_made_it_and_shrinks(photos: Any) -> None:
    smooth = cv2.GaussianBlur(photos.pixels(200, 300), (0, 0), 3)
    tags = {270: "A castle", 315: "Ann", 33432: "(c) Ann", 700: b"<x/>"}
    source = photo.decode(photos.file(smooth, "TIFF", tiffinfo=tags, dpi=(240, 240)))
    data = photo.encode(source)
    again = opened(data)
    assert {tag: again.tag_v2[tag] for tag in tags} == tags  # type: ignore[attr-defined]
    assert again.info["dpi"] == (240, 240)
    assert len(data) < smooth.nbytes / 2


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_tiff_as_others_code_it(photos: Any, compression: str) -> None:
    options = {"quality": 95} if compression == "jpeg" else {}
    data = photos.file(photos.pixels(), "TIFF", compression=compression, **options)
    source = photo.decode(data)
    np.testing.assert_array_equal(source.pixels, np.asarray(opened(data).convert("RGB")))
    assert psnr(source.pixels, photos.pixels()) > 30


# === What alpha hides ===


def cut_out(photos: Any, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Return a bright disc on noise that alpha hides, and the alpha, soft at the outline."""
    pixels = photos.pixels(150, 200, dtype=dtype) // 4 + np.iinfo(dtype).max // 2
    alpha = np.zeros((150, 200), np.float32)
    cv2.circle(alpha, (100, 70), 50, 1, -1)
    alpha = (cv2.blur(alpha, (5, 5)) * np.iinfo(dtype).max).astype(dtype)
    noise = np.random.default_rng(0).integers(0, 9, pixels.shape, dtype=dtype)
    return np.where(alpha[..., None] == 0, noise, pixels), alpha


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        ("PNG", np.uint8),
        ("PNG", np.uint16),
        ("TIFF", np.uint8),
        ("TIFF", np.uint16),
        ("WEBP", np.uint8),
    ],
)
def test_what_is_hidden_is_restored_as_what_lies_beside_it(
    photos: Any, format: str, dtype: type
) -> None:
    """No edge at the outline of a cut-out; and in the file, what was hidden is as it was."""
    pixels, alpha = cut_out(photos, dtype)
    data = photo.encode(photo.Photo(pixels, alpha, format=format, coding={"lossless": True}))
    source = photo.decode(data)
    visible = alpha > 0
    np.testing.assert_array_equal(source.pixels[visible], pixels[visible])
    assert source.pixels.min() >= pixels[visible].min()
    # Each is what is nearest: left of the disc and above, straight across from the outline.
    row, column = visible[70].argmax(), visible[:, 100].argmax()
    assert (source.pixels[70, :row] == pixels[70, row]).all()
    assert (source.pixels[:column, 100] == pixels[column, 100]).all()
    restored = source.with_pixels(source.pixels ^ 1)
    again = photo.decode(photo.encode(restored))
    np.testing.assert_array_equal(again.alpha, alpha)
    stored = again.as_stored().pixels
    np.testing.assert_array_equal(stored[visible], pixels[visible] ^ 1)
    np.testing.assert_array_equal(stored[~visible], pixels[~visible])


def test_what_is_hidden_outlives_other_formats_and_fewer_bits(photos: Any) -> None:
    pixels, alpha = cut_out(photos, np.uint16)
    alpha[:5] = 100  # visible in 16 bits, but not in 8
    source = photo.decode(photo.encode(photo.Photo(pixels, alpha)))
    assert source.hidden is not None
    for extension, expected in (("tif", pixels), ("bmp", None), ("webp", photo.to_uint8(pixels))):
        made = photo.converted(source, extension, None)
        if expected is None:
            with pytest.raises(PhotoError, match="cannot hold transparency"):
                photo.encode(made)
            continue
        assert (made.as_stored().pixels == expected).all()
        assert photo.encode(made)


def test_large_cut_outs_are_filled_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_FILLED_ROWS", 16)
    monkeypatch.setattr(bands, "_FILLED_FROM_PX", 8)
    pixels = np.zeros((100, 20, 3), np.uint8)
    alpha = np.zeros((100, 20), np.uint8)
    pixels[:8], alpha[:8] = 50, 255
    pixels[10:12, :4], alpha[10:12, :4] = 90, 1
    pixels[95], alpha[95] = 70, 255
    before = bands.fill_hidden(pixels, alpha)
    assert before is not None
    assert before.tolist() == [[0, 0, 0]]
    assert (pixels[8, 12:] == 50).all()
    assert (pixels[12:16, :3] == 90).all()
    assert (pixels[90:] == 70).all()
    assert not pixels[40:70].any()  # far from all that is visible
    restored = bands.with_hidden(pixels, alpha, before)
    assert restored[alpha == 0].max() == 0
    assert (restored[alpha > 0] == pixels[alpha > 0]).all()


@pytest.mark.parametrize("level", [0, 1, 255])
def test_nothing_hidden_or_nothing_visible(photos: Any, level: int) -> None:
    pixels = photos.pixels()
    made = photo.Photo(pixels, np.full(pixels.shape[:2], level, np.uint8))
    source = photo.decode(photo.encode(made))
    assert source.hidden is None
    assert source.as_stored() is source
    np.testing.assert_array_equal(source.pixels, pixels)


# === What is kept, what is refused ===


def test_photos_travel_between_processes(photos: Any) -> None:
    for format in ["JPEG", "PNG", "WEBP", "TIFF", "BMP"]:
        source = photo.decode(photos.file(photos.pixels(), format, dpi=(72, 72)))
        assert photo.encode(pickle.loads(pickle.dumps(source))) == photo.encode(source)


def test_pixels_of_another_shape_are_refused(photos: Any) -> None:
    source = photo.decode(photos.jpeg())
    with pytest.raises(ValueError, match=r"pixels=\(2, 2, 3\) uint8 vs the photo's \(48, 64, 3\)"):
        source.with_pixels(np.zeros((2, 2, 3), np.uint8))


def test_what_a_format_cannot_hold_is_refused(photos: Any) -> None:
    pixels, wide = photos.pixels(), photos.pixels(dtype=np.uint16)
    clear, opaque = np.zeros((48, 64), np.uint8), np.full((48, 64), 255, np.uint8)
    for made, reason in [
        (photo.Photo(pixels, clear, format="JPEG"), "JPEG cannot hold transparency"),
        (photo.Photo(pixels, clear, format="BMP"), "BMP cannot hold transparency"),
        (photo.Photo(wide, format="WEBP"), "WEBP of 16 bits cannot be written"),
        (photo.Photo(wide, format="AVIF"), "AVIF of 16 bits cannot be written"),
        (photo.Photo(pixels, format="JPEG", exif=b"x" * 70_000), "cannot be encoded as JPEG: EXIF"),
    ]:
        with pytest.raises(PhotoError, match=reason):
            photo.encode(made)
    assert opened(photo.encode(photo.Photo(pixels, opaque, format="JPEG"))).mode == "RGB"


@pytest.mark.parametrize(
    ("format", "longest"),
    [("JPEG", 65_500), ("WEBP", 16_383), ("AVIF", 32_768), ("HEIF", 65_520)],
)
@pytest.mark.parametrize("lying", [False, True])
def test_the_longest_side_of_a_format(
    format: str, longest: int, lying: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """So long can be read again; longer is refused before libjpeg would say so in the terminal."""
    if format == "HEIF":
        pytest.importorskip("pillow_heif")

    def strip(side: int) -> photo.Photo:
        size = (64, side) if lying else (side, 64)
        return photo.Photo(np.zeros((*size, 3), np.uint8), format=format)

    assert max(photo.decode(photo.encode(strip(longest))).pixels.shape) == longest
    reason = f"cannot be encoded as {format}: a side of {longest + 1} pixels is over its limit"
    with pytest.raises(PhotoError, match=reason):
        photo.encode(strip(longest + 1))
    assert capfd.readouterr() == ("", "")


# === The extension tells the truth ===

KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP"}


@pytest.mark.parametrize("format", KINDS.values())
@pytest.mark.parametrize("extension", KINDS)
@pytest.mark.parametrize("grey", [False, True])
def test_a_photo_takes_the_format_of_its_name(
    photos: Any, format: str, extension: str, grey: bool
) -> None:
    pixels = grey_of(photos.pixels()) if grey else photos.pixels()
    options = {"quality": 95} if format == "JPEG" else LOSSLESS[format]
    source = photo.decode(photos.file(pixels, format, dpi=(300, 300), **options))
    named = photo.named(source, f"a.png/photo.{extension}")
    if KINDS[extension] == format:
        assert named is source
        return
    data = photo.encode(named)
    again = photo.decode(data)
    assert opened(data).format == again.format == KINDS[extension]
    assert again.grey == (source.grey and extension != "webp")
    assert psnr(again.pixels, source.pixels) > (38 if extension in {"jpg", "webp"} else 1000)
    if "dpi" in source.coding and extension != "webp":
        assert again.coding["dpi"] == pytest.approx(source.coding["dpi"], abs=0.1)
    assert set(named.coding) <= {"dpi"}


@pytest.mark.parametrize(
    ("key", "format"),
    [
        ("a.JPG", "JPEG"),
        ("a.JPeG", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.jfif", "JPEG"),
        ("a.mpo", "JPEG"),
        ("a.TIFF", "TIFF"),
        ("a.png.webp", "WEBP"),
        ("a", "PNG"),
        ("a.jpg/b", "PNG"),
        ("a.heic", "HEIF"),
        ("a.avif", "AVIF"),
        ("a.gif", "PNG"),
    ],
)
def test_what_extensions_stand_for(photos: Any, key: str, format: str) -> None:
    assert photo.named(photo.Photo(photos.pixels()), key).format == format


def test_a_name_that_the_photo_does_not_fit(photos: Any) -> None:
    pixels, wide = photos.pixels(), photos.pixels(dtype=np.uint16)
    clear, opaque = np.zeros((48, 64), np.uint8), np.full((48, 64), 255, np.uint8)
    for made, key, reason in [
        (photo.Photo(pixels, clear), "a.jpg", "JPEG cannot hold transparency"),
        (photo.Photo(pixels, clear), "a.bmp", "BMP cannot hold transparency"),
        (photo.Photo(wide), "a.jpg", "JPEG of 16 bits cannot be written"),
        (photo.Photo(wide), "a.webp", "WEBP of 16 bits cannot be written"),
    ]:
        with pytest.raises(PhotoError, match=reason):
            photo.encode(photo.named(made, key))
    for key in ["a.jpg", "a.bmp"]:
        assert opened(photo.encode(photo.named(photo.Photo(pixels, opaque), key))).mode == "RGB"
    for key in ["a.webp", "a.tif"]:
        named = photo.named(photo.Photo(pixels, clear), key)
        np.testing.assert_array_equal(photo.decode(photo.encode(named)).alpha, clear)


# === What is no photo ===

CODED: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {"quality": 80},
    "WEBP lossless": {"lossless": True},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "BMP": {},
    "AVIF": {},
}


@pytest.mark.parametrize("name", [*CODED, "PNG of 16 bits"])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(
    photos: Any, name: str, keep: float, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = photos.pixels(100, 120)
    if name == "PNG of 16 bits":
        data = photo.encode(photo.Photo(photos.pixels(100, 120, dtype=np.uint16)))
    else:
        data = photos.file(pixels, name.split()[0], **CODED[name])
    with pytest.raises(PhotoError) as caught:
        photo.decode(data[: int(keep * len(data))])
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def frames(format: str) -> bytes:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    pictures[0].save(buffer, format, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def pages(number: int) -> bytes:
    """Return a TIFF of pages of 4x4 that share one strip."""
    entries = [
        (256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16),
    ]  # fmt: skip
    page = struct.pack("<H", 9) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    step = len(page) + 4
    links = [24 + step * (at + 1) for at in range(number - 1)] + [0]
    body = b"".join(page + struct.pack("<I", link) for link in links)
    return b"II*\0" + struct.pack("<I16x", 24) + body


REFUSED = {
    "empty": (b"", "the file is empty"),
    "text": (b"Dear diary, today\n" * 50, "not a photo in a known format"),
    "html": (b"<!DOCTYPE html><html>404</html>", "not a photo in a known format"),
    "JPEG's beginning": (b"\xff\xd8\xff\xe0", "the JPEG is damaged"),
    "PNG's beginning": (b"\x89PNG\r\n\x1a\n", "the PNG is damaged"),
    "HEIF": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "the HEIF is damaged|pip install pillow-heif"),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0", "the AVIF is damaged"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "format JPEG 2000 is not supported"),
    "JPEG XL": (b"\xff\x0a\xfa\x1f\x41\x91", "format JPEG XL is not supported"),
    "GIF": (frames("GIF"), "format GIF is not supported"),
    "frames of WebP": (frames("WEBP"), "has 3 frames"),
    "frames of PNG": (frames("PNG"), "has 3 frames"),
    "pages of TIFF": (frames("TIFF"), "has several pages"),
    "20,000 pages of TIFF": (pages(20_000), "has several pages"),
    "bomb of PNG": (png(100_000, 100_000, 8, 2, b""), "100000x100000 is over the limit of 500"),
    "bomb of BMP": (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
        "60000x60000 is over the limit of 500 megapixels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_photo_is_refused_quickly(name: str) -> None:
    data, reason = REFUSED[name]
    start = time.monotonic()
    with pytest.raises(PhotoError, match=reason):
        photo.decode(data)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "WEBP lossless", "TIFF", "BMP", "AVIF"])
def test_the_bound_is_set_by_the_caller(photos: Any, format: str) -> None:
    options = {"lossless": True} if "lossless" in format else {}
    data = photos.file(photos.pixels(100, 150), format.split()[0], **options)
    assert photo.decode(data, max_megapixels=0.015).width == 150
    with pytest.raises(PhotoError, match="150x100 is over the limit"):
        photo.decode(data, max_megapixels=0.0149)


# === As asked for ===


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "avif", "JPG", "bmp"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_another_format_is_asked_for(photos: Any, format: str, dtype: type) -> None:
    source = photo.decode(photo.encode(photo.Photo(photos.pixels(dtype=dtype), icc=ICC)))
    made = photo.converted(source, format, None)
    again = photo.decode(photo.encode(made))
    assert photo.FORMATS[photo.extension(made)] == again.format
    assert again.format == {"jpg": "JPEG"}.get(format.lower(), format.upper())
    assert again.pixels.dtype == (dtype if format in {"png", "tiff"} else np.uint8)
    assert psnr(photo.to_uint8(again.pixels), photo.to_uint8(source.pixels)) > 35
    assert again.icc == (None if format == "bmp" else ICC)


def test_the_extension_of_each_format() -> None:
    for name in set(photo.FORMATS.values()):
        extension = photo.extension(photo.Photo(np.zeros((1, 1, 3), np.uint8), format=name))
        assert photo.FORMATS[extension] == name


@pytest.mark.parametrize("format", [None, "keep"])
def test_the_format_is_kept(photos: Any, format: str | None) -> None:
    source = photo.decode(photos.jpeg(quality=70))
    assert photo.converted(source, format, None) is source


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_a_quality_is_asked_for(photos: Any, format: str) -> None:
    options = {"subsampling": 1, "progressive": True} if format == "JPEG" else {}
    source = photo.decode(photos.file(photos.pixels(200, 300), format, quality=80, **options))
    files = [photo.encode(photo.converted(source, None, quality)) for quality in (10, 50, 90)]
    assert sorted(map(len, files)) == list(map(len, files))
    if format == "JPEG":
        again = opened(files[1])
        assert isinstance(again, JpegImagePlugin.JpegImageFile)
        expected = opened(photos.jpeg(quality=50))
        assert again.quantization == expected.quantization  # type: ignore[attr-defined]
        assert JpegImagePlugin.get_sampling(again) == 1
        assert again.info.get("progressive")


def test_a_quality_is_nothing_to_what_has_no_loss(photos: Any) -> None:
    for format, options in LOSSLESS.items():
        source = photo.decode(photos.file(photos.pixels(), format, **options))
        assert photo.converted(source, None, 30) is source
    made = photo.encode(photo.converted(source, "webp", 30))
    assert photo.decode(made).coding["lossless"] is False


@pytest.mark.parametrize(("format", "quality"), [("gif", None), ("", 5), (None, 0), (None, 101)])
def test_what_cannot_be_asked_for(photos: Any, format: str | None, quality: int | None) -> None:
    with pytest.raises(ValueError, match="expected"):
        photo.converted(photo.Photo(photos.pixels()), format, quality)


def test_a_profile_of_greys_stays_with_greys(photos: Any) -> None:
    profile = ICC[:16] + b"GRAY" + ICC[20:]
    source = photo.Photo(rgb(grey_of(photos.pixels())), grey=True, icc=profile)
    assert photo.decode(photo.encode(source)).icc == profile
    assert photo.decode(photo.encode(photo.converted(source, "webp", None))).icc is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_photo_in_colour_is_what_its_profile_says(dtype: type) -> None:
    """64 of 255 in linear greys is 137 in sRGB."""
    linear = b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0100)
    icc = profile(b"GRAY", b"XYZ ", kTRC=linear)
    unit = np.iinfo(dtype).max // 255
    pixels = np.full((16, 16, 3), 64 * unit, dtype)
    alpha = np.full((16, 16), 200 * unit, dtype)
    source = photo.decode(photo.encode(photo.Photo(pixels, alpha, grey=True, icc=icc)))
    assert (source.icc, source.grey) == (icc, True)
    same = photo.decode(photo.encode(photo.converted(source, "png", None)))
    np.testing.assert_array_equal(same.pixels, pixels)
    # A TIFF of 16 bits with alpha has no greys, either.
    for format in ("webp", "tiff") if dtype == np.uint16 else ("webp",):
        again = photo.decode(photo.encode(photo.converted(source, format, None)))
        assert again.icc is None
        level = again.pixels.astype(float) / np.iinfo(again.pixels.dtype).max * 255
        np.testing.assert_allclose(level, 137, atol=1.5)


def test_a_profile_of_greys_makes_no_colours_grey(photos: Any) -> None:
    icc = profile(b"GRAY", b"XYZ ", kTRC=b"curv" + bytes(4) + struct.pack(">IH", 1, 0x0100))
    made = photo.Photo(photos.pixels(), icc=icc, format="PNG")
    again = photo.decode(photo.encode(made))
    np.testing.assert_array_equal(again.pixels, made.pixels)
    assert again.icc is None


@pytest.mark.parametrize(
    ("primaries", "transfer", "icc", "refused"),
    [
        (1, 13, None, False),
        (1, 1, None, False),
        (9, 16, None, True),
        (9, 18, None, True),
        (12, 13, None, True),
        (9, 16, ICC, False),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_that_only_a_png_tells_of_stay_in_a_png(
    photos: Any, primaries: int, transfer: int, icc: bytes | None, refused: bool, dtype: type
) -> None:
    chunks = [(b"cICP", bytes([primaries, transfer, 0, 1]))]
    made = photo.Photo(photos.pixels(dtype=dtype), icc=icc, coding={"chunks": chunks})
    source = photo.decode(photo.encode(made))
    assert photo.decode(photo.encode(photo.named(source, "a.png"))).coding["chunks"] == chunks
    for change in (
        lambda: photo.named(source, "a.tif"),
        lambda: photo.converted(source, "jpeg", None),
    ):
        if refused:
            with pytest.raises(PhotoError, match="PNG of wide gamut without an ICC profile"):
                change()
        else:
            assert photo.encode(change())


# === What is damaged ===


def attempt(data: bytes) -> None:
    """Decode and code again whatever this is: PhotoError is the only way out."""
    with contextlib.suppress(PhotoError):
        assert photo.encode(photo.decode(data))


@settings(max_examples=150)
@given(
    start=st.sampled_from(
        [
            b"",
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\x40\0\0\0WEBPVP8 ",
            b"II*\0\x08\0\0\0",
            b"BM",
        ]
    ),
    rest=st.binary(max_size=200),
)
def test_random_bytes(start: bytes, rest: bytes) -> None:
    attempt(start + rest)


@settings(max_examples=200)
@given(data=st.data(), name=st.sampled_from([*CODED, "PNG of 16 bits"]))
def test_damaged_files(photos: Any, data: st.DataObject, name: str) -> None:
    if name == "PNG of 16 bits":
        made = photo.Photo(photos.pixels(12, 16, dtype=np.uint16), exif=EXIF, icc=ICC[:200])
        file = bytearray(photo.encode(made))
    else:
        file = bytearray(photos.file(photos.pixels(12, 16), name.split()[0], **CODED[name]))
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    attempt(bytes(file))


def test_decoders_keep_quiet(
    photos: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """libtiff, libjpeg, libpng and Pillow would all have something to say."""
    logging.getLogger().setLevel(logging.WARNING)
    files = [
        photos.file(photos.pixels(), "TIFF", compression=kind) for kind in ("jpeg", "tiff_lzw")
    ]
    files += [photos.jpeg(), photos.file(photos.pixels(), "PNG")]
    files.append(photo.encode(photo.Photo(photos.pixels(dtype=np.uint16))))
    rng = np.random.default_rng(0)
    for file, _ in itertools.product(files, range(40)):
        damaged = np.frombuffer(file, np.uint8).copy()
        damaged[rng.integers(8, len(file), 5)] = rng.integers(0, 256, 5)
        attempt(damaged.tobytes())
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# === Bits, and the pairs' pictures ===


def test_16_bits_become_8_by_rounding() -> None:
    wide = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1).repeat(3, axis=2)
    expected = np.rint(wide / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(photo.to_uint8(wide), expected)
    assert photo.to_uint8(expected) is expected


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=st.integers(0, 9))
def test_lossless_coding_is_lossless(photos: Any, size: tuple[int, int], seed: int) -> None:
    pixels = photos.pixels(*size, seed=seed)
    decoded = photo.decode_lossless(memoryview(photo.encode_lossless(pixels)))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, pixels)


@pytest.mark.parametrize("data", [b"", b"RIFF", b"nothing at all"])
def test_a_damaged_picture_of_the_pairs(data: bytes) -> None:
    with pytest.raises(PhotoError, match="is damaged"):
        photo.decode_lossless(data)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_decoded_and_encoded_by_bands(photos: Any, format: str) -> None:
    pixels = photos.pixels(1500, 2000, dtype=np.uint16)
    data = photo.encode(photo.Photo(pixels, format=format))

    def peak(work: Callable[[], Any]) -> tuple[float, Any]:
        tracemalloc.start()
        try:
            result = work()
            return tracemalloc.get_traced_memory()[1] / pixels.nbytes, result
        finally:
            tracemalloc.stop()

    decoding, whole = peak(lambda: photo.decode(data))
    encoding, _ = peak(lambda: photo.encode(whole))
    assert max(decoding, encoding) < 1.3  # the result itself, and no other copy
    np.testing.assert_array_equal(whole.pixels, pixels)
