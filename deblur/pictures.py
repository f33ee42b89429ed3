"""Pixels alone: as the pairs hold them, coded without loss, and as networks give them."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from deblur.errors import PhotoError

MOST_SIDE_PX = 16_383
"""The longest side that can be coded: WebP's."""


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


def of_unit(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 of float32 in [0, 1], rounded; what is beyond is clipped."""
    rounded: np.ndarray = np.rint(pixels * 255).clip(0, 255).astype(np.uint8)
    return rounded


def jpeg(picture: np.ndarray, quality: int, phase_px: Sequence[int]) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB as saved by JPEG with 4:2:0.

    Args:
        picture: (H, W, 3) uint8 RGB.
        quality: 1 to 100.
        phase_px: how far into a block of 16 pixels the picture begins, down and across.
    """
    top, left = phase_px
    padded = cv2.copyMakeBorder(picture, top, 0, left, 0, cv2.BORDER_REFLECT_101)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(padded, cv2.COLOR_RGB2BGR), options)
    decoded = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(decoded[top:, left:])
