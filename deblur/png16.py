"""PNGs of 16 bits a sample, which Pillow reads as 8 and does not write in colour."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from deblur import bands

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def depth(data: bytes) -> int:
    """Return the bits a sample, from the header; 0 if it is no PNG."""
    return data[24] if data.startswith(_SIGNATURE) and len(data) > 24 else 0


def read(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Return (pixels, alpha, grey) of an opened PNG, by a decoder that gives 8 bits at a time."""
    kind = data[25]
    if kind == 4:
        # Grey and alpha of 16 bits are stored just as four samples of 8: say that in the header.
        header = b"IHDR" + data[16:24] + b"\x08\x06" + data[26:29]
        patched = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        image.load()  # for its metadata, and to refuse what is damaged
        with Image.open(io.BytesIO(patched), formats=("PNG",)) as bytewise:
            both = bands.array(bytewise).view(">u2").astype(np.uint16)
        return np.repeat(both[..., :1], 3, axis=2), np.ascontiguousarray(both[..., 1]), True
    if kind == 0:
        image.load()
        grey = np.asarray(image).astype(np.uint16)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    else:
        pixels = bands.array(image).astype(np.uint16) * np.uint16(256)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as low:
            # Read as if the lower byte came last, the upper byte is what Pillow leaves out.
            low.tile = [tile._replace(args=f"{low.mode};16L") for tile in low.tile]
            pixels |= bands.array(low)
    alpha = None
    if pixels.shape[2] == 4:
        pixels, alpha = np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3])
    elif (key := image.info.get("transparency")) is not None:
        alpha = np.where((pixels == key).all(axis=2), 0, 65535).astype(np.uint16)
    return pixels, alpha, kind == 0


def write(
    samples: np.ndarray,
    *,
    exif: bytes | None = None,
    icc: bytes | None = None,
    xmp: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    further: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """Code (H, W, 1 to 4) uint16: one filter, one stream (RFC 2083); with `further` chunks."""
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, -1)
    filtered = np.ones((height, 1 + rows.shape[1]), np.uint8)  # 1: the difference to the left
    filtered[:, 1:] = rows
    filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if icc:
        chunks.append((b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc)))
    chunks += [chunk for chunk in further if not (icc and chunk[0] == b"sRGB")]
    if dpi:
        per_metre = (round(value / 0.0254) for value in dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    if xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))
    # Level 1 is as small as 6 to half a percent: the lower bytes are noise, which nothing shrinks.
    chunks += [(b"IDAT", zlib.compress(filtered.data, 1)), (b"IEND", b"")]
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
