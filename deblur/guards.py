"""Whether an output still is its photo: colours and large shapes must be where they were.

Deblurring moves light by the width of the blur, and no further: seen through a blur that is much
stronger, a restored photo and its source are the same. Where networks fail (coloured mosaics, tints,
tiles of garbage), they are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_CELL_PX = 32

# Measured on 47 photos of 0.05 to 0.6 megapixels, 2026-11 (shift, local). What works: the Wiener
# filter after the blurs of all recipes, at most 0.015 and 0.098; the sharp originals after the same,
# clipped highlights and all, 0.036 and 0.103, and after far wider ones (box of 81 pixels, motion of
# 101), 0.001 and 0.140. What does not, as medians: one channel times 0.9, 0.050 and 0.085, times
# 1.2, 0.080 and 0.139; red and blue swapped, 0.050 and 0.267; a gamma of 1.2, 0.052 and 0.067; a
# tile of 256 pixels of noise, 0.037 and 0.389, black, 0.128 and 0.754; of 128, 0.013 and 0.294.
# A network after 108 steps of training: 0.04 to 0.23 and 0.11 to 0.56.
MAX_SHIFT = 0.04
MAX_LOCAL = 0.15


@dataclass(frozen=True)
class Difference:
    """How far two photos are apart through a strong blur, in fractions of the way black to white.

    Attributes:
        shift: of the mean of the whole photo, in the channel where it is largest.
        local: of any place and channel.
    """

    shift: float
    local: float


def strong_blur(pixels: np.ndarray) -> np.ndarray:
    """Return a thousandth of the pixels: (h, w, 3) float32 in [0, 1].

    Means over cells of about 32 x 32 pixels, averaged with their neighbours', so that what a blur
    has carried across the border of a cell weighs little. Holds nothing as large as the photo.

    Args:
        pixels: (H, W, 3) uint8 or uint16.
    """
    height, width = (max(1, round(side / _CELL_PX)) for side in pixels.shape[:2])
    cells = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    means = cells.astype(np.float32) * np.float32(1 / np.iinfo(pixels.dtype).max)
    blurred: np.ndarray = cv2.blur(means, (3, 3), borderType=cv2.BORDER_REPLICATE)
    return blurred


def difference(before: np.ndarray, after: np.ndarray) -> Difference:
    """Compare two photos, both as `strong_blur` gives them."""
    if before.shape != after.shape:
        raise ValueError(f"cannot compare {before.shape} with {after.shape}")
    apart = after - before
    return Difference(
        float(np.abs(apart.mean(axis=(0, 1))).max(initial=0)), float(np.abs(apart).max(initial=0))
    )


def objection(before: np.ndarray, after: np.ndarray) -> str | None:
    """Return why the output is none of its photo, or None; both as `strong_blur` gives them."""
    found = difference(before, after)
    if found.shift > MAX_SHIFT:
        return (
            f"the output guard found a shift of colour or brightness: {found.shift:.1%} of the range, "
            f"where {MAX_SHIFT:.0%} are allowed"
        )
    if found.local > MAX_LOCAL:
        return (
            f"the output guard found a place that is unlike the photo: {found.local:.0%} of the range, "
            f"where {MAX_LOCAL:.0%} are allowed"
        )
    return None
