"""What a file holds besides its pixels: format, XMP, comments, how it is coded.

It is passed on as it is, but for what turning or restoring the pixels makes untrue.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any
from xml.parsers import expat

from PIL import Image, JpegImagePlugin, PngImagePlugin

from deblur import exif as exif_block
from deblur import heif, tiff, webp

# How files begin, also those of formats that we cannot read.
_BEGINNINGS = {
    rb"\xff\xd8": "JPEG", rb"\x89PNG": "PNG", rb"RIFF....WEBP": "WEBP", rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"BM": "BMP", rb"GIF8": "GIF", rb"....ftyp(avi[fs]|m[is]f1.{4,40}avif)": "AVIF",
    rb"....ftyp(he|mif1|msf1)": "HEIF",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
}  # fmt: skip
# Where there is no quality of the source to keep: for the eye no loss. The scales differ.
DEFAULT_QUALITY: Mapping[str, int] = {"JPEG": 95, "WEBP": 95, "AVIF": 85, "HEIF": 70}
# In a third of the usual time or less, for 3 % more bytes: libaom's speed, x265's preset.
_AVIF_SPEED = 8
_HEIF_ENCODER = {"preset": "ultrafast"}
# What a change of format leaves true.
PORTABLE = ("dpi", "xmp")
# Namespaces of XMP that speaks of what cameras append to a JPEG (motion, depth, gain maps), or of
# XMP that did not fit into one segment. As those go, so must it. A panorama has no such appendix.
_XMP_OF_APPENDICES = re.compile(
    rb"ns\.google\.com/photos/(?!1\.0/panorama/)|hdr-gain-map|HDRGainMap|ns\.adobe\.com/xmp/note/"
)
_XMP_NAMESPACE = re.compile(rb"""xmlns:([\w.-]+)\s*=\s*["']([^"']*)["']""")
_XMP_TAG = re.compile(rb"<(/?)([\w.-]+):[^<>]*?(/?)>")
_XMP_MOST_IN_JPEG = 65_533 - len(b"http://ns.adobe.com/xap/1.0/\0")
_XMP_THUMBNAILS = re.compile(rb"<xmp:Thumbnails\b.*?</xmp:Thumbnails>", re.DOTALL)
_XMP_SIZES = (
    (rb"tiff:ImageWidth", rb"tiff:ImageLength"),
    (rb"exif:PixelXDimension", rb"exif:PixelYDimension"),
)
_PHOTOSHOP = b"Photoshop 3.0\0"
_PHOTOSHOP_THUMBNAILS = (0x0409, 0x040C)


def format_of(data: bytes) -> str | None:
    """Return the name of the format that a file begins like."""
    for beginning, name in _BEGINNINGS.items():
        if re.match(beginning, data, re.DOTALL):
            return name
    return None


def frames(image: Image.Image) -> int:
    """Return how many pictures a file holds; previews and gain maps behind a JPEG do not count."""
    count = int(getattr(image, "n_frames", 1))
    if image.format == "MPO":
        index: Any = getattr(image, "mpinfo", {})
        kinds = [str(entry["Attribute"]["MPType"]) for entry in index.get(0xB002, ())]
        return count if any(kind.startswith("Multi-Frame") for kind in kinds) else 1
    return count


def upright_xmp(xmp: bytes | None, orientation: int) -> bytes | None:
    """Return the XMP with the orientation and size after turning, and without old thumbnails."""
    if xmp and _XMP_OF_APPENDICES.search(xmp):
        xmp = _without_appendices(xmp)
    if not xmp:
        return None
    if b"<xmp:Thumbnails" in xmp:
        xmp = _XMP_THUMBNAILS.sub(b"", xmp)
    if orientation == 1:
        return xmp
    xmp = re.sub(rb'(tiff:Orientation(?:=["\']|>))[2-8]', rb"\g<1>1", xmp)
    if orientation >= 5:
        for names in _XMP_SIZES:
            patterns = [rb'(%s(?:=["\']|>))(\d+)' % name for name in names]
            found = [re.search(pattern, xmp) for pattern in patterns]
            for pattern, other in zip(patterns, found[::-1], strict=True):
                if other:
                    xmp = re.sub(pattern, rb"\g<1>" + other[2], xmp)
    return xmp


def _without_appendices(xmp: bytes) -> bytes | None:
    """Return the packet without what speaks of appendices; None if it cannot be told from the rest."""
    spaces = _XMP_NAMESPACE.findall(xmp)
    gone = {prefix for prefix, name in spaces if _XMP_OF_APPENDICES.search(name)}
    prefixes = b"|".join(map(re.escape, gone))
    attributes = rb"""\s+(?:xmlns:(?:%s)|(?:%s):[\w.-]+)\s*=\s*(?:"[^"]*"|'[^']*')"""
    attribute = re.compile(attributes % (prefixes, prefixes))
    kept, end, depth = [], 0, 0  # the depth within an element that goes
    for tag in _XMP_TAG.finditer(xmp):
        closing, prefix, empty = tag.groups()
        if not depth:
            kept += [xmp[end : tag.start()], b"" if prefix in gone else attribute.sub(b"", tag[0])]
        if depth or prefix in gone:
            depth += -1 if closing else 0 if empty else 1
        end = tag.end()
    left = b"".join([*kept, xmp[end:]])
    try:
        # An element or attribute that was missed would now lack its namespace.
        expat.ParserCreate(namespace_separator=" ").Parse(left.strip(b"\0"), True)
    except expat.ExpatError:
        return None
    return None if _XMP_OF_APPENDICES.search(left) else left


def upright(image: Image.Image, data: bytes, size: tuple[int, int]) -> tuple[bytes | None, int]:
    """Return the EXIF block of a loaded image as turning it makes it, and its orientation.

    `size` is what the image had before it was loaded.
    """
    orientation = None
    block = image.info.get("exif") or _raw(image, "exif") or _raw(image, "APP1")
    if image.format == "TIFF":
        block = tiff.exif_of(data)
        tags: Any = getattr(image, "tag_v2", {})
        size = tags.get(256, size[0]), tags.get(257, size[1])  # Pillow's is that after turning
    elif image.format == "HEIF":  # turned by now, and the block says so
        orientation = int(image.info.get("original_orientation") or 1)
        size = size if orientation < 5 else size[::-1]
    elif image.format == "AVIF":
        # Pillow writes the block anew, if the file has its orientation elsewhere: take the old one.
        decoder: Any = getattr(image, "_decoder", None)
        *_, block, orientation, _ = decoder.get_info()
    if not isinstance(block, bytes) or block.startswith(b"http"):  # XMP is called APP1, too
        block = None
    return exif_block.upright(block, *size, orientation)


def _xmp(image: Image.Image) -> bytes | None:
    tags: Any = getattr(image, "tag_v2", {})
    xmp = tags.get(700) if image.format == "TIFF" else image.info.get("xmp") or _raw(image, "xmp")
    return xmp if isinstance(xmp, bytes) else None


def _raw(image: Image.Image, name: str) -> bytes | None:
    """Return what a text of a PNG has in hexadecimal digits, below its own name and length."""
    text = image.info.get(f"Raw profile type {name}")
    lines = text.strip().split("\n") if isinstance(text, str) and image.format == "PNG" else []
    try:
        return bytes.fromhex("".join(lines[2:])) or None
    except ValueError:
        return None


# === Coded as its source ===


def coding(
    image: Image.Image, data: bytes, orientation: int = 1, block: bytes | None = None
) -> dict[str, Any]:
    """Return what the encoder needs to code a photo, after turning, as this one is coded.

    `block` is its EXIF block, upright by now, which may be all that states the resolution.
    """
    options: dict[str, Any] = {}
    stated = [*_dpi(image)][:: 1 if orientation < 5 else -1]
    dpi = [float(value) for value in stated or exif_block.dpi(block) or ()]
    if len(dpi) == 2 and all(math.isfinite(value) and 1 <= value < 65535 for value in dpi):
        options["dpi"] = tuple(dpi)
    if xmp := upright_xmp(_xmp(image), orientation):
        options["xmp"] = xmp
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        options |= _coding_of_jpeg(image, orientation)
    if image.format == "WEBP" and (facts := webp.header(data)):
        options["lossless"] = facts[2]
    if image.format in {"AVIF", "HEIF"}:
        options["chroma"] = heif.chroma(data)
        if options["chroma"] == 422 and orientation >= 5:
            options["chroma"] = 444
    return options


def _dpi(image: Image.Image) -> Sequence[float]:
    """Return the resolution that is stated outside of EXIF; Pillow makes up one for JPEG and TIFF."""
    stated = True
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        stated = image.info.get("jfif_unit") in {1, 2}
    elif image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        stated = 282 in tags and 283 in tags
    return image.info.get("dpi", ()) if stated else ()


def _coding_of_jpeg(image: JpegImagePlugin.JpegImageFile, orientation: int) -> dict[str, Any]:
    options: dict[str, Any] = {"progressive": bool(image.info.get("progressive"))}
    if comment := image.info.get("comment"):
        options["comment"] = comment
    segments = [bytes(body) for name, body in image.applist if name == "APP13"]
    resources = [body[len(_PHOTOSHOP) :] for body in segments if body.startswith(_PHOTOSHOP)]
    if extra := _photoshop(b"".join(resources)):
        options["extra"] = extra
    if image.mode != "CMYK" and image.quantization:
        tables = image.quantization
        options["qtables"] = [list(tables[index]) for index in sorted(tables)]
        options["subsampling"] = _subsampling(image.layer, orientation)
    return options


def _subsampling(layers: Sequence[tuple[int, int, int, int]], orientation: int) -> int:
    """Return Pillow's number of the subsampling after turning.

    Lying 4:2:2 would be 4:4:0 upright, which Pillow does not write, nor 4:1:1: these become 4:4:4.
    """
    factors = [layer[1:3] for layer in layers]
    if len(factors) != 3 or factors[1] != factors[2] or 0 in factors[1]:
        return 0
    across, down = (factors[0][axis] / factors[1][axis] for axis in (0, 1))
    if orientation >= 5:
        across, down = down, across
    return {(2.0, 1.0): 1, (2.0, 2.0): 2}.get((across, down), 0)


def _photoshop(resources: bytes) -> bytes:
    """Return segments with Photoshop's resources, IPTC among them, but for their thumbnails."""
    kept = b""
    position = 0
    while resources[position : position + 4] == b"8BIM":
        name_end = position + 6 + (resources[position + 6 : position + 7] or b"\0")[0] // 2 * 2 + 2
        if name_end + 4 > len(resources):
            break
        (kind,) = struct.unpack_from(">H", resources, position + 4)
        (size,) = struct.unpack_from(">I", resources, name_end)
        end = name_end + 4 + size + size % 2
        if kind not in _PHOTOSHOP_THUMBNAILS:
            kept += resources[position:end]
        position = end
    room = 65_533 - len(_PHOTOSHOP)
    bodies = [_PHOTOSHOP + kept[at : at + room] for at in range(0, len(kept), room)]
    return b"".join(b"\xff\xed" + struct.pack(">H", 2 + len(body)) + body for body in bodies)


def save_options(
    format: str, exif: bytes | None, icc: bytes | None, coding: Mapping[str, Any]
) -> dict[str, Any]:
    """Return Pillow's options to save a photo of 8 bits with all that is known about it."""
    options: dict[str, Any] = {"exif": exif, "icc_profile": icc, **coding}
    if format == "JPEG" and len(options.get("xmp") or b"") > _XMP_MOST_IN_JPEG:
        del options["xmp"]  # better without it than no photo
    chroma = options.pop("chroma", 444)
    if format in DEFAULT_QUALITY and "qtables" not in options and not options.get("lossless"):
        options.setdefault("quality", DEFAULT_QUALITY[format])
        if format == "JPEG":
            options.setdefault("subsampling", 0 if options["quality"] >= 90 else 2)
    if format == "PNG":
        options["compress_level"] = 3  # half the time of the default 6 for some 3 % more bytes
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for name, body in options.pop("chunks", ()):
            options["pnginfo"].add(name, body)
        if xmp := options.pop("xmp", None):
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    elif format in {"WEBP", "AVIF", "HEIF"}:
        options["exact"] = options.get("lossless")  # under alpha 0, too; only WebP knows of it
        if "dpi" in options:
            options["exif"] = exif_block.with_dpi(exif, options["dpi"])
        if format == "AVIF":
            # Its orientation is a box of its own, and Pillow would write the whole block anew.
            options["exif"] = exif_block.without_orientation(options["exif"])
            options["subsampling"] = ":".join(str(chroma))
            options["speed"] = _AVIF_SPEED
        elif format == "HEIF":
            options["enc_params"] = _HEIF_ENCODER
            options["chroma"] = None if chroma == 400 else chroma
    return {name: value for name, value in options.items() if value is not None}
