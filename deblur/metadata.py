"""What a file holds besides its pixels: format, orientation, EXIF, XMP, profile, how it is coded.

It is passed on as it is, but for what turning the pixels upright makes untrue.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin

# How files begin, also those of formats that we cannot read.
_BEGINNINGS = {
    rb"\xff\xd8": "JPEG", rb"\x89PNG": "PNG", rb"RIFF....WEBP": "WEBP", rb"II\*\0|MM\0\*": "TIFF",
    rb"BM": "BMP", rb"GIF8": "GIF", rb"....ftyp(he|mif1|msf1)": "HEIF", rb"....ftypavi": "AVIF",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL", rb"\0\0\0\x0cjP  ": "JPEG 2000",
}  # fmt: skip
_DEFAULT_QUALITY = 95  # for photos whose source has no JPEG tables to keep
_ORIENTATION, _XMP = 274, 700
# A TIFF's tags that are not about its layout: description, make, model, software, date, artist,
# copyright, XMP.
_TIFF_TAGS = (270, 271, 272, 305, 306, 315, 33432, _XMP)
_PREDICTOR = {317: 2}  # differences of neighbours, without which LZW makes photos larger
# XMP that speaks of what cameras append to a JPEG: gain maps, motion. As those go, so must it.
_XMP_OF_APPENDICES = b"ns.google.com/photos"


def format_of(data: bytes) -> str | None:
    """Return the name of the format that a file begins like."""
    for beginning, name in _BEGINNINGS.items():
        if re.match(beginning, data, re.DOTALL):
            return name
    return None


def colours_of_inks(image: Image.Image) -> Image.Image:
    """Return CMYK as sRGB through the embedded profile, if any: without it, inks look garish."""
    if icc := image.info.get("icc_profile"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            target = ImageCms.createProfile("sRGB")
            if converted := ImageCms.profileToProfile(image, source, target, outputMode="RGB"):
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile, or one of other colours: as if there were none
    return image.convert("RGB")


# === Upright ===


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF orientation 1 to 8 (CIPA DC-008, 4.6.5.1)."""
    if orientation in {2, 7}:
        pixels = pixels[:, ::-1]
    elif orientation in {4, 5}:
        pixels = pixels[::-1]
    turns = {3: 2, 5: 3, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.ascontiguousarray(np.rot90(pixels, turns))


def upright_exif(exif: bytes | None) -> tuple[bytes | None, int]:
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


def upright_xmp(xmp: bytes | None, orientation: int) -> bytes | None:
    """Return the XMP with the orientation that the EXIF block has after turning."""
    if not xmp or _XMP_OF_APPENDICES in xmp:
        return None
    if orientation == 1:
        return xmp
    return re.sub(rb'(tiff:Orientation(?:=["\']|>))[2-8]', rb"\g<1>1", xmp)


# === Coded as its source ===


def coding(image: Image.Image, data: bytes) -> dict[str, Any]:
    """Return the save options that code a photo as this one is coded."""
    options: dict[str, Any] = {}
    dpi = [float(value) for value in image.info.get("dpi", ())]
    if len(dpi) == 2 and all(math.isfinite(value) and 1 <= value < 65535 for value in dpi):
        options["dpi"] = tuple(dpi)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        options["progressive"] = bool(image.info.get("progressive"))
        if comment := image.info.get("comment"):
            options["comment"] = comment
        tables = image.quantization
        if image.mode != "CMYK" and tables:
            options["qtables"] = [list(tables[index]) for index in sorted(tables)]
            options["subsampling"] = max(JpegImagePlugin.get_sampling(image), 0)
    if image.format == "WEBP":
        options["lossless"] = _is_lossless_webp(data)
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        options["tiffinfo"] = _PREDICTOR | {tag: tags[tag] for tag in _TIFF_TAGS if tag in tags}
    return options


def _is_lossless_webp(data: bytes) -> bool:
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        if name in {b"VP8 ", b"VP8L"}:
            return bool(name == b"VP8L")
        position += 8 + length + length % 2
    return False


def save_options(
    format: str, exif: bytes | None, icc: bytes | None, coding: Mapping[str, Any]
) -> dict[str, Any]:
    """Return Pillow's options to save a photo of 8 bits with all that is known about it."""
    options: dict[str, Any] = {"exif": exif, "icc_profile": icc, **coding}
    if format == "JPEG" and "qtables" not in options:
        options["quality"] = _DEFAULT_QUALITY
    if format == "PNG":
        options["compress_level"] = 3  # half the time of the default 6 for some 3 % more bytes
        if xmp := options.pop("xmp", None):
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    if format == "WEBP" and not options.get("lossless"):
        options["quality"] = _DEFAULT_QUALITY
    if format == "TIFF":
        options["compression"] = "tiff_lzw"
        if "tiffinfo" not in options:
            options["tiffinfo"] = _tiff_tags(exif, options.get("xmp"))
    return {name: value for name, value in options.items() if value is not None}


def _tiff_tags(exif: bytes | None, xmp: bytes | None) -> dict[int, Any]:
    """Return the tags of a TIFF that was a photo of another format.

    Of its EXIF they are those of the first directory: together with compression, Pillow fails to
    write the others (exposure, GPS).
    """
    block = Image.Exif()
    if exif:
        block.load(exif)
    tags = {tag: block[tag] for tag in _TIFF_TAGS if isinstance(block.get(tag), str)}
    return _PREDICTOR | tags | ({_XMP: xmp} if xmp else {})
