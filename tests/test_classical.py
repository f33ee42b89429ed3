from __future__ import annotations

import cv2
import numpy as np
import pytest

from deblur import blur, classical
from deblur.metrics import psnr

SIZE = 96


def photo(seed: int, shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    """Return uint8 with the edges and flat areas of photos: rectangles, overlapping."""
    rng = np.random.default_rng(seed)
    picture = np.full((*shape, 3), 128, np.uint8)
    for _ in range(60):
        y, x = rng.integers(-10, shape[0]), rng.integers(-10, shape[1])
        height, width = rng.integers(4, 40, 2)
        light = rng.integers(0, 230)
        colour = (light + rng.integers(0, 25, 3)).tolist()
        cv2.rectangle(picture, (int(x), int(y)), (int(x + width), int(y + height)), colour, -1)
    return picture


@pytest.fixture(scope="module")
def sharps() -> list[np.ndarray]:
    return [photo(seed) for seed in range(100, 130)]


def case(recipe: str, shape: tuple[int, int] = (SIZE, SIZE), key: str = "a"):
    sharp, degradation = photo(1, shape), blur.draw(recipe, seed=0, key=key)
    blurred = np.float32(blur.degrade(sharp, degradation) / 255)
    return np.float32(sharp / 255), blurred, degradation


def gain_db(sharp: np.ndarray, blurred: np.ndarray, restored: np.ndarray) -> float:
    assert restored.shape == sharp.shape
    assert restored.dtype == np.float32
    assert restored.min() >= 0
    assert restored.max() <= 1
    return psnr(sharp, restored, data_range=1) - psnr(sharp, blurred, data_range=1)


def test_unsharp_gains_a_little_and_leaves_flat_areas() -> None:
    sharp, blurred, _ = case("box14")
    assert 0 < gain_db(sharp, blurred, classical.unsharp(blurred)) < 3
    flat = np.full((20, 20, 3), 0.4, np.float32)
    np.testing.assert_allclose(classical.unsharp(flat), flat, atol=1e-6)
    np.testing.assert_array_equal(classical.unsharp(blurred, amount=0), blurred)


@pytest.mark.parametrize("recipe", ["box14", "gaussian"])
def test_the_operator_is_the_blur_to_the_last_pixel(recipe: str) -> None:
    sharp, _, degradation = case(recipe)
    operator = classical._operator(blur.separable(degradation), SIZE)
    expected = np.moveaxis(operator @ np.moveaxis(sharp * 255.0, 2, 0) @ operator.T, 0, 2)
    # box14 is blurred in whole numbers, which round half a level either way.
    blurred = blur.degrade(np.uint8(np.rint(sharp * 255)), degradation)
    assert np.abs(expected - blurred).max() < 0.51


@pytest.mark.parametrize("recipe", ["box14", "gaussian"])
def test_separable_wiener_gains_several_db(recipe: str, sharps: list[np.ndarray]) -> None:
    sharp, blurred, degradation = case(recipe)
    kernel, noise = blur.separable(degradation), blur.noise_variance(degradation)
    restore = classical.SeparableWiener.fit(kernel, iter(sharps), noise)
    gain = gain_db(sharp, blurred, restore(blurred))
    assert gain > 4
    # It is exact where `wiener` is not quite, and never worse.
    approximate = classical.wiener(blurred, blur.psf(degradation), noise)
    assert gain > gain_db(sharp, blurred, approximate) - 0.3


def test_separable_wiener_is_cautious_when_told_of_noise(sharps: list[np.ndarray]) -> None:
    sharp, blurred, degradation = case("box14")
    noisy = blurred + np.random.default_rng(0).normal(0, 0.02, blurred.shape).astype(np.float32)
    kernel = blur.separable(degradation)
    told, untold = (
        classical.SeparableWiener.fit(kernel, sharps, variance)(noisy)
        for variance in (0.02**2, 1e-6)
    )
    assert gain_db(sharp, noisy, told) > 1 > 0 > gain_db(sharp, noisy, untold)


def test_separable_wiener_refuses_other_sizes(sharps: list[np.ndarray]) -> None:
    kernel = blur.separable(blur.Degradation("box14"))
    restore = classical.SeparableWiener.fit(kernel, sharps[:2], 1e-6)
    with pytest.raises(ValueError, match=r"96 pixels each way, got \(40, 96, 3\)"):
        restore(np.zeros((40, 96, 3), np.float32))
    with pytest.raises(ValueError, match=r"got \(40, 96, 3\)"):
        classical.SeparableWiener.fit(kernel, [sharps[0], photo(0, (40, 96))], 1e-6)
    with pytest.raises(ValueError, match="no sharp photo"):
        classical.SeparableWiener.fit(kernel, [], 1e-6)


@pytest.mark.parametrize("recipe", ["box14", "gaussian", "motion", "defocus"])
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (90, 121)])
def test_wiener_gains_several_db(recipe: str, shape: tuple[int, int]) -> None:
    sharp, blurred, degradation = case(recipe, shape)
    kernel, noise = blur.psf(degradation), blur.noise_variance(degradation)
    assert gain_db(sharp, blurred, classical.wiener(blurred, kernel, noise)) > 3


def test_wiener_gains_on_photos_with_noise_and_jpeg() -> None:
    gains = []
    for key in map(str, range(12)):
        sharp, blurred, degradation = case("photo", key=key)
        noise = blur.noise_variance(degradation)
        restored = classical.wiener(blurred, blur.psf(degradation), noise)
        gains.append(gain_db(sharp, blurred, restored))
    assert np.mean(gains) > 0.5


def test_wiener_with_no_blur_and_no_noise_is_the_identity() -> None:
    sharp, _, _ = case("box14")
    restored = classical.wiener(sharp, np.ones((1, 1), np.float32), 1e-12)
    np.testing.assert_allclose(restored, sharp, atol=1e-4)


def test_wiener_refuses_a_photo_smaller_than_the_psf() -> None:
    small, kernel = np.zeros((5, 5, 3), np.float32), blur.psf(blur.Degradation("box14"))
    with pytest.raises(ValueError, match=r"\(5, 5, 3\) is too small for a PSF of \(15, 15\)"):
        classical.wiener(small, kernel, 1e-6)


@pytest.mark.parametrize("recipe", ["box14", "gaussian", "motion", "defocus"])
def test_richardson_lucy_gains_more_with_each_iteration(recipe: str) -> None:
    sharp, blurred, degradation = case(recipe)
    psf = blur.psf(degradation)
    gains = [
        gain_db(sharp, blurred, classical.richardson_lucy(blurred, psf, count))
        for count in (1, 10, 30)
    ]
    assert 0 < gains[0] < gains[1] < gains[2]


def test_richardson_lucy_leaves_flat_photos_and_black_ones() -> None:
    psf = blur.psf(blur.Degradation("box14"))
    for level in (0.0, 0.4, 1.0):
        flat = np.full((20, 20, 3), level, np.float32)
        np.testing.assert_allclose(classical.richardson_lucy(flat, psf), flat, atol=2e-4)
