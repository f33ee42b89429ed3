from __future__ import annotations

import cv2
import numpy as np
import pytest

from deblur import blur, classical, guards

SIZES = [(256, 256), (480, 700), (1, 900), (20, 20)]


def found(before: np.ndarray, after: np.ndarray) -> str | None:
    return guards.objection(guards.strong_blur(before), guards.strong_blur(after))


@pytest.fixture(scope="module")
def sharp(photos) -> np.ndarray:
    return photos.pixels(512, 640, seed=7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_photo_is_like_itself(photos, size: tuple[int, int], dtype: type) -> None:
    pixels = photos.pixels(*size, dtype=dtype) if min(size) > 8 else np.full((*size, 3), 9, dtype)
    looks = guards.strong_blur(pixels)
    assert looks.dtype == np.float32
    assert looks.shape == (max(1, round(size[0] / 32)), max(1, round(size[1] / 32)), 3)
    assert 0 <= looks.min() <= looks.max() <= 1
    assert guards.difference(looks, looks) == guards.Difference(0, 0)
    assert found(pixels, pixels) is None


@pytest.mark.parametrize("recipe", ["box14", "motion", "photo"])
@pytest.mark.parametrize("seed", range(3))
def test_what_works_passes(sharp: np.ndarray, recipe: str, seed: int) -> None:
    degradation = blur.draw(recipe, seed=seed, key="a")
    blurred = blur.degrade(sharp, degradation)
    unit = blurred.astype(np.float32) / 255
    restored = [
        classical.wiener(unit, blur.psf(degradation), blur.noise_variance(degradation)),
        classical.unsharp(unit),
        sharp / 255,
    ]
    for result in restored:
        assert found(blurred, np.rint(np.clip(result, 0, 1) * 255).astype(np.uint8)) is None


@pytest.mark.parametrize("recipe", ["wide box", "motion along a line"])
def test_wide_blurs_undone_pass(sharp: np.ndarray, recipe: str) -> None:
    size = (81, 81) if recipe == "wide box" else (101, 1)
    assert found(cv2.blur(sharp, size), sharp) is None


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("gain", [0.75, 1.25])
def test_a_shift_of_colour_is_found(sharp: np.ndarray, channel: int, gain: float) -> None:
    after = sharp.astype(np.float32)
    after[..., channel] *= gain
    after = np.rint(after.clip(0, 255)).astype(np.uint8)
    assert "shift of colour" in (found(sharp, after) or "")


def test_a_shift_of_brightness_is_found(sharp: np.ndarray) -> None:
    assert "brightness: 14.9% of the range" in (found(sharp // 2, sharp // 2 + np.uint8(38)) or "")


@pytest.mark.parametrize("kind", ["noise", "black", "mosaic"])
def test_a_broken_tile_is_found(photos, kind: str) -> None:
    photo = photos.pixels(2048, 2048, seed=3)
    after = photo.copy()
    rng = np.random.default_rng(0)
    tile = after[900:1156, 700:956]
    if kind == "noise":
        tile[:] = rng.integers(0, 256, tile.shape, np.uint8)
    elif kind == "black":
        tile[:] = 0
    else:
        cells = rng.integers(0, 2, (8, 8, 3), np.uint8) * 255
        tile[:] = cv2.resize(cells, (256, 256), interpolation=cv2.INTER_NEAREST)
    assert "a place that is unlike the photo" in (found(photo, after) or "")


def test_nothing_but_black_is_found(sharp: np.ndarray) -> None:
    assert found(sharp, np.zeros_like(sharp))


def test_bits_do_not_matter(sharp: np.ndarray) -> None:
    deep = sharp.astype(np.uint16) * 257
    looks = guards.strong_blur(sharp), guards.strong_blur(deep)
    np.testing.assert_allclose(*looks, atol=0.5 / 255 + 1e-6)


def test_other_sizes_are_an_error() -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        guards.difference(np.zeros((2, 2, 3), np.float32), np.zeros((2, 3, 3), np.float32))
