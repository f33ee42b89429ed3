from __future__ import annotations

import struct
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from deblur import exif, photo, tiff
from deblur.directories import BEGINNINGS, entries

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

POINTER = 34665


def crafted(claims: int, size: int) -> bytes:
    """Return a TIFF of 4x4 in which so many tags claim the same bytes, nearly the whole file."""
    tags = [
        (256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 4), (279, 4, 1, 16),
        *((40_000 + at, 7, size, 24) for at in range(claims)),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = BEGINNINGS["<"] + struct.pack("<I16xH", 24, len(tags))
    return head + directory + bytes(4 + size)


def test_a_small_file_cannot_claim_gigabytes(photos: Any) -> None:
    data = crafted(1000, 2_000_000)
    with pytest.raises(struct.error, match="more bytes than there are"):
        list(entries(data, "<", 24))
    png = photo.encode(photo.Photo(photos.pixels(dtype=np.uint16), exif=exif.PREFIX + data))
    for file in (data, png):
        tracemalloc.start()
        try:
            photo.encode(photo.decode(file))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 10 * len(data)


def test_values_as_large_as_the_file_are_read() -> None:
    assert [entry.tag for entry in entries(crafted(1, 5000), "<", 24)][-1] == 40_000


def test_directories_that_lead_to_themselves() -> None:
    """The first pointer of each kind is followed, and that not for ever."""
    pointers = struct.pack("<HHII", POINTER, 4, 1, 8) * 5000
    file = BEGINNINGS["<"] + struct.pack("<IH", 8, 5000) + pointers + bytes(4)
    start = time.monotonic()
    assert tiff.exif_of(file) is None
    assert time.monotonic() - start < 2


def test_many_values_are_laid_out_in_no_time() -> None:
    laid = [(tag, 7, 200, bytes([tag % 256]) * 200) for tag in range(20_000)]
    start = time.monotonic()
    block = exif.laid("<", laid)[len(exif.PREFIX) :]
    assert time.monotonic() - start < 2
    assert [(e.tag, e.kind, e.count, e.value) for e in entries(block, "<", 8)] == laid
