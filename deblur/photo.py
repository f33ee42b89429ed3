"""Bytes <-> Photo: pixels, alpha, depth, orientation, EXIF, ICC profile, format.

Pillow reads and writes whatever has 8 bits, since it refuses truncated files (OpenCV fills the rest with grey and says
nothing) and gives EXIF, ICC profile and quantisation tables; its JPEG pixels equal OpenCV's. OpenCV reads and writes
PNGs of 16 bits, which Pillow cuts to 8.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, UnidentifiedImageError

from deblur.errors import PhotoError

# A header that claims more is refused before its pixels are allocated: 500 megapixels of 8-bit RGB are 1.5 GB.
MAX_MEGAPIXELS = 500

# Pillow's own guard is a warning; ours above is an error. Its other warnings speak of tags that we pass on unread.
Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS: Mapping[str, str] = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
_READABLE = {*FORMATS.values(), "MPO"}
_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEFAULT_JPEG_QUALITY = 95  # for photos whose source has no JPEG tables to keep


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
                f"pixels={pixels.shape} {pixels.dtype} vs the photo's {self.pixels.shape} {self.pixels.dtype}"
            )
        return replace(self, pixels=pixels)


def decode(data: bytes) -> Photo:
    """Decode a photo and turn it upright.

    Raises:
        PhotoError: with a reason that a person can read, for all that is not one whole, readable photo.
    """
    if not data:
        raise PhotoError("the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _decode(image, data)
    except PhotoError:
        raise
    except UnidentifiedImageError:
        raise PhotoError("not a photo in a known format") from None
    except MemoryError:
        raise PhotoError("not enough memory to decode it") from None
    except Exception as error:  # the boundary of one photo: decoders of broken files raise whatever they like
        raise PhotoError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _decode(image: Image.Image, data: bytes) -> Photo:
    if image.format not in _READABLE:
        raise PhotoError(f"format {image.format} is not supported")
    megapixels = image.width * image.height / 1e6
    if megapixels > MAX_MEGAPIXELS:
        raise PhotoError(f"{image.width}x{image.height} is over the limit of {MAX_MEGAPIXELS} megapixels")
    # A camera's MPO is a JPEG with a preview behind it; in all other formats a second frame is content.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise PhotoError(f"has {frames} frames; only single photos are restored")

    exif, orientation = _upright_exif(image.info.get("exif"))
    icc = image.info.get("icc_profile") or None
    coding: dict[str, Any] = {}
    if dpi := image.info.get("dpi"):
        coding["dpi"] = tuple(float(value) for value in dpi)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        sampling = JpegImagePlugin.get_sampling(image)
        tables = image.quantization
        if image.mode != "CMYK" and tables:
            coding |= {"qtables": [tables[index] for index in sorted(tables)], "subsampling": max(sampling, 0)}
        coding["progressive"] = bool(image.info.get("progressive"))
    if image.format == "WEBP":
        coding["lossless"] = data[12:16] == b"VP8L"

    if _png_depth(data) == 16:
        pixels, alpha, grey = _pixels_of_16_bits(data)
    else:
        image.load()
        if image.format == "TIFF":
            orientation = 1  # Pillow has turned it by now
        if image.mode == "CMYK":
            image, icc = _from_cmyk(image, icc), None
        pixels, alpha, grey = _pixels_of_8_bits(image)
    return Photo(
        pixels=_turn(pixels, orientation),
        alpha=None if alpha is None else _turn(alpha, orientation),
        grey=grey,
        format="JPEG" if image.format == "MPO" else str(image.format or "JPEG"),
        exif=exif,
        icc=icc,
        coding=coding,
    )


def _pixels_of_8_bits(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None, bool]:
    mode = image.mode
    if mode.startswith(("I", "F")):
        raise PhotoError(f"pixels of type {mode} are not supported")
    if "A" in mode or "a" in mode or "transparency" in image.info:
        grey = mode in {"LA", "La", "L"}
        whole = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(whole[..., :3]), np.ascontiguousarray(whole[..., 3]), grey
    grey = mode in {"L", "1"}
    return np.asarray(image if mode == "RGB" else image.convert("RGB")), None, grey


def _from_cmyk(image: Image.Image, icc: bytes | None) -> Image.Image:
    """To sRGB through the embedded profile, where there is one: without it, inks come out as garish colours."""
    converted: Image.Image | None = None
    if icc:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:
            converted = None
    converted = converted or image.convert("RGB")
    converted.format = "JPEG" if image.format == "MPO" else image.format
    return converted


def _png_depth(data: bytes) -> int:
    """Bits a sample, from the header; 0 if it is no PNG."""
    return data[24] if data.startswith(_PNG_SIGNATURE) and len(data) > 24 else 0


def _pixels_of_16_bits(data: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # OpenCV reads a truncated PNG without a word
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if whole is None:
        raise PhotoError("cannot be decoded: broken 16-bit PNG")
    if whole.ndim == 2:
        return np.repeat(whole[..., None], 3, axis=2), None, True
    alpha = np.ascontiguousarray(whole[..., 3]) if whole.shape[2] == 4 else None
    return np.ascontiguousarray(whole[..., 2::-1]), alpha, False


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (CIPA DC-008, 4.6.5.1)."""
    if orientation in {2, 7}:
        pixels = pixels[:, ::-1]
    elif orientation in {4, 5}:
        pixels = pixels[::-1]
    turns = {3: 2, 5: 3, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def _upright_exif(exif: bytes | None) -> tuple[bytes | None, int]:
    """Return the block with its orientation set to 1, and the orientation that it had.

    The value is changed in place: writing the block anew would move the offsets that maker notes rely on.
    """
    if not exif:
        return None, 1
    start = 6 if exif.startswith(b"Exif\0\0") else 0
    order = {b"II": "<", b"MM": ">"}.get(exif[start : start + 2])
    if order is None:
        return exif, 1
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, start + 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start + first)
        for index in range(count):
            entry = start + first + 2 + 12 * index
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _ORIENTATION and kind == 3:
                (orientation,) = struct.unpack_from(f"{order}H", exif, entry + 8)
                patched = bytearray(exif)
                struct.pack_into(f"{order}H", patched, entry + 8, 1)
                return bytes(patched), orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        pass  # a damaged block is passed on as it is
    return exif, 1


def encode(photo: Photo) -> bytes:
    """Encode a photo in its own format, with its metadata, coded as its source was.

    Raises:
        PhotoError: if the format cannot hold this photo.
    """
    pixels: np.ndarray = photo.pixels[..., 0] if photo.grey else photo.pixels
    if pixels.dtype == np.uint16:
        return _encode_16_bits(photo, pixels)
    if photo.alpha is not None and photo.format in {"JPEG", "BMP"}:
        raise PhotoError(f"{photo.format} cannot hold transparency")
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    options: dict[str, Any] = {"exif": photo.exif, "icc_profile": photo.icc, **photo.coding}
    if photo.format == "JPEG" and "qtables" not in options:
        options["quality"] = _DEFAULT_JPEG_QUALITY
    if photo.format == "PNG":
        options["compress_level"] = 3  # half the time of the default 6 for some 3 % more bytes
    if photo.format == "WEBP" and not options.get("lossless"):
        options["quality"] = _DEFAULT_JPEG_QUALITY
    if photo.format == "TIFF":
        options["compression"] = "tiff_lzw"
    buffer = io.BytesIO()
    try:
        Image.fromarray(pixels).save(
            buffer, photo.format, **{name: value for name, value in options.items() if value is not None}
        )
    except (OSError, ValueError) as error:
        raise PhotoError(f"cannot be encoded as {photo.format}: {error}") from error
    return buffer.getvalue()


def _encode_16_bits(photo: Photo, pixels: np.ndarray) -> bytes:
    if photo.format != "PNG":
        raise PhotoError(f"{photo.format} of 16 bits cannot be written")
    if photo.grey and photo.alpha is not None:
        pixels = photo.pixels
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    if pixels.ndim == 3:
        pixels = pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    kinds, blocks = [], []
    for kind, block in ((cv2.IMAGE_METADATA_EXIF, photo.exif), (cv2.IMAGE_METADATA_ICCP, photo.icc)):
        if block:
            kinds.append(kind)
            blocks.append(np.frombuffer(block.removeprefix(b"Exif\0\0"), np.uint8))
    done, data = cv2.imencodeWithMetadata(".png", np.ascontiguousarray(pixels), kinds, blocks)
    if not done:
        raise PhotoError("cannot be encoded as PNG of 16 bits")
    return bytes(data)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8; 16 bits are rounded to the nearest of 8."""
    if pixels.dtype == np.uint8:
        return pixels
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def encode_lossless(pixels: np.ndarray) -> bytes:
    """Code (H, W, 3) uint8 RGB without loss, as the Parquet of the pairs holds it: WebP, effort 0.

    Chosen by tests/benchmarks/pair_coding.py on 60 pairs of 256x256 (kB a pair, ms to code, ms to decode):
    WebP 128, 8.5, 2.1; the best PNG 168, 10.0, 2.4; PNG as OpenCV has it 199, 4.8, 2.3; zstd of differences 186, 1.4, 0.6,
    but opaque to every viewer.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()


def decode_lossless(data: bytes | memoryview) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of what `encode_lossless` made."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise PhotoError("a coded picture of the pairs is damaged")
    return pixels
