from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import skimage.measure
import skimage.metrics

from deblur import metrics

RANGES = {np.uint8: 255, np.uint16: 65535, np.float32: 1}


def photo(shape: tuple[int, ...] = (60, 70, 3), seed: int = 0) -> np.ndarray:
    """Return float64 in [0, 1] with structure at several scales."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.random(shape), (0, 0), s) * s for s in (0.5, 2, 6)]
    picture = sum(layers)
    return (picture - picture.min()) / np.ptp(picture)


def cast(picture: np.ndarray, dtype: type) -> np.ndarray:
    scaled = np.clip(picture, 0, 1) * RANGES[dtype]
    return (np.rint(scaled) if np.issubdtype(dtype, np.integer) else scaled).astype(dtype)


def pair(dtype: type, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    sharp = photo(shape)
    noise = np.random.default_rng(9).normal(0, 0.05, shape)
    return cast(sharp, dtype), cast(cv2.GaussianBlur(sharp, (0, 0), 1.0) + noise, dtype)


cases = pytest.mark.parametrize("shape", [(60, 70, 3), (33, 40), (11, 11, 3)])
types = pytest.mark.parametrize("dtype", list(RANGES))


@types
@cases
def test_psnr_is_that_of_scikit_image(dtype: type, shape: tuple[int, ...]) -> None:
    a, b = pair(dtype, shape)
    expected = skimage.metrics.peak_signal_noise_ratio(a, b, data_range=RANGES[dtype])
    assert metrics.psnr(a, b, data_range=RANGES[dtype]) == pytest.approx(expected, abs=1e-5)


@types
@cases
def test_ssim_is_that_of_scikit_image(dtype: type, shape: tuple[int, ...]) -> None:
    a, b = pair(dtype, shape)
    expected = skimage.metrics.structural_similarity(
        a.astype(np.float64),
        b.astype(np.float64),
        data_range=RANGES[dtype],
        channel_axis=2 if len(shape) == 3 else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert metrics.ssim(a, b, data_range=RANGES[dtype]) == pytest.approx(expected, abs=1e-5)


@types
def test_a_photo_equals_itself(dtype: type) -> None:
    a, _ = pair(dtype, (40, 40, 3))
    assert metrics.psnr(a, a.copy(), data_range=RANGES[dtype]) == math.inf
    assert metrics.ssim(a, a.copy(), data_range=RANGES[dtype]) == pytest.approx(1, abs=1e-6)


@types
def test_metrics_are_symmetric(dtype: type) -> None:
    a, b = pair(dtype, (40, 40, 3))
    for metric in (metrics.psnr, metrics.ssim):
        one, other = (metric(*p, data_range=RANGES[dtype]) for p in ((a, b), (b, a)))
        assert one == pytest.approx(other, abs=1e-6)


@types
def test_black_against_white_is_0_db_even_for_large_photos(dtype: type) -> None:
    # The squares of 16 bits overflow 32-bit sums after two pixels.
    black = np.zeros((600, 700, 3), dtype)
    white = np.full_like(black, RANGES[dtype])
    assert metrics.psnr(black, white, data_range=RANGES[dtype]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("metric", [metrics.psnr, metrics.ssim])
def test_unlike_photos_are_refused_with_the_values(metric) -> None:
    a = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match=r"\(20, 20, 3\) uint8 with \(20, 21, 3\) uint8"):
        metric(a, np.zeros((20, 21, 3), np.uint8), data_range=255)
    with pytest.raises(ValueError, match=r"uint8 with .* float32"):
        metric(a, a.astype(np.float32), data_range=255)


def test_ssim_refuses_photos_smaller_than_its_window() -> None:
    small = np.zeros((10, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"11 pixels each way, got \(10, 30, 3\)"):
        metrics.ssim(small, small, data_range=255)


# === Sharpness ===


@types
def test_sharpness_is_the_complement_of_the_blur_effect(dtype: type) -> None:
    grey = cast(photo((50, 60)), dtype)
    expected = 1 - skimage.measure.blur_effect(grey / RANGES[dtype], h_size=11)
    # scikit-image mirrors at the border with the edge pixel, OpenCV without it.
    assert metrics.sharpness(grey) == pytest.approx(expected, abs=0.01)


def test_sharpness_depends_on_neither_type_nor_contrast() -> None:
    picture = photo()
    values = [metrics.sharpness(cast(picture, dtype)) for dtype in RANGES]
    assert values == pytest.approx([values[0]] * 3, abs=2e-3)
    assert metrics.sharpness(cast(0.3 + 0.2 * picture, np.float32)) == pytest.approx(
        values[2], abs=1e-3
    )


def test_sharpness_falls_with_blur_in_any_direction() -> None:
    picture = cast(photo(), np.float32)
    blurs = [cv2.GaussianBlur(picture, (0, 0), sigma) for sigma in (0.7, 1.5, 3.0)]
    values = [metrics.sharpness(p) for p in (picture, *blurs)]
    assert values == sorted(values, reverse=True)
    for size in ((9, 1), (1, 9)):
        assert metrics.sharpness(cv2.blur(picture, size)) < 0.8 * values[0]


@types
@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7), (40, 40, 3)])
def test_a_flat_photo_has_no_sharpness(dtype: type, shape: tuple[int, ...]) -> None:
    assert metrics.sharpness(np.full(shape, RANGES[dtype], dtype)) == 0


def test_a_mean_of_photos_of_which_some_are_equal_is_finite() -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    other = grey.copy()
    other[0, 0, 0] += 1
    assert metrics.psnr_8bit(grey, grey) == metrics.psnr_8bit(grey, other) == metrics.MOST_DB
    assert metrics.psnr_8bit(grey, grey + 2) == metrics.psnr(grey, grey + 2, data_range=255)
