"""PNG: 16 bits a sample, which Pillow reads as 8 and does not write in colour, and the chunks to keep."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from deblur import bands, heif
from deblur.errors import PhotoError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks about colours and by the author. Some programs hide EXIF, XMP and profile in texts.
_COLOURS = (b"cHRM", b"cICP", b"gAMA", b"sRGB")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_RAW = (b"exif", b"APP1", b"xmp", b"icc", b"icm")
_NO_TEXTS = (b"XML:com.adobe.xmp", *(b"Raw profile type " + name for name in _RAW))


def depth(data: bytes) -> int:
    """Return the bits a sample, from the header; 0 if it is no PNG."""
    return data[24] if data.startswith(_SIGNATURE) and len(data) > 24 else 0


def kept_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks, by name and body, that stay with the photo as they are.

    Raises:
        PhotoError: where checksums or a missing end say that the pixels are not what they were.
            Pillow looks at neither. It takes a twentieth of the decoding.
    """
    kept, view, position = [], memoryview(data), len(_SIGNATURE)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4]):
            # Without those whose names are small, a photo is whole.
            if not name[:1].islower():
                raise PhotoError("the PNG is damaged: a checksum is wrong")
        elif name in _COLOURS or name in _TEXTS:
            body = data[position + 8 : end]
            if not body.startswith(_NO_TEXTS):
                kept.append((name, body))
        elif name == b"IEND":
            return kept
        position = end + 4
    raise PhotoError("the PNG is damaged: its end is missing")


def wide_gamut(chunks: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether the chunks say that colours are not nearly those of sRGB."""
    return any(
        name == b"cICP" and len(body) == 4 and heif.wide_gamut(*body[:2]) for name, body in chunks
    )


def read(image: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Return (pixels, alpha, grey) of an opened PNG, by a decoder that gives 8 bits at a time."""
    kind, alpha = data[25], None
    if kind == 4:
        # Grey and alpha of 16 bits are stored just as four samples of 8: say that in the header.
        header = b"IHDR" + data[16:24] + b"\x08\x06" + data[26:29]
        patched = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
        image.load()  # for its metadata, and to refuse what is damaged
        with Image.open(io.BytesIO(patched), formats=("PNG",)) as bytewise:
            both = bands.array(bytewise).view(">u2").astype(np.uint16)
        image.close()
        return np.repeat(both[..., :1], 3, axis=2), np.ascontiguousarray(both[..., 1]), True
    if kind == 0:
        image.load()
        grey = np.asarray(image).astype(np.uint16)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    else:
        pixels, alpha = bands.of_16_bits(_halves(image, data))
    if alpha is None and (key := image.info.get("transparency")) is not None:
        alpha = np.empty(pixels.shape[:2], np.uint16)
        for part in bands.slices(len(pixels)):
            alpha[part] = np.where((pixels[part] == key).all(axis=2), 0, 65535)
    return pixels, alpha, kind == 0


def _halves(image: Image.Image, data: bytes) -> Iterator[Image.Image]:
    yield image
    with Image.open(io.BytesIO(data), formats=("PNG",)) as low:
        # Read as if the lower byte came last, the upper byte is what Pillow leaves out.
        low.tile = [tile._replace(args=f"{low.mode};16L") for tile in low.tile]
        yield low


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
    buffer = io.BytesIO(_SIGNATURE)
    buffer.seek(0, io.SEEK_END)
    for name, data in itertools.chain(chunks, _coded(samples), [(b"IEND", b"")]):
        buffer.write(struct.pack(">I", len(data)) + name)
        buffer.write(data)
        buffer.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(name))))
    return buffer.getvalue()


def _coded(samples: np.ndarray) -> Iterator[tuple[bytes, bytes]]:
    """Yield the samples as chunks, some rows at a time."""
    step = 2 * samples.shape[2]
    # Level 1 is as small as 6 to half a percent: the lower bytes are noise, which nothing shrinks.
    coder = zlib.compressobj(1)
    for part in bands.slices(len(samples)):
        rows = samples[part].astype(">u2").view(np.uint8).reshape(part.stop - part.start, -1)
        # Each row begins with its filter, 1: the difference to the left.
        filtered = np.ones((len(rows), 1 + rows.shape[1]), np.uint8)
        filtered[:, 1:] = rows
        filtered[:, 1 + step :] -= rows[:, :-step]
        if data := coder.compress(filtered.data):
            yield b"IDAT", data
    yield b"IDAT", coder.flush()
