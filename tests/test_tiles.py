from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur import tiles


@st.composite
def tilings(draw: st.DrawFn, most_steps: int = 6, most_step_px: int = 9) -> tiles.Tiling:
    step_px = draw(st.integers(1, most_step_px))
    tile_px = step_px * draw(st.integers(1, most_steps))
    most_px = tile_px + step_px * draw(st.integers(0, most_steps))
    return tiles.Tiling(tile_px, draw(st.integers(0, tile_px // 2)), most_px, step_px)


def squares(tile_px: int, overlap_px: int) -> tiles.Tiling:
    return tiles.Tiling(tile_px, overlap_px, tile_px, tile_px)


@st.composite
def layouts(draw: st.DrawFn) -> tiles.Layout:
    return tiles.plan(draw(st.integers(1, 120)), draw(st.integers(1, 120)), draw(tilings()))


def merged(pixels: np.ndarray, layout: tiles.Layout) -> np.ndarray:
    merger = tiles.Merger(layout, pixels.dtype)
    scale = np.float32(1 / np.iinfo(pixels.dtype).max)
    for tile in tiles.split(pixels, layout):
        merger.add(tile * scale)
    return merger.result()


def noise(height: int, width: int, dtype: type) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(0).integers(0, top, (height, width, 3), dtype, endpoint=True)


@settings(max_examples=300)
@given(layout=layouts(), dtype=st.sampled_from([np.uint8, np.uint16]))
def test_merge_undoes_split(layout: tiles.Layout, dtype: type) -> None:
    pixels = noise(layout.height, layout.width, dtype)
    result = merged(pixels, layout)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (255, 256), (257, 700)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tiling", [squares(256, 64), tiles.Tiling(256, 64, 512, 16)])
def test_merge_undoes_split_at_the_size_of_the_networks(
    size: tuple[int, int], dtype: type, tiling: tiles.Tiling
) -> None:
    layout = tiles.plan(*size, tiling)
    pixels = noise(*size, dtype)
    np.testing.assert_array_equal(merged(pixels, layout), pixels)


@settings(max_examples=500)
@given(
    length=st.integers(1, 2000),
    tiling=st.one_of(tilings(), tilings(most_steps=40), tilings(most_steps=3, most_step_px=64)),
)
def test_an_axis(length: int, tiling: tiles.Tiling) -> None:
    layout = tiles.plan(length, 1, tiling)
    side, starts, (top, bottom, _, _) = layout.tile_height, layout.rows, layout.padding
    assert tiling.tile_px <= side <= tiling.most_px
    assert side % tiling.step_px == 0
    padded = max(length, tiling.tile_px)
    assert length + top + bottom == padded
    assert 0 <= bottom - top <= 1
    assert starts[0] == 0
    assert starts[-1] + side == padded
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < gap <= side - tiling.overlap_px for gap in gaps)
    assert max(gaps, default=0) - min(gaps, default=0) <= 1
    # One tile less would do if the largest that lie within the photo covered it.
    largest = min(tiling.most_px, padded // tiling.step_px * tiling.step_px)
    one_less = largest + (len(starts) - 2) * (largest - tiling.overlap_px)
    assert len(starts) == 1 or one_less < padded
    # Nor would smaller ones, but for what they may be.
    smaller = side - tiling.step_px
    reach = smaller + (len(starts) - 1) * (smaller - tiling.overlap_px)
    assert reach < padded or side == tiling.tile_px

    weights = tiles.ramps(starts, side)
    total = np.zeros(padded)
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert weights.min() >= 0
    assert weights.max() <= 1


def test_a_large_photo_has_tiles_as_large_as_suffice() -> None:
    layout = tiles.plan(2448, 3264, tiles.Tiling(256, 64, 1024, 16))
    assert (layout.tile_height, layout.tile_width) == (864, 864)
    assert (len(layout.rows), len(layout.columns)) == (3, 4)
    layout = tiles.plan(481, 240, tiles.Tiling(256, 64, 1024, 16))
    assert (layout.tile_height, layout.rows, layout.tile_width) == (288, (0, 193), 256)


def test_a_ramp_lies_in_the_middle_of_its_overlap() -> None:
    np.testing.assert_allclose(
        tiles.ramps((0, 6), 10),
        [[1, 1, 1, 1, 1, 1, 1, 0.75, 0.25, 0], [0, 0.25, 0.75, *[1] * 7]],
    )
    # Where three tiles meet, ramps give way to each other: here each is 2 wide in an overlap of 4.
    np.testing.assert_allclose(
        tiles.ramps((0, 2, 4), 6),
        [[1, 1, 1, 0.75, 0.25, 0], [0, 0.25, 0.75, 0.75, 0.25, 0], [0, 0.25, 0.75, 1, 1, 1]],
    )


def test_a_seam_fades() -> None:
    """Two tiles that disagree meet in a slope, not in a step."""
    layout = tiles.plan(64, 100, squares(64, 16))
    merger = tiles.Merger(layout, np.uint8)
    for value in (0.2, 0.8):
        merger.add(np.full((64, 64, 3), value, np.float32))
    row = merger.result()[0, :, 0].astype(int)
    assert (row[0], row[-1]) == (51, 204)
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() <= 153 / 14 + 1  # half of an overlap of 28 pixels


def test_tiles_of_a_large_photo_are_views() -> None:
    pixels = noise(70, 90, np.uint8)
    layout = tiles.plan(70, 90, squares(32, 8))
    assert all(np.shares_memory(tile, pixels) for tile in tiles.split(pixels, layout))


def test_a_small_photo_is_surrounded_by_its_reflection() -> None:
    layout = tiles.plan(3, 3, squares(7, 2))
    (tile,) = tiles.split(np.arange(27, dtype=np.uint8).reshape(3, 3, 3), layout)
    assert tile.shape == (7, 7, 3)
    np.testing.assert_array_equal(tile[3, :, 0] // 3, [5, 4, 3, 4, 5, 4, 3])


def test_values_beyond_the_range_are_clipped_and_rounded() -> None:
    merger = tiles.Merger(tiles.plan(1, 4, squares(4, 0)), np.uint8)
    tile = np.zeros((4, 4, 3), np.float32)
    tile[...] = np.array([-0.5, 1.5, 0.4 / 255, 0.6 / 255], np.float32)[None, :, None]
    merger.add(tile)
    assert merger.result()[0, :, 0].tolist() == [0, 255, 0, 1]


def test_the_merger_holds_one_band_besides_the_photo() -> None:
    layout = tiles.plan(5000, 300, squares(64, 16))
    merger = tiles.Merger(layout, np.uint8)
    arrays = [value for value in vars(merger).values() if isinstance(value, np.ndarray)]
    photo, band = 5000 * 300 * 3, 64 * 300 * 3 * 4
    assert sum(array.nbytes for array in arrays) < photo + 1.5 * band


def test_a_photo_with_tiles_missing_is_not_given_out() -> None:
    layout = tiles.plan(10, 20, squares(10, 2))
    merger = tiles.Merger(layout, np.uint8)
    for _ in range(len(layout) - 1):
        merger.add(np.zeros((10, 10, 3), np.float32))
    assert not merger.full
    with pytest.raises(ValueError, match="2 of 3 tiles"):
        merger.result()


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_no_photo(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="tile_px=8"):
        tiles.plan(*size, squares(8, 2))


@pytest.mark.parametrize(
    "tiling", [(8, 5, 8, 8), (8, -1, 8, 8), (8, 2, 8, 0), (8, 2, 8, 3), (8, 2, 12, 8), (8, 2, 4, 4)]
)
def test_impossible_tilings(tiling: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="tile_px=8"):
        tiles.plan(5, 5, tiles.Tiling(*tiling))
