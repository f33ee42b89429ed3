"""What each format keeps. The table of the README is this one: `python tests/test_formats.py`."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from deblur import photo
from deblur.errors import PhotoError

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# The same curves and a wider gamut: nothing in our code may look at it.
WIDE = ICC.replace(b"sRGB built-in", b"wide  built-in")
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description dc:rights="Ann"/></x:xmpmeta>'


@dataclass(frozen=True)
class Kept:
    """A row: yes, no (the format has none), or how well; and what must be installed for it.

    `psnr` is that of coding once more.
    """

    psnr: float
    bits: tuple[int, ...] = (8,)
    alpha: bool = True
    grey: bool = True
    exif: bool = True
    xmp: bool = True
    icc: bool = True
    dpi: str = "yes"
    quality: str = "lossless"
    needs: str = ""


LOSSLESS = float("inf")
TABLE = {
    "JPEG": Kept(40, alpha=False, quality="the source's tables and subsampling; else quality 95"),
    "PNG": Kept(LOSSLESS, bits=(8, 16)),
    "TIFF": Kept(LOSSLESS, bits=(8, 16)),
    "WebP": Kept(38, grey=False, dpi="in EXIF", quality="quality 95"),
    "WebP, lossless": Kept(LOSSLESS, grey=False, dpi="in EXIF"),
    "AVIF": Kept(38, dpi="in EXIF", quality="quality 85, the source's subsampling"),
    "HEIF": Kept(
        38,
        dpi="in EXIF",
        quality="quality 70, the source's subsampling",
        needs=" (`pip install pillow-heif`)",
    ),
    "BMP": Kept(LOSSLESS, alpha=False, exif=False, xmp=False, icc=False),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 92, "subsampling": 0},
    "WebP": {"quality": 90},
    "WebP, lossless": {"lossless": True},
    "AVIF": {"quality": 90},
    "HEIF": {"quality": 90},
}


def pillow(name: str) -> str:
    format = name.split(",")[0].upper()
    if format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    return format


def there_and_back(photos: Any, name: str, pixels: np.ndarray, **options: Any) -> tuple[Any, Any]:
    """Return the photo as Pillow made it and as it is after we have decoded and encoded it."""
    format = pillow(name)
    data = photos.file(pixels, format, **OPTIONS.get(name, {}), **options)
    source = photo.decode(data)
    made = photo.encode(source)
    image = Image.open(io.BytesIO(made))
    image.load()
    assert image.format == format
    return source, photo.decode(made)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("name", TABLE)
def test_pixels(photos: Any, name: str) -> None:
    pixels = photos.pixels(121, 163)
    source, again = there_and_back(photos, name, pixels)
    assert psnr(source.pixels, pixels) >= TABLE[name].psnr
    assert psnr(again.pixels, source.pixels) >= TABLE[name].psnr
    flat = np.full((64, 64, 3), 119, np.uint8)
    _, again = there_and_back(photos, name, flat)
    assert np.abs(again.pixels.astype(int) - flat).max() <= (0 if again.format != "AVIF" else 1)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("orientation", [3, 6])
def test_upright(photos: Any, name: str, orientation: int) -> None:
    if not TABLE[name].exif:
        return
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags.get_ifd(34665)[0xA002], tags.get_ifd(34665)[0xA003] = 64, 48
    source, again = there_and_back(photos, name, photos.pixels(48, 64), exif=tags.tobytes())
    expected = np.rot90(photos.pixels(48, 64), 2 if orientation == 3 else 3)
    for made in (source, again):
        assert made.pixels.shape == expected.shape
        assert psnr(made.pixels, expected) > 33
    read = Image.Exif()
    read.load(again.exif)
    assert read.get(0x0112, 1) == 1
    size = (read.get_ifd(34665)[0xA002], read.get_ifd(34665)[0xA003])
    assert size == (again.width, again.height)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("bits", [8, 16])
def test_depth(photos: Any, name: str, bits: int) -> None:
    pillow(name)
    pixels = photos.pixels(dtype=np.uint16 if bits == 16 else np.uint8)
    made = photo.Photo(pixels, format=name.split(",")[0].upper())
    if bits in TABLE[name].bits:
        assert photo.decode(photo.encode(made)).pixels.dtype == pixels.dtype
    else:
        with pytest.raises(PhotoError, match="of 16 bits cannot be written"):
            photo.encode(made)


@pytest.mark.parametrize("name", TABLE)
def test_alpha(photos: Any, name: str) -> None:
    pixels = np.dstack([photos.pixels(), photos.pixels(seed=1)[..., 0]])
    if TABLE[name].alpha:
        source, again = there_and_back(photos, name, pixels)
        assert psnr(source.alpha, pixels[..., 3]) > 38
        assert psnr(again.alpha, source.alpha) > 38
    else:
        made = photo.Photo(photos.pixels(), pixels[..., 3], format=pillow(name))
        with pytest.raises(PhotoError, match="cannot hold transparency"):
            photo.encode(made)


@pytest.mark.parametrize("name", TABLE)
def test_grey(photos: Any, name: str) -> None:
    grey = np.ascontiguousarray(photos.pixels()[..., 1])
    source, again = there_and_back(photos, name, grey)
    assert source.grey == again.grey == TABLE[name].grey
    spread = np.ptp(again.pixels.astype(int), axis=2).max()
    assert spread <= (0 if again.grey else 3)


@pytest.mark.parametrize("name", TABLE)
def test_exif(photos: Any, name: str) -> None:
    tags = Image.Exif()
    tags[0x010F] = "Make"
    tags.get_ifd(34665)[33434] = 0.25
    tags.get_ifd(34853)[1] = "N"
    options = {"exif": tags.tobytes()} if TABLE[name].exif else {}
    source, again = there_and_back(photos, name, photos.pixels(), **options)
    assert again.exif == source.exif
    if TABLE[name].exif:
        read = Image.Exif()
        read.load(again.exif)
        assert read[0x010F] == "Make"
        assert read.get_ifd(34665)[33434] == 0.25
        assert read.get_ifd(34853)[1] == "N"


@pytest.mark.parametrize("name", TABLE)
def test_xmp(photos: Any, name: str) -> None:
    pillow(name)
    made = photo.Photo(photos.pixels(), format=name.split(",")[0].upper(), coding={"xmp": XMP})
    again = photo.decode(photo.encode(made))
    assert again.coding.get("xmp") == (XMP if TABLE[name].xmp else None)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("grey", [False, True])
def test_icc(photos: Any, name: str, grey: bool) -> None:
    profile = WIDE[:16] + b"GRAY" + WIDE[20:] if grey else WIDE
    pixels = np.ascontiguousarray(photos.pixels()[..., 1]) if grey else photos.pixels()
    if grey and not TABLE[name].grey:
        return
    source, again = there_and_back(photos, name, pixels, icc_profile=profile)
    assert source.icc == again.icc == (profile if TABLE[name].icc else None)


@pytest.mark.parametrize("name", TABLE)
def test_dpi(photos: Any, name: str) -> None:
    pillow(name)
    format = name.split(",")[0].upper()
    made = photo.Photo(photos.pixels(), format=format, coding={"dpi": (300.0, 240.0)})
    again = photo.decode(photo.encode(made))
    if TABLE[name].dpi == "yes":
        assert again.coding["dpi"] == pytest.approx((300, 240), abs=0.1)
    else:
        read = Image.Exif()
        read.load(again.exif)
        assert (read[282], read[283], read[296]) == (300, 240, 2)


def markdown() -> str:
    """Return the table."""
    lines = [
        "| format | pixels | upright | bits | alpha | grey | EXIF | XMP | ICC profile | DPI |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in TABLE.items():
        bits = ", ".join(map(str, row.bits))
        words = (
            "yes" if value else "–" for value in (row.alpha, row.grey, row.exif, row.xmp, row.icc)
        )
        upright = "yes" if row.exif else "has no orientation"
        cells = [name + row.needs, row.quality, upright, bits, *words, row.dpi]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_readme_says_so() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert f"\n\n{markdown()}\n\n" in readme


if __name__ == "__main__":
    print(markdown())
