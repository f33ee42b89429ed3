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
import math
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, UnidentifiedImageError, _imaging

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
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP",
    ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP",
}  # fmt: skip
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
# How files begin, to say what it is that cannot be read.
_BEGINNINGS = {
    rb"\xff\xd8": "JPEG", rb"\x89PNG": "PNG", rb"RIFF....WEBP": "WEBP", rb"II\*\0|MM\0\*": "TIFF",
    rb"BM": "BMP", rb"GIF8": "GIF", rb"....ftyp(he|mif1|msf1)": "HEIF", rb"....ftypavi": "AVIF",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL", rb"\0\0\0\x0cjP  ": "JPEG 2000",
}  # fmt: skip
_OPAQUE_MODES = {"1", "L", "P", "RGB", "RGBX", "YCbCr"}
_ALPHA_MODES = {"LA", "La", "PA", "RGBA", "RGBa"}
_ORIENTATION = 0x0112
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEFAULT_QUALITY = 95  # for photos whose source has no JPEG tables to keep
# A TIFF's tags that are not about its layout: description, make, model, software, date, artist,
# copyright, XMP.
_TIFF_TAGS = (270, 271, 272, 305, 306, 315, 33432, 700)
# XMP that speaks of what cameras append to a JPEG: gain maps, motion. As those go, so must it.
_XMP_OF_APPENDICES = b"ns.google.com/photos"


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
    for beginning, name in _BEGINNINGS.items():
        if re.match(beginning, data, re.DOTALL):
            damaged = name in FORMATS.values()
            return f"the {name} is damaged" if damaged else f"format {name} is not supported"
    return f"not a photo in a known format ({', '.join(sorted(set(FORMATS.values())))})"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _decode(image: Image.Image, data: bytes) -> Photo:
    _refuse(image)
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    coding = _coding(image, data)
    depth = _png_depth(data)
    if depth == 16:
        pixels, alpha, grey = _pixels_of_16_bits(image, data)
    else:
        image.load()
        pixels, alpha, grey = _pixels_of_8_bits(image, depth)
    # Only now: a PNG may have its EXIF behind its pixels.
    exif, orientation = _upright_exif(image.info.get("exif"))
    icc = image.info.get("icc_profile") or None
    if image.mode == "CMYK":
        icc = None  # the pixels are sRGB by now
    if kind == "TIFF":
        orientation = 1  # Pillow has turned it by now
    if xmp := _upright_xmp(image.info.get("xmp"), orientation):
        coding["xmp"] = xmp
    if coding.get("subsampling") == 1 and orientation >= 5:
        coding["subsampling"] = 0  # 4:2:2 lying is 4:4:0 upright, which Pillow does not write
    return Photo(
        pixels=_turn(pixels, orientation),
        alpha=None if alpha is None else _turn(alpha, orientation),
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
            raise PhotoError(
                "a camera's raw file is not supported"
            )  # Pillow would give its preview
        if (bits := max(tags.get(258, (1,)))) > 8:
            raise PhotoError(f"TIFF of {bits} bits is not supported; PNG of 16 bits is")
    if image.mode not in _OPAQUE_MODES | _ALPHA_MODES | {"CMYK"} and not image.mode.startswith(
        "I;16"
    ):
        raise PhotoError(f"pixels of type {image.mode} are not supported")


def _coding(image: Image.Image, data: bytes) -> dict[str, Any]:
    """Return the save options that code a photo as this one is coded."""
    coding: dict[str, Any] = {}
    dpi = [float(value) for value in image.info.get("dpi", ())]
    if len(dpi) == 2 and all(math.isfinite(value) and 1 <= value < 65535 for value in dpi):
        coding["dpi"] = tuple(dpi)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        coding["progressive"] = bool(image.info.get("progressive"))
        if comment := image.info.get("comment"):
            coding["comment"] = comment
        tables = image.quantization
        if image.mode != "CMYK" and tables:
            coding["qtables"] = [list(tables[index]) for index in sorted(tables)]
            coding["subsampling"] = max(JpegImagePlugin.get_sampling(image), 0)
    if image.format == "WEBP":
        coding["lossless"] = _is_lossless_webp(data)
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        # 317, 2: differences of neighbours, without which LZW makes photos larger.
        coding["tiffinfo"] = {317: 2} | {tag: tags[tag] for tag in _TIFF_TAGS if tag in tags}
    return coding


def _pixels_of_8_bits(image: Image.Image, depth: int) -> tuple[np.ndarray, np.ndarray | None, bool]:
    if image.mode == "CMYK":
        return _array(_from_cmyk(image)), None, False
    grey = image.mode in {"1", "L", "LA", "La"}
    key = image.info.get("transparency")
    if image.mode in _ALPHA_MODES or key is not None:
        if image.mode == "L" and isinstance(key, int):
            # Pillow stretches greys of 2 and 4 bits to 8, but not the grey that is transparent.
            image.info["transparency"] = key * {2: 85, 4: 17}.get(depth, 1)
        if image.mode == "La":
            image = image.convert("LA")
        whole = _array(image.convert("RGBA"))
        return np.ascontiguousarray(whole[..., :3]), np.ascontiguousarray(whole[..., 3]), grey
    return _array(image if image.mode == "RGB" else image.convert("RGB")), None, grey


def _array(image: Image.Image) -> np.ndarray:
    """Return the pixels, by bands: a quarter of np.asarray's time and half its memory."""
    bands = len(image.getbands())
    shape = (image.height, image.width, bands) if bands > 1 else (image.height, image.width)
    pixels = np.empty(shape, np.uint8)
    for top in range(0, image.height, 64):
        bottom = min(top + 64, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _from_cmyk(image: Image.Image) -> Image.Image:
    """To sRGB through the embedded profile, if any: without it, inks come out as garish colours."""
    if icc := image.info.get("icc_profile"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            if converted := ImageCms.profileToProfile(image, source, target, outputMode="RGB"):
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one of other colours: as if there were none
    return image.convert("RGB")


def _png_depth(data: bytes) -> int:
    """Bits a sample, from the header; 0 if it is no PNG."""
    return data[24] if data.startswith(_PNG_SIGNATURE) and len(data) > 24 else 0


def _pixels_of_16_bits(
    image: Image.Image, data: bytes
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Read a PNG of 16 bits with a decoder that gives 8 at a time."""
    kind = data[25]
    if kind == 4:
        # Grey and alpha of 16 bits are stored just as four samples of 8: say that in the header.
        header = b"IHDR" + data[16:24] + b"\x08\x06" + data[26:29]
        patched = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        image.load()  # for its metadata, and to refuse what is damaged
        with Image.open(io.BytesIO(patched), formats=("PNG",)) as bytewise:
            both = _array(bytewise).view(">u2").astype(np.uint16)
        return np.repeat(both[..., :1], 3, axis=2), np.ascontiguousarray(both[..., 1]), True
    if kind == 0:
        image.load()
        grey = np.asarray(image).astype(np.uint16)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    else:
        pixels = _array(image).astype(np.uint16) * np.uint16(256)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as low:
            # Read as if the lower byte came last, the upper byte is what Pillow leaves out.
            low.tile = [tile._replace(args=f"{low.mode};16L") for tile in low.tile]
            pixels |= _array(low)
    alpha = None
    if pixels.shape[2] == 4:
        pixels, alpha = np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    elif (key := image.info.get("transparency")) is not None:
        alpha = np.where((pixels == key).all(axis=2), 0, 65535).astype(np.uint16)
    return pixels, alpha, kind == 0


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

    The value is changed in place: writing the block anew would move the offsets that maker notes
    rely on.
    """
    if not exif:
        return None, 1
    if not exif.startswith(b"Exif\0\0"):
        exif = b"Exif\0\0" + exif  # WebP has it without, and JPEG needs it
    start = 6
    order = {b"II": "<", b"MM": ">"}.get(exif[start : start + 2])
    if order is None:
        return exif, 1
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, start + 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start + first)
        for index in range(count):
            entry = start + first + 2 + 12 * index
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _ORIENTATION and kind in {3, 4}:
                value = order + {3: "H", 4: "I"}[kind]
                (orientation,) = struct.unpack_from(value, exif, entry + 8)
                patched = bytearray(exif)
                struct.pack_into(value, patched, entry + 8, 1)
                return bytes(patched), orientation if 1 <= orientation <= 8 else 1
    except struct.error:
        pass  # a damaged block is passed on as it is
    return exif, 1


def _upright_xmp(xmp: bytes | None, orientation: int) -> bytes | None:
    """Return the XMP with the orientation that the EXIF block has after turning."""
    if not xmp or _XMP_OF_APPENDICES in xmp:
        return None
    if orientation == 1:
        return xmp
    return re.sub(rb'(tiff:Orientation(?:=["\']|>))[2-8]', rb"\g<1>1", xmp)


def _is_lossless_webp(data: bytes) -> bool:
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        if name in {b"VP8 ", b"VP8L"}:
            return bool(name == b"VP8L")
        position += 8 + length + length % 2
    return False


# === Encoding ===


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
            return _encode_16_bits(photo, samples)
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
    options: dict[str, Any] = {"exif": photo.exif, "icc_profile": photo.icc, **photo.coding}
    if photo.format == "JPEG" and "qtables" not in options:
        options["quality"] = _DEFAULT_QUALITY
    if photo.format == "PNG":
        options["compress_level"] = 3  # half the time of the default 6 for some 3 % more bytes
        if xmp := options.pop("xmp", None):
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    if photo.format == "WEBP" and not options.get("lossless"):
        options["quality"] = _DEFAULT_QUALITY
    if photo.format == "TIFF":
        options["compression"] = "tiff_lzw"
    options = {name: value for name, value in options.items() if value is not None}
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


def _encode_16_bits(photo: Photo, samples: np.ndarray) -> bytes:
    """Write the PNG of 16 bits that Pillow does not write: one filter, one stream (RFC 2083)."""
    if photo.format != "PNG":
        raise PhotoError(f"{photo.format} of 16 bits cannot be written")
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.ones((height, 1 + rows.shape[1]), np.uint8)  # 1: the difference to the left
    filtered[:, 1:] = rows
    filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if photo.icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(photo.icc)))
    if dpi := photo.coding.get("dpi"):
        per_metre = (round(value / 0.0254) for value in dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if photo.exif:
        chunks.append((b"eXIf", photo.exif.removeprefix(b"Exif\0\0")))
    if xmp := photo.coding.get("xmp"):
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    # Level 1 is as small as 6 to half a percent: the lower bytes are noise, which nothing shrinks.
    chunks += [(b"IDAT", zlib.compress(filtered.data, 1)), (b"IEND", b"")]
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


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
