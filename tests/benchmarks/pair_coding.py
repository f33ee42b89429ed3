"""Bytes and milliseconds a pair of lossless codings: which one the Parquet of the pairs holds.

    python tests/benchmarks/pair_coding.py PHOTOS

Pairs are 256x256 centre crops and their `cv2.blur(crop, (14, 14))`, one thread. The smallest of
three decoding runs counts.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

PHOTOS = 60
Coder = tuple[Callable[[np.ndarray], bytes], Callable[[bytes], np.ndarray]]


def opencv(extension: str, *parameters: int) -> Coder:
    """Return OpenCV's coder of a format."""
    return (
        lambda pixels: cv2.imencode(extension, pixels, parameters)[1].tobytes(),
        lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR),
    )


def webp(quality: int, method: int) -> Coder:
    """Return lossless WebP at an effort."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., ::-1]).save(
            buffer, "WEBP", lossless=True, quality=quality, method=method
        )
        return buffer.getvalue()

    return encode, lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def zstd(level: int) -> Coder:
    """Return zstd of the differences of neighbours."""
    codec = pa.Codec("zstd", compression_level=level)

    def encode(pixels: np.ndarray) -> bytes:
        steps = np.diff(pixels.astype(np.int16), axis=1, prepend=0).astype(np.uint8)
        return codec.compress(steps.tobytes()).to_pybytes()

    def decode(data: bytes) -> np.ndarray:
        steps = np.frombuffer(codec.decompress(data, 256 * 256 * 3), np.uint8)
        return np.cumsum(steps.reshape(256, 256, 3), axis=1, dtype=np.uint8)

    return encode, decode


LEVEL = (cv2.IMWRITE_PNG_COMPRESSION,)
FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
CODERS: dict[str, Coder] = {
    "PNG, OpenCV's default": opencv(".png"),
    "PNG, level 1, up": opencv(".png", *LEVEL, 1, *FILTER),
    "PNG, level 3, up": opencv(".png", *LEVEL, 3, *FILTER),
    "WebP, effort 0": webp(0, 0),
    "WebP, effort 1": webp(20, 1),
    "WebP, effort 3": webp(50, 3),
    "zstd 1 of differences": zstd(1),
    "JPEG 2000": opencv(".jp2", cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000),
}  # fmt: skip


def main() -> None:
    cv2.setNumThreads(1)
    paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
    pairs = []
    for path in paths[:: max(len(paths) // PHOTOS, 1)]:
        photo = cv2.imread(str(path))
        if photo is not None and min(photo.shape[:2]) >= 256:
            top, left = (photo.shape[0] - 256) // 2, (photo.shape[1] - 256) // 2
            sharp = photo[top : top + 256, left : left + 256].copy()
            pairs.append((sharp, cv2.blur(sharp, (14, 14))))
    for name, (encode, decode) in CODERS.items():
        started = time.perf_counter()
        coded = [(encode(sharp), encode(blurred)) for sharp, blurred in pairs]
        encoding = time.perf_counter() - started
        decoding = []
        for _ in range(3):
            started = time.perf_counter()
            decoded = [(decode(sharp), decode(blurred)) for sharp, blurred in coded]
            decoding.append(time.perf_counter() - started)
        assert all(
            (a == b).all()
            for done, pair in zip(decoded, pairs, strict=True)
            for a, b in zip(done, pair, strict=True)
        )
        kilobytes = sum(len(sharp) + len(blurred) for sharp, blurred in coded) / len(pairs) / 1e3
        encode_ms, decode_ms = (1e3 * seconds / len(pairs) for seconds in (encoding, min(decoding)))
        print(
            f"{name:24} {kilobytes:6.1f} kB a pair, coded in {encode_ms:5.1f} ms, decoded in {decode_ms:5.2f} ms"
        )


if __name__ == "__main__":
    main()
