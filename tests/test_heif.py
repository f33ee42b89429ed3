from __future__ import annotations

import contextlib
import struct
import sys
from typing import Any

import numpy as np
import pytest

from deblur import heif, photo
from deblur.errors import PhotoError

# As photo.py asks for itself; pytest sets the filters anew for each test.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")


def av1(bits: int = 8, chroma: int = 420) -> bytes:
    flags = {8: 0, 10: 0x40, 12: 0x60}[bits] | {444: 0, 422: 8, 420: 12, 400: 28}[chroma]
    return b"av1C\x81\x00" + bytes([flags, 0])


def hevc(bits: int = 8, chroma: int = 420) -> bytes:
    body = bytearray(23)
    body[16], body[17], body[18] = {400: 0, 420: 1, 422: 2, 444: 3}[chroma], bits - 8, bits - 8
    return b"hvcC" + bytes(body)


@pytest.mark.parametrize("chroma", [400, 420, 422, 444])
@pytest.mark.parametrize("made", [av1, hevc])
def test_the_boxes_tell_of_the_chroma(made: Any, chroma: int) -> None:
    assert heif.chroma(b"..." + made(8, chroma) + b"...") == chroma


@pytest.mark.parametrize("made", [av1, hevc])
def test_an_auxiliary_image_of_greys_says_nothing_of_the_photo(made: Any) -> None:
    boxes = made(8, 400) + made(8, 422) + made(8, 400)
    meta = struct.pack(">I", 8 + len(boxes)) + b"meta" + boxes
    assert heif.chroma(b"ftyp" + meta + b"mdat" + made(10, 444)) == 422


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize(("made", "name"), [(av1, "AVIF"), (hevc, "HEIF")])
def test_more_bits_are_refused(made: Any, name: str, bits: int) -> None:
    with pytest.raises(PhotoError, match=f"{name} of {bits} bits is not supported"):
        heif.chroma(made(bits))


@pytest.mark.parametrize(
    ("primaries", "transfer", "icc", "refused"),
    [(1, 13, False, False), (2, 2, False, False), (12, 13, False, True), (9, 16, False, True),
     (1, 18, False, True), (12, 13, True, False)],
)  # fmt: skip
def test_colours_that_would_be_lost_are_refused(
    primaries: int, transfer: int, icc: bool, refused: bool
) -> None:
    data = av1() + b"colrnclx" + struct.pack(">HHHB", primaries, transfer, 1, 128)
    data += b"colrprof" if icc else b""
    if refused:
        with pytest.raises(PhotoError, match="wide gamut without an ICC profile"):
            heif.chroma(data)
    else:
        assert heif.chroma(data) == 420


def test_another_codec_is_refused() -> None:
    with pytest.raises(PhotoError, match="neither HEVC nor AV1"):
        heif.chroma(b"\0\0\0\x18ftypmif1vvcC")


def test_without_the_library_the_reason_says_what_to_do(
    photos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for made in (
        lambda: photo.decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        lambda: photo.encode(photo.Photo(photos.pixels(), format="HEIF")),
    ):
        with pytest.raises(PhotoError, match=r"pip install pillow-heif"):
            made()


@pytest.mark.parametrize("chroma", [420, 444])
def test_chroma_is_kept(photos: Any, chroma: int) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    for format, options in (
        ("HEIF", {"chroma": chroma}),
        ("AVIF", {"subsampling": ":".join(str(chroma))}),
    ):
        source = photo.decode(photos.file(photos.pixels(), format, **options))
        assert source.coding["chroma"] == chroma
        assert photo.decode(photo.encode(source)).coding["chroma"] == chroma


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_truncated_heif_is_refused(photos: Any, keep: float) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    data = photos.file(photos.pixels(100, 120), "HEIF")
    with pytest.raises(PhotoError):
        photo.decode(data[: int(keep * len(data))])


def test_damaged_heif(photos: Any) -> None:
    """PhotoError is the only way out."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    rng = np.random.default_rng(0)
    for format in ("HEIF", "AVIF"):
        file = np.frombuffer(photos.file(photos.pixels(), format), np.uint8)
        for _ in range(60):
            damaged = file.copy()
            damaged[rng.integers(8, len(file), 4)] = rng.integers(0, 256, 4)
            with contextlib.suppress(PhotoError):
                photo.encode(photo.decode(damaged.tobytes(), max_megapixels=1))
