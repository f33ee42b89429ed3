"""Bytes <-> Photo: pixels, alpha, depth, orientation, EXIF, ICC profile, format.

Pillow does it all, since it refuses truncated files (OpenCV fills the rest with grey and says
nothing) and gives EXIF, ICC profile and quantisation tables; its JPEG pixels equal OpenCV's. What
it lacks are PNGs of 16 bits: it reads them as 8, and writes none in colour.
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

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging

from deblur import metadata, png16
from deblur.errors import PhotoError

# A header that claims more is refused before its pixels are allocated: 500 megapixels of 8-bit RGB
# are 1.5 GB, and decoding holds some 3.5 GB for a moment.
MAX_MEGAPIXELS = 500

# Pillow's own guard is a warning; ours above is an error. Its other warnings and its log speak of
# tags that we pass on unread, and libtiff would write straight to the terminal. Its symbols are
# found through Pillow's own library, wherever that was built (not on Windows, where it is static).
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)

FORMATS: Mapping[str, str] = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "JPEG",
    ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
_OPAQUE_MODES = {"1", "L", "P", "RGB", "RGBX", "YCbCr"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}


@dataclass(frozen=True)
class Photo:
    """One photo, upright.

    Attributes:
        pixels: (H, W, 3) uint8 or uint16, RGB. A grey photo has three equal channels.
        alpha: (H, W) of the same type, or None.
        grey: whether the file has one colour channel, and so will the output.
        format: Pillow's name of the format: JPEG, PNG, WEBP, TIFF, BMP.
        exif: the EXIF block as read, but for its orientation, which is 1.
        icc: the ICC profile as read.
        coding: what the encoder needs to code as the source was coded (Pillow's save options).
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    format: str = "PNG"
    exif: bytes | None = None
    icc: bytes | None = None
    coding: Mapping[str, Any] = field(default_factory=dict)

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
            raise ValueError(
                f"pixels={pixels.shape} {pixels.dtype} "
                f"vs the photo's {self.pixels.shape} {self.pixels.dtype}"
            )
        return replace(self, pixels=pixels)


# === Decoding ===


def decode(data: bytes) -> Photo:
    """Decode a photo and turn it upright.

    Raises:
        PhotoError: with a readable reason, for all that is not one whole, readable photo.
    """
    if not data:
        raise PhotoError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_READABLE) as image:
            return _decode(image, data)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError(_unidentified(data)) from None
    except MemoryError:
        raise PhotoError("not enough memory to decode it") from None
    except Exception as error:  # the boundary of one photo: decoders raise whatever they like
        raise PhotoError(f"cannot be decoded: {_one_line(error)}") from error


def _unidentified(data: bytes) -> str:
    if name := metadata.format_of(data):
        damaged = name in _READABLE
        return f"the {name} is damaged" if damaged else f"format {name} is not supported"
    return f"not a photo in a known format ({', '.join(sorted(set(FORMATS.values())))})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _decode(image: Image.Image, data: bytes) -> Photo:
    _refuse(image)
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    coding = metadata.coding(image, data)
    depth = png16.depth(data)
    if depth == 16:
        pixels, alpha, grey = png16.read(image, data)
    else:
        image.load()
        pixels, alpha, grey = _pixels_of_8_bits(image, depth)
    # Only now: a PNG may have its EXIF behind its pixels.
    exif, orientation = metadata.upright_exif(image.info.get("exif"))
    icc = image.info.get("icc_profile") or None
    if image.mode == "CMYK":
        icc = None  # the pixels are sRGB by now
    if kind == "TIFF":
        orientation = 1  # Pillow has turned it by now
    if xmp := metadata.upright_xmp(image.info.get("xmp"), orientation):
        coding["xmp"] = xmp
    if coding.get("subsampling") == 1 and orientation >= 5:
        coding["subsampling"] = 0  # 4:2:2 lying is 4:4:0 upright, which Pillow does not write
    return Photo(
        pixels=metadata.turn(pixels, orientation),
        alpha=None if alpha is None else metadata.turn(alpha, orientation),
        grey=grey,
        format=kind,
        exif=exif,
        icc=icc,
        coding=coding,
    )


def _refuse(image: Image.Image) -> None:
    """Raise PhotoError for what the header shows to be no single photo that we can keep."""
    if image.width * image.height > MAX_MEGAPIXELS * 1e6:
        size = f"{image.width}x{image.height}"
        raise PhotoError(f"{size} is over the limit of {MAX_MEGAPIXELS} megapixels")
    # A camera's MPO is a JPEG with a preview behind it; elsewhere a second frame is content.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise PhotoError(f"has {frames} frames; only single photos are restored")
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        if tags.get(254, 0) & 1 or 50706 in tags:
            # Pillow would give its preview.
            raise PhotoError("a camera's raw file is not supported")
        if (bits := max(tags.get(258, (1,)))) > 8:
            raise PhotoError(f"TIFF of {bits} bits is not supported; PNG of 16 bits is")
    known = image.mode in _OPAQUE_MODES | _ALPHA_MODES | {"CMYK"}
    if not known and not image.mode.startswith("I;16"):
        raise PhotoError(f"pixels of type {image.mode} are not supported")


def _pixels_of_8_bits(image: Image.Image, depth: int) -> tuple[np.ndarray, np.ndarray | None, bool]:
    if image.mode == "CMYK":
        return png16.by_bands(metadata.colours_of_inks(image)), None, False
    grey = image.mode in {"1", "L", "LA", "La"}
    key = image.info.get("transparency")
    if image.mode in _ALPHA_MODES or key is not None:
        if image.mode == "L" and isinstance(key, int):
            # Pillow stretches greys of 2 and 4 bits to 8, but not the grey that is transparent.
            image.info["transparency"] = key * {2: 85, 4: 17}.get(depth, 1)
        if image.mode == "La":
            image = image.convert("LA")
        whole = png16.by_bands(image.convert("RGBA"))
        return np.ascontiguousarray(whole[..., :3]), np.ascontiguousarray(whole[..., 3]), grey
    return png16.by_bands(image if image.mode == "RGB" else image.convert("RGB")), None, grey


# === Encoding ===


def named(photo: Photo, key: str) -> Photo:
    """Return the photo in the format that the key's extension stands for: a name tells the truth.

    What is particular to the coding of its old format is dropped. A photo that the new format
    cannot hold is left for `encode` to refuse. Where the extension is unknown, nothing changes.
    """
    format = FORMATS.get(os.path.splitext(key)[1].lower(), photo.format)
    if format == photo.format:
        return photo
    kept = {name: photo.coding[name] for name in ("dpi", "xmp") if name in photo.coding}
    return replace(photo, format=format, coding=kept)


def encode(photo: Photo) -> bytes:
    """Encode a photo in its own format, with its metadata, coded as its source was.

    Raises:
        PhotoError: if the format cannot hold this photo.
    """
    alpha = photo.alpha
    if alpha is not None and photo.format in {"JPEG", "BMP"}:
        if (alpha < np.iinfo(alpha.dtype).max).any():
            raise PhotoError(f"{photo.format} cannot hold transparency")
        alpha = None
    samples = _mean(photo.pixels)[..., None] if photo.grey else photo.pixels
    if alpha is not None:
        samples = np.dstack([samples, alpha])
    try:
        if samples.dtype == np.uint16:
            if photo.format != "PNG":
                raise PhotoError(f"{photo.format} of 16 bits cannot be written")
            kept = {name: photo.coding.get(name) for name in ("xmp", "dpi")}
            return png16.write(samples, exif=photo.exif, icc=photo.icc, **kept)
        return _encode_8_bits(photo, samples)
    except PhotoError:
        raise
    except Exception as error:  # metadata that does not fit raises whatever Pillow likes
        raise PhotoError(f"cannot be encoded as {photo.format}: {_one_line(error)}") from error


def _mean(pixels: np.ndarray) -> np.ndarray:
    """Return the (H, W) grey of three channels: the channel itself where all three are equal."""
    total = pixels.sum(axis=2, dtype=np.uint32)
    mean: np.ndarray = ((total + 1) // 3).astype(pixels.dtype)
    return mean


def _encode_8_bits(photo: Photo, samples: np.ndarray) -> bytes:
    options = metadata.save_options(photo.format, photo.exif, photo.icc, photo.coding)
    image = Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)
    buffer = io.BytesIO()
    try:
        image.save(buffer, photo.format, **options)
    except OSError:
        if not options.get("progressive"):
            raise
        # Pillow's buffer for a progressive JPEG is two bytes a pixel, which noise can exceed.
        buffer = io.BytesIO()
        image.save(buffer, photo.format, **options | {"progressive": False})
    return buffer.getvalue()


# === The pairs' pictures ===


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8; 16 bits are rounded to the nearest of 8."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def encode_lossless(pixels: np.ndarray) -> bytes:
    """Code (H, W, 3) uint8 RGB without loss, as the Parquet of the pairs holds it: WebP, effort 0.

    Chosen by tests/benchmarks/pair_coding.py on 60 pairs of 256x256 (kB a pair, ms to code, ms to
    decode): WebP 128, 8.5, 2.1; the best PNG 168, 10.0, 2.4; PNG as OpenCV has it 199, 4.8, 2.3;
    zstd of differences 186, 1.4, 0.6, but opaque to every viewer.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def decode_lossless(data: bytes | memoryview) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of what `encode_lossless` made."""
    try:
        pixels: np.ndarray | None = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB
        )
    except cv2.error:
        pixels = None
    if pixels is None:
        raise PhotoError("a coded picture of the pairs is damaged")
    return pixels
