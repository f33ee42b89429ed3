"""Split, taper, merge: the identity when nothing is done in between.

Tiles of one size overlap; in an overlap each fades into the next by a linear ramp, which takes the
middle half: the pixels at a tile's edge, where a network sees nothing beyond, count for nothing. The
ramps are a partition of unity (they sum to one at every pixel), so nothing has to be normalised
afterwards.
Merging goes band by band from the top: a photo of any height holds one band of float32 rows besides
its own pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from deblur import bands


class Tiling(NamedTuple):
    """How photos are cut for a network.

    Attributes:
        tile_px: side of the least tiles, to which smaller photos are padded; no others are.
        overlap_px: by how much neighbours overlap at least.
        most_px: side of the largest. A photo has as few tiles as these allow, all of one size, as
            small as suffices.
        step_px: sides are multiples of it, and so are `tile_px` and `most_px`.
    """

    tile_px: int
    overlap_px: int
    most_px: int
    step_px: int


@dataclass(frozen=True)
class Layout:
    """Where the tiles of one photo lie.

    Attributes:
        height, width: the photo's size in pixels.
        tile_height, tile_width: the tiles'.
        rows, columns: top and left edges of the tiles, ascending, in the padded photo.
        padding: (top, bottom, left, right) pixels of reflected border, which make a small photo as
            large as a tile.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    padding: tuple[int, int, int, int]

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.rows) * len(self.columns)


def plan(height: int, width: int, tiling: Tiling) -> Layout:
    """Lay the fewest evenly spaced tiles.

    Raises:
        ValueError: if a size is not positive, or the overlap is more than half of the least tile.
    """
    tile_px, overlap_px, most_px, step_px = tiling
    if (
        min(height, width, step_px) < 1
        or not 0 <= overlap_px <= tile_px // 2 <= most_px // 2
        or tile_px % step_px
        or most_px % step_px
    ):
        raise ValueError(f"height={height}, width={width}, {tiling}")
    tile_height, rows, top, bottom = _axis(height, tiling)
    tile_width, columns, left, right = _axis(width, tiling)
    return Layout(height, width, tile_height, tile_width, rows, columns, (top, bottom, left, right))


def _axis(length: int, tiling: Tiling) -> tuple[int, tuple[int, ...], int, int]:
    """Return the tiles' side, where they start, and the padding before and after."""
    count = 1 + max(-(-(length - tiling.most_px) // (tiling.most_px - tiling.overlap_px)), 0)
    while (side := _side(length, count, tiling)) > max(length, tiling.tile_px):
        count += 1
    if count == 1:
        before = (side - length) // 2
        return side, (0,), before, side - length - before
    span = length - side
    return side, tuple(index * span // (count - 1) for index in range(count)), 0, 0


def _side(length: int, count: int, tiling: Tiling) -> int:
    side = -(-(length + (count - 1) * tiling.overlap_px) // count)
    return max(-(-side // tiling.step_px) * tiling.step_px, tiling.tile_px)


def ramps(starts: tuple[int, ...], tile_px: int) -> np.ndarray:
    """Return the (len(starts), tile_px) float32 weights along one axis.

    At each pixel they sum to one. All ramps have one width, half of the least overlap, and lie in
    the middle of their overlaps; where tiles are so close that three of them meet, it is narrow
    enough that no two ramps touch.

    With ramps over whole overlaps of 32 pixels, eight convolutions of 3 x 3 in tiles were up to 5
    levels of 8 bits from the same on the whole photo; with half, 1 (tests/test_restorer.py).
    """
    weights = np.ones((len(starts), tile_px), np.float32)
    pairs = list(itertools.pairwise(starts))
    overlaps = [start + tile_px - following for start, following in pairs]
    apart = [(after - before) // 2 for before, after in zip(starts, starts[2:], strict=False)]
    width = min([-(-overlap // 2) for overlap in overlaps] + apart, default=0)
    # Samples at pixel centres: never 0 or 1, and the falling ramp is exactly one minus the rising.
    rising = (np.arange(width, dtype=np.float32) + 0.5) / max(width, 1)
    for index, (start, following) in enumerate(pairs):
        middle = (start + following + tile_px - width) // 2
        first, second = middle - start, middle - following
        weights[index, first : first + width] = 1 - rising
        weights[index, first + width :] = 0
        weights[index + 1, second : second + width] = rising
        weights[index + 1, :second] = 0
    return weights


def split(pixels: np.ndarray, layout: Layout) -> Iterator[np.ndarray]:
    """Yield the (tile_height, tile_width, C) tiles row by row: views of the photo, if it is not padded."""
    top, bottom, left, right = layout.padding
    if any(layout.padding):
        # Reflection repeats for photos that are much smaller than a tile; "symmetric" also serves
        # a side of one pixel.
        mode: Literal["reflect", "symmetric"]
        mode = "reflect" if min(layout.height, layout.width) > 1 else "symmetric"
        pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode)
    for y in layout.rows:
        for x in layout.columns:
            yield pixels[y : y + layout.tile_height, x : x + layout.tile_width]


class Merger:
    """Takes tiles in the order of `split` and fills the photo, band by band.

    Args:
        layout: where the tiles lie.
        dtype: uint8 or uint16; tiles in [0, 1] are scaled to its range and rounded.
    """

    def __init__(self, layout: Layout, dtype: np.dtype | type) -> None:
        """Make room for one band and the photo."""
        self._layout = layout
        self._scale = np.float32(np.iinfo(dtype).max)
        self._across = ramps(layout.columns, layout.tile_width)[:, None, :, None]
        self._down = ramps(layout.rows, layout.tile_height)[:, :, None, None]
        width = layout.columns[-1] + layout.tile_width
        self._band = np.zeros((layout.tile_height, width, 3), np.float32)
        self._pixels = np.empty((layout.rows[-1] + layout.tile_height, width, 3), dtype)
        self._count = 0

    @property
    def full(self) -> bool:
        """Whether every tile has been added."""
        return self._count == len(self._layout)

    def add(self, tile: np.ndarray) -> None:
        """Add the next tile, (tile_height, tile_width, 3) float32 in [0, 1]."""
        row, column = divmod(self._count, len(self._layout.columns))
        x = self._layout.columns[column]
        self._band[:, x : x + self._layout.tile_width] += tile * (
            self._down[row] * self._across[column]
        )
        self._count += 1
        if column == len(self._layout.columns) - 1:
            self._finish(row)

    def _finish(self, row: int) -> None:
        """Write the band's rows that no later tile touches, and move the rest up."""
        top, height = self._layout.rows[row], self._layout.tile_height
        done = height if self.full else self._layout.rows[row + 1] - top
        finished = self._pixels[top : top + done]
        for part in bands.slices(done):  # or a wide photo would need its band twice
            ready = self._band[part] * self._scale
            np.clip(np.rint(ready, out=ready), 0, self._scale, out=ready)
            finished[part] = ready
        self._band[: height - done] = self._band[done:].copy()
        self._band[height - done :] = 0

    def result(self) -> np.ndarray:
        """Return the (H, W, 3) photo, unpadded. Raises ValueError while tiles are missing."""
        if not self.full:
            raise ValueError(f"{self._count} of {len(self._layout)} tiles were added")
        top, _, left, _ = self._layout.padding
        return self._pixels[top : top + self._layout.height, left : left + self._layout.width]
