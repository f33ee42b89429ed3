"""WebP: its headers."""

from __future__ import annotations

import struct

_FRAME_BYTES = 16  # of a frame's own header, before its chunks


def header(data: bytes) -> tuple[int, int, bool] | None:
    """Return (width, height, lossless) from the headers of a WebP, of the first frame if it has frames.

    Pillow allocates the canvas when it opens the file, so a guard has to look before.
    """
    size: tuple[int, int] | None = None
    position = 12
    while position + 18 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 18]
        if name == b"VP8X":
            width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
            size = width, height
        elif name == b"VP8L":
            (packed,) = struct.unpack_from("<I", body, 1)
            width, height = size or ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
            return width, height, True
        elif name == b"VP8 ":
            width, height = size or tuple(v & 0x3FFF for v in struct.unpack_from("<HH", body, 6))
            return width, height, False
        position += 8 + (_FRAME_BYTES if name == b"ANMF" else length + length % 2)
    return (*size, False) if size else None
