"""Before and after, small enough for a report: a thumbnail of a photo, and its finest part as it is."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from deblur import metrics, photo

THUMBNAIL_PX, CROP_PX = 560, 360
# Pictures of one photo are at most four times this, and a third more as text in a page.
_PICTURE_BYTES = 80_000
_QUALITIES = (88, 80, 70, 55, 35, 15)
_PROFILE_BYTES = 8192  # profiles with tables, of printers, are a hundred times as large


@dataclass(frozen=True)
class Comparison:
    """One photo before and after, as JPEG files.

    Attributes:
        key: its name.
        width, height: its size in pixels.
        before, after: the whole photo, made small.
        crop_before, crop_after: a part of it at 100 %; None for photos that are shown whole.
        sharpness_before, sharpness_after: of the crops, or of the whole photo.
    """

    key: str
    width: int
    height: int
    before: bytes
    after: bytes
    crop_before: bytes | None
    crop_after: bytes | None
    sharpness_before: float
    sharpness_after: float


def compare(key: str, before: photo.Photo, after: photo.Photo) -> Comparison:
    """Make the pictures of one photo, the same ones each time.

    Raises:
        ValueError: if the two differ in size.
    """
    if before.pixels.shape != after.pixels.shape:
        raise ValueError(f"cannot compare {before.pixels.shape} with {after.pixels.shape}")
    whole = max(before.width, before.height) <= THUMBNAIL_PX
    top, left = finest(before.pixels)
    part = np.s_[top : top + CROP_PX, left : left + CROP_PX]
    crops = [each.pixels if whole else each.pixels[part] for each in (before, after)]
    sharpness = [metrics.sharpness(crop) for crop in crops]
    files = [] if whole else [_jpeg(crop, before.icc) for crop in crops]
    return Comparison(
        key,
        before.width,
        before.height,
        _jpeg(_thumbnail(before.pixels), before.icc),
        _jpeg(_thumbnail(after.pixels), after.icc),
        *(files or (None, None)),
        *sharpness,
    )


def finest(pixels: np.ndarray) -> tuple[int, int]:
    """Return top and left of the part with the strongest edges: of equal ones the first."""
    height, width = pixels.shape[:2]
    rows, columns = height - CROP_PX, width - CROP_PX
    if rows <= 0 and columns <= 0:
        return 0, 0
    small = _thumbnail(pixels)
    luma = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    edges = np.abs(cv2.Laplacian(luma, cv2.CV_32F))
    scale = small.shape[0] / height, small.shape[1] / width
    size = [
        min(side, max(1, round(CROP_PX * by))) for side, by in zip(edges.shape, scale, strict=True)
    ]
    sums = cv2.integral(edges)
    tall, wide = size
    window = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    row, column = np.unravel_index(int(window.argmax()), window.shape)
    return (
        max(0, min(rows, round(int(row) / scale[0]))),
        max(0, min(columns, round(int(column) / scale[1]))),
    )


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = THUMBNAIL_PX / max(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return photo.to_uint8(pixels)


def _jpeg(pixels: np.ndarray, icc: bytes | None) -> bytes:
    """Return a JPEG of bounded size, as good as that allows."""
    image = Image.fromarray(np.ascontiguousarray(photo.to_uint8(pixels)))
    if icc and (len(icc) > _PROFILE_BYTES or icc[16:20] != b"RGB "):
        icc = None
    data = b""
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, icc_profile=icc)
        data = buffer.getvalue()
        if len(data) <= _PICTURE_BYTES:
            break
    return data
