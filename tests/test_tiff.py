from __future__ import annotations

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from deblur import exif, photo, tiff
from deblur.directories import BEGINNINGS, lay
from deblur.errors import PhotoError

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def made(samples: np.ndarray, **options: Any) -> bytes:
    """Return a TIFF by another library."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["colour", "grey", "alpha"])
def test_16_bits_come_and_go(
    photos: Any, byteorder: str, compression: str | None, kind: str
) -> None:
    pixels = photos.pixels(dtype=np.uint16)
    alpha = np.ascontiguousarray(photos.pixels(seed=1, dtype=np.uint16)[..., 0])
    samples = {"colour": pixels, "grey": pixels[..., 0], "alpha": np.dstack([pixels, alpha])}[kind]
    options: dict[str, Any] = {"photometric": "minisblack" if kind == "grey" else "rgb"}
    if kind == "alpha":
        options["extrasamples"] = ["unassalpha"]
    options |= {"byteorder": byteorder, "compression": compression, "predictor": bool(compression)}
    source = photo.decode(made(np.ascontiguousarray(samples), **options))
    np.testing.assert_array_equal(source.pixels, rgb(samples) if kind == "grey" else pixels)
    assert source.grey == (kind == "grey")
    assert (source.alpha is not None) == (kind == "alpha")
    data = photo.encode(source)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), samples)
    again = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    order = [0] if kind == "grey" else [2, 1, 0, 3][: samples.shape[2]]
    np.testing.assert_array_equal(np.atleast_3d(again)[..., order], np.atleast_3d(samples))


def test_greys_of_16_bits_where_white_is_zero(photos: Any) -> None:
    grey = np.ascontiguousarray(photos.pixels(dtype=np.uint16)[..., 0])
    source = photo.decode(made(grey, photometric="miniswhite"))
    np.testing.assert_array_equal(source.pixels, rgb(65535 - grey))


def test_colours_of_16_bits_that_were_multiplied_by_alpha(photos: Any) -> None:
    pixels = photos.pixels(dtype=np.uint16)
    alpha = np.full(pixels.shape[:2], 30_000, np.uint16)
    alpha[0] = 0
    product = np.rint(pixels * (alpha[..., None] / 65535)).astype(np.uint16)
    source = photo.decode(
        made(np.dstack([product, alpha]), photometric="rgb", extrasamples=["assocalpha"])
    )
    np.testing.assert_array_equal(source.alpha, alpha)
    np.testing.assert_allclose(source.pixels[1:].astype(int), pixels[1:], atol=2)
    assert not source.as_stored().pixels[0].any()


def test_grey_with_alpha_of_16_bits_is_written_in_colour(photos: Any) -> None:
    pixels = rgb(photos.pixels(dtype=np.uint16)[..., 0])
    source = photo.Photo(pixels, pixels[..., 1].copy(), grey=True, format="TIFF")
    again = photo.decode(photo.encode(source))
    np.testing.assert_array_equal(again.pixels, pixels)
    np.testing.assert_array_equal(again.alpha, pixels[..., 0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3)])
def test_8_bits_are_written_in_strips(
    photos: Any, channels: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff, "_STRIP_BYTES", 2000)
    samples = np.dstack([photos.pixels(*size), photos.pixels(*size, seed=1)])[..., :channels]
    image = Image.open(io.BytesIO(tiff.write(samples, dpi=(300.0, 240.5))))
    np.testing.assert_array_equal(np.atleast_3d(np.asarray(image)), samples)
    assert image.info["dpi"] == (300, 240.5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_one_order_throughout_where_no_tag_is_left_to_copy(
    photos: Any, byteorder: str, dtype: type
) -> None:
    pixels = photos.pixels(dtype=dtype)
    options: dict[str, Any] = {"byteorder": byteorder, "metadata": None, "software": False}
    source = photo.decode(
        made(pixels, photometric="rgb", extratags=[(274, 3, 1, 1, True)], **options)
    )
    assert source.exif is not None
    file = photo.encode(source)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(file)), pixels)
    np.testing.assert_array_equal(photo.decode(file).pixels, pixels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_block_about_nothing_but_the_layout(photos: Any, order: str) -> None:
    """As cameras without a name write it into a JPEG: orientation, resolution and how colours lie."""
    laid = [
        (274, 3, 1, struct.pack(f"{order}H", 1)), *exif.resolution(order, (72.0, 72.0)),
        (531, 3, 1, struct.pack(f"{order}H", 1)),
    ]  # fmt: skip
    block = exif.PREFIX + BEGINNINGS[order] + struct.pack(f"{order}I", 8) + lay(order, laid, 8)
    source = photo.decode(photos.jpeg(exif=block))
    again = photo.decode(photo.encode(photo.named(source, "a.tif")))
    np.testing.assert_array_equal(again.pixels, source.pixels)
    assert again.coding["dpi"] == (72, 72)


def test_a_dng_saved_as_jpeg_becomes_no_raw_file(photos: Any) -> None:
    tags = Image.Exif()
    tags[50706], tags[315] = b"\1\4\0\0", "Ann"
    source = photo.decode(photos.jpeg(exif=tags.tobytes()))
    again = photo.decode(photo.encode(photo.named(source, "a.tif")))
    np.testing.assert_array_equal(again.pixels, source.pixels)


def test_a_tiff_without_a_resolution_gets_none(photos: Any) -> None:
    """Pillow would have it that this is one dot an inch."""
    data = photos.file(photos.pixels(), "TIFF")
    assert Image.open(io.BytesIO(data)).info["dpi"] == (1, 1)
    source = photo.decode(data)
    assert "dpi" not in source.coding
    assert 282 not in Image.open(io.BytesIO(photo.encode(source))).tag_v2  # type: ignore[attr-defined]


def test_tiffs_that_would_lose_something_are_refused(photos: Any) -> None:
    wide = photos.pixels(dtype=np.uint16)
    lab = io.BytesIO()
    Image.new("LAB", (4, 4)).save(lab, "TIFF")
    for data, reason in [
        (lab.getvalue(), "pixels of type LAB are not supported"),
        (photos.file(photos.pixels(), "TIFF", tiffinfo={254: 1}), "raw file is not supported"),
        (photos.file(np.zeros((4, 4), np.float32), "TIFF"), "TIFF of 32 bits is not supported"),
        (made(np.dstack([wide, wide[..., :1]]), photometric="separated"), "16 bits in CMYK"),
        (
            made(wide.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
            "in separate planes",
        ),
        (
            made(wide[..., :2].copy(), photometric="minisblack", extrasamples=["unassalpha"]),
            "damaged, or of a kind that is not supported",
        ),
        (made(wide[..., 0].astype(np.int16), photometric="minisblack"), "signed numbers"),
        (made(wide[..., 0].astype(np.int8), photometric="minisblack"), "signed numbers"),
    ]:
        with pytest.raises(PhotoError, match=reason):
            photo.decode(data)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("photometric", "channels", "extra"),
    [
        ("rgb", 4, ["unspecified"]),
        ("rgb", 5, ["unspecified"] * 2),
        ("rgb", 5, ["unassalpha", "unspecified"]),
        ("minisblack", 2, ["unspecified"]),
        ("separated", 5, ["unspecified"]),
    ],
)
def test_a_channel_that_would_get_lost_is_no_silent_loss(
    photos: Any, dtype: type, compression: str | None, photometric: str, channels: int, extra: Any
) -> None:
    """Infrared, masks, spot colours: Pillow gives the photo without them."""
    samples = np.dstack([photos.pixels(dtype=dtype), photos.pixels(dtype=dtype)])[..., :channels]
    options = {"photometric": photometric, "extrasamples": extra, "compression": compression}
    data = made(np.ascontiguousarray(samples), **options, planarconfig="contig", metadata=None)
    reason = "channels besides colours and alpha"
    if dtype == np.uint16 and (photometric, channels) != ("rgb", 4):
        reason = "damaged, or of a kind that is not supported"  # nor does it know of these
    with pytest.raises(PhotoError, match=reason):
        photo.decode(data)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_of_colours_and_those_of_grey_and_alpha(
    photos: Any, compression: str | None
) -> None:
    """Of two planes that are compressed, Pillow takes the first for alpha as well."""
    pixels = photos.pixels()
    options: dict[str, Any] = {"planarconfig": "separate", "compression": compression}
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(
        photo.decode(made(planes, photometric="rgb", **options)).pixels, pixels
    )
    options |= {"photometric": "minisblack", "extrasamples": ["unassalpha"]}
    with pytest.raises(PhotoError, match="grey and alpha in separate planes"):
        photo.decode(made(planes[:2], **options))


def test_inks_of_a_tiff(photos: Any) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photos.pixels()).convert("CMYK").save(buffer, "TIFF", compression="tiff_lzw")
    source = photo.decode(buffer.getvalue())
    np.testing.assert_allclose(source.pixels.astype(int), photos.pixels(), atol=3)
    assert photo.decode(photo.encode(source)).format == "TIFF"


WHITE, PRIMARIES = (3127, 10000, 3290, 10000), (64, 100, 33, 100, 21, 100, 71, 100, 15, 100, 6, 100)


@pytest.mark.parametrize(
    ("photometric", "dtype"),
    [
        ("rgb", np.uint8),
        ("rgb", np.uint16),
        ("minisblack", np.uint8),
        ("minisblack", np.uint16),
        ("separated", np.uint8),
    ],
)
def test_what_red_green_and_blue_are_is_kept_of_rgb(
    photos: Any, photometric: str, dtype: type
) -> None:
    """The white point, the primaries, and the light of 256 levels; not of greys and inks."""
    channels = {"rgb": 3, "minisblack": 1, "separated": 4}[photometric]
    samples = photos.pixels(dtype=dtype)[..., [0, 1, 2, 0]][..., :channels].squeeze()
    levels = [2 ** (8 * samples.itemsize)] * (3 if channels >= 3 else 1)
    light = tuple(at % 65536 for level in levels for at in range(level))
    tags = [
        (301, "H", len(light), light, True), (318, 5, 2, WHITE, True), (319, 5, 6, PRIMARIES, True),
    ]  # fmt: skip
    source = photo.decode(
        made(np.ascontiguousarray(samples), photometric=photometric, extratags=tags, metadata=None)
    )
    with tifffile.TiffFile(io.BytesIO(photo.encode(source))) as again:
        read = {tag.code: tag.value for tag in again.pages[0].tags}
    found = {code: tuple(np.ravel(read[code])) for code in (301, 318, 319) if code in read}
    expected: dict[int, Any] = {318: WHITE, 319: PRIMARIES} if photometric == "rgb" else {}
    if (photometric, dtype) == ("rgb", np.uint8):
        expected[301] = light
    assert found == expected
    assert photo.encode(photo.converted(source, "jpeg", None))  # which has 64 kB for all of it


def test_nothing_is_said_about_inks_that_are_gone(photos: Any) -> None:
    inks = np.asarray(Image.fromarray(photos.pixels()).convert("CMYK"))
    names = "Cyan\0Magenta\0Yellow\0Black"
    tags = [
        (332, "H", 1, 1, True), (333, "s", 0, names, True), (334, "H", 1, 4, True),
        (336, "H", 2, (0, 255), True), (342, "H", 6, (0, 255) * 3, True), (315, "s", 0, "Ann", True),
    ]  # fmt: skip
    source = photo.decode(made(inks, photometric="separated", extratags=tags, metadata=None))
    again: Any = Image.open(io.BytesIO(photo.encode(source)))
    assert again.tag_v2[315] == "Ann"
    assert not {*range(332, 338), 342} & {*again.tag_v2}
