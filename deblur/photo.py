"""Bytes <-> Photo: pixels, alpha, depth, orientation, EXIF, ICC profile, format.

Pillow does it all, since it refuses truncated files (OpenCV fills the rest with grey and says
nothing) and gives EXIF, ICC profile and quantisation tables; its JPEG pixels equal OpenCV's. What
it lacks are 16 bits: it reads them as 8, and writes none in colour. HEIF comes with pillow-heif,
if that is installed. Damage that still decodes shows where there are checksums alone: png16.py
looks at a PNG's; JPEG, WebP, AVIF, HEIF, BMP and uncompressed TIFF have none.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError, _imaging

from deblur import bands, heif, metadata, png16, tiff, webp
from deblur import exif as exif_block
from deblur.bands import to_uint8 as to_uint8
from deblur.errors import PhotoError
from deblur.pictures import decode_lossless as decode_lossless
from deblur.pictures import encode_lossless as encode_lossless

# A header that claims more is refused before its pixels are allocated: 500 megapixels of 8-bit RGB
# are 1.5 GB, and decoding holds some 3.5 GB for a moment.
MAX_MEGAPIXELS = 500

# Pillow's own guard is a warning; ours above is an error. Its other warnings and its log speak of
# tags that we pass on unread, and libtiff would write straight to the terminal. Its symbols are
# found through Pillow's own library, wherever that was built (not on Windows, where it is static).
Image.MAX_IMAGE_PIXELS = None
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # of a profile, too: those with tables are over 1 MB
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

FORMATS: Mapping[str, str] = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "JPEG",
    ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
    ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF",
}  # fmt: skip
_EXTENSIONS = {FORMATS[extension]: extension for extension in reversed([*FORMATS])}
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
_OF_16_BITS = frozenset({"PNG", "TIFF"})
_WITHOUT_ALPHA = frozenset({"JPEG", "BMP"})


@dataclass(frozen=True)
class Photo:
    """One photo, upright.

    Attributes:
        pixels: (H, W, 3) uint8 or uint16, RGB. A grey photo has three equal channels.
        alpha: (H, W) of the same type, or None.
        grey: whether the file has one colour channel, and so will the output.
        format: Pillow's name of the format: JPEG, PNG, WEBP, TIFF, BMP, AVIF, HEIF.
        exif: the EXIF block as read, but for its orientation, which is 1, and what follows from it.
        icc: the ICC profile as read.
        coding: what the encoder needs to code as the source was coded.
        hidden: what the file has where alpha is 0; `pixels` has been filled there from around.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    format: str = "PNG"
    exif: bytes | None = None
    icc: bytes | None = None
    coding: Mapping[str, Any] = field(default_factory=dict)
    hidden: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Width in pixels, as displayed."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Height in pixels, as displayed."""
        return int(self.pixels.shape[0])

    def with_pixels(self, pixels: np.ndarray) -> Photo:
        """Return the same photo with other pixels of the same shape and type."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            found, expected = (f"{each.shape} {each.dtype}" for each in (pixels, self.pixels))
            raise ValueError(f"pixels={found} vs the photo's {expected}")
        return replace(self, pixels=pixels)

    def as_stored(self) -> Photo:
        """Return the photo with the pixels that its file has, or will have, where alpha is 0."""
        if self.hidden is None or self.alpha is None:
            return self
        pixels = bands.with_hidden(self.pixels, self.alpha, self.hidden)
        return replace(self, pixels=pixels, hidden=None)


# === Decoding ===


def decode(data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> Photo:
    """Decode a photo and turn it upright.

    Raises:
        PhotoError: with a readable reason, for all that is not one photo, is cut off or is seen to
            be damaged, and for one of more megapixels, before its pixels are allocated.
    """
    if not data:
        raise PhotoError("the file is empty")
    format = metadata.format_of(data)
    if format == "HEIF":
        heif.register()
    formats = ("HEIF",) if format == "HEIF" else _READABLE
    if format == "WEBP" and (facts := webp.header(data)):
        _bound(*facts[:2], max_megapixels)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            _bound(image.width, image.height, max_megapixels)
            return _decode(image, data)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(_unidentified(format)) from None
    except MemoryError:
        raise PhotoError("not enough memory to decode it") from None
    except Exception as error:  # the boundary of one photo: decoders raise whatever they like
        raise PhotoError(f"cannot be decoded: {_one_line(error)}") from error


def _bound(width: int, height: int, megapixels: float) -> None:
    if width * height > megapixels * 1e6:
        raise PhotoError(f"{width}x{height} is over the limit of {megapixels:g} megapixels")


def _unidentified(format: str | None) -> str:
    if format:
        if format == "TIFF":
            return "the TIFF is damaged, or of a kind that is not supported"
        damaged = format in {*_READABLE, "HEIF"}
        return f"the {format} is damaged" if damaged else f"format {format} is not supported"
    return f"not a photo in a known format ({', '.join(sorted(set(FORMATS.values())))})"


def _one_line(error: BaseException) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    if line.startswith(("image file is truncated", "Truncated File Read")):
        return "the file is truncated"
    return "its data are damaged" if line.startswith("decoder error") else line


def _decode(image: Image.Image, data: bytes) -> Photo:
    _refuse(image)
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    size = image.size
    chunks = png16.kept_chunks(data) if kind == "PNG" else []
    pixels, alpha, grey = _samples(image, data)
    # Only now: a PNG may have its EXIF behind its pixels.
    block, orientation = metadata.upright(image, data, size)
    coding = metadata.coding(image, data, orientation, block)
    image.close()  # its pixels, before there is another copy
    turns = 1 if kind in {"TIFF", "HEIF"} else orientation  # the decoder has turned these
    pixels = bands.turn(pixels, turns)
    alpha = None if alpha is None else bands.turn(alpha, turns)
    hidden = None if alpha is None else bands.fill_hidden(pixels, alpha)
    return Photo(
        pixels=pixels,
        alpha=alpha,
        grey=grey or coding.get("chroma") == 400,
        format=kind,
        exif=block,
        # The pixels of inks are sRGB by now.
        icc=None if image.mode == "CMYK" else image.info.get("icc_profile") or None,
        coding=coding | ({"chunks": chunks} if chunks else {}),
        hidden=hidden,
    )


def _samples(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    depth = png16.depth(data)
    if depth == 16:
        return png16.read(image, data)
    if image.format == "TIFF" and tiff.bits(image) == 16:
        return tiff.read(image, data)
    image.load()
    return bands.of_8_bits(image, depth)


def _refuse(image: Image.Image) -> None:
    """Raise PhotoError for what the header shows to be no single photo that we can keep."""
    if image.format == "TIFF":
        tiff.refuse(image)
    elif (frames := metadata.frames(image)) > 1:
        raise PhotoError(f"has {frames} frames; only single photos are restored")
    if image.mode not in bands.MODES and not image.mode.startswith("I;16"):
        raise PhotoError(f"pixels of type {image.mode} are not supported")


# === Encoding ===


def named(photo: Photo, key: str) -> Photo:
    """Return the photo in the format that the key's extension stands for: a name tells the truth.

    The coding of its old format is dropped; PhotoError if that alone says what the colours are. A
    photo that the new format cannot hold is left for `encode` to refuse. Where the extension is
    unknown, nothing changes.
    """
    return _in_format(photo, FORMATS.get(os.path.splitext(key)[1].lower(), photo.format))


def converted(photo: Photo, format: str | None, quality: int | None) -> Photo:
    """Return the photo in the format asked for, such as "jpeg"; None or "keep" is its own.

    16 bits become 8 where the format asked for holds no more. A quality, 1 to 100, is for formats
    with loss: not for PNG, TIFF and BMP, nor for a WebP that is lossless.

    Raises:
        ValueError: for an unknown format or a quality out of bounds.
        PhotoError: as `named` does.
    """
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"quality={quality}, expected 1 to 100")
    if format is not None and format != "keep":
        name = FORMATS.get(f".{format}".lower())
        if name is None:
            known = ", ".join(sorted({extension[1:] for extension in FORMATS}))
            raise ValueError(f"format={format!r}, expected one of keep, {known}")
        photo = _in_format(photo, name)
        if photo.pixels.dtype == np.uint16 and name not in _OF_16_BITS:
            photo = photo.as_stored()  # while it is the file's alpha that says where
            alpha = None if photo.alpha is None else to_uint8(photo.alpha)
            photo = replace(photo, pixels=to_uint8(photo.pixels), alpha=alpha)
    lossless = photo.format not in metadata.DEFAULT_QUALITY or photo.coding.get("lossless")
    if quality is None or lossless:
        return photo
    coding = {name: value for name, value in photo.coding.items() if name != "qtables"}
    return replace(photo, coding=coding | {"quality": quality})


def _in_format(photo: Photo, format: str) -> Photo:
    if format == photo.format:
        return photo
    if not photo.icc and png16.wide_gamut(photo.coding.get("chunks", ())):
        raise PhotoError(f"PNG of wide gamut without an ICC profile cannot become {format}")
    kept = {name: photo.coding[name] for name in metadata.PORTABLE if name in photo.coding}
    return replace(photo, format=format, coding=kept)


def extension(photo: Photo) -> str:
    """Return the extension that tells the truth about the photo, such as ".jpg"."""
    return _EXTENSIONS[photo.format]


def encode(photo: Photo) -> bytes:
    """Encode a photo in its own format, with its metadata, coded as its source was.

    Raises:
        PhotoError: if the format cannot hold this photo.
    """
    photo = photo.as_stored()
    alpha = photo.alpha
    if alpha is not None and photo.format in _WITHOUT_ALPHA:
        if (alpha < np.iinfo(alpha.dtype).max).any():
            raise PhotoError(f"{photo.format} cannot hold transparency")
        alpha = None
    if photo.pixels.dtype == np.uint16 and photo.format not in _OF_16_BITS:
        raise PhotoError(f"{photo.format} of 16 bits cannot be written")
    if photo.format == "HEIF":
        heif.register()
    grey = photo.grey and photo.format != "WEBP"
    if photo.format == "TIFF" and alpha is not None and alpha.dtype == np.uint16:
        grey = False  # Pillow would not read it again
    try:
        icc, samples = photo.icc, bands.mean(photo.pixels)[..., None] if grey else photo.pixels
        if icc and icc[16:20] == b"GRAY" and not grey:
            # A profile of greys says nothing about three colours.
            samples = bands.colours_of_greys(samples, icc) if photo.grey else samples
            icc = None
        if alpha is not None:
            samples = np.dstack([samples, alpha])
        block = exif_block.with_thumbnail_of(photo.exif, photo.pixels)
        kept = {name: photo.coding.get(name) for name in metadata.PORTABLE}
        if photo.format == "TIFF":
            return tiff.write(samples, block=block, icc=icc, **kept)
        if samples.dtype == np.uint16:
            chunks = photo.coding.get("chunks", ())
            return png16.write(samples, exif=block, icc=icc, further=chunks, **kept)
        coding = {**photo.coding, "chroma": 400} if grey else photo.coding
        options = metadata.save_options(photo.format, block, icc, coding)
        return bands.save(samples, photo.format, options)
    except Exception as error:  # metadata that does not fit raises whatever Pillow likes
        raise PhotoError(f"cannot be encoded as {photo.format}: {_one_line(error)}") from error
