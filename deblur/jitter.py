"""The jitter that keeps a pair a pair."""

from __future__ import annotations

import numpy as np

_JITTER_PX = 15


def reflected(start: int, length: int, size: int, shift: int) -> np.ndarray:
    """Return `length` indices from `start` on, reflected into [0, size).

    The axes of reflection are shift/2 and size - 1 + shift/2. With shift 0 this is OpenCV's
    reflect-101 border. A picture filtered by a kernel of even size is symmetric about half a pixel:
    with the recipe's `mirror_shift` it is continued exactly as if the sharp one had been.
    """
    period = 2 * (size - 1)
    index = (np.arange(start, start + length) - shift) % period
    # Left of the first axis, index i comes back as shift - i; right of the second, as
    # 2 (size - 1) + shift - i.
    folded = np.where(index < size - shift, index + shift, period - index)
    return np.where(folded > size - 1, period + shift - folded, folded)


def jitter(
    sharp: np.ndarray,
    blurred: np.ndarray,
    generator: np.random.Generator,
    *,
    mirror_shift: int,
    size_px: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a window out of a pair, or shift it by up to 15 pixels, and mirror half of them.

    The tutorial of pix2pix enlarges 256 to 286 and crops; that would enlarge the kernel too, so we
    continue the photo by reflection instead (15 is the same (286 - 256) / 2). Mirroring turns an
    even kernel's half-pixel shift around, which `mirror_shift` undoes: the pair that comes out is a
    pair of the same kernel, to the last bit.

    Args:
        sharp, blurred: (H, W, 3) arrays.
        generator: draws the place and the mirror.
        mirror_shift: the recipe's, see `blur.mirror_shift`.
        size_px: side of the window. Defaults to the whole pair, shifted.
    """
    height, width = sharp.shape[:2]
    lengths = (size_px or height, size_px or width)
    starts = [
        generator.integers(0, size - length + 1)
        if length < size
        else generator.integers(-_JITTER_PX, _JITTER_PX + 1)
        for size, length in zip((height, width), lengths, strict=True)
    ]
    top, left = (int(start) for start in starts)
    rows, columns = (
        [reflected(start, length, size, shift) for shift in (0, mirror_shift)]
        for start, length, size in ((top, lengths[0], height), (left, lengths[1], width))
    )
    if generator.random() < 0.5:
        # Sharp column x becomes -x; the blurred one that belongs to it lies `mirror_shift` further.
        columns = [
            reflected(left, lengths[1], width, 0)[::-1],
            reflected(left + mirror_shift, lengths[1], width, mirror_shift)[::-1],
        ]
    # Twice `take` costs a fifth of one fancy index.
    return (
        sharp.take(rows[0], axis=0).take(columns[0], axis=1),
        blurred.take(rows[1], axis=0).take(columns[1], axis=1),
    )
