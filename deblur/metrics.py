"""How near two photos are (PSNR, SSIM), and how sharp one is (`sharpness`).

All take (H, W) or (H, W, C) arrays of uint8, uint16 or float32, and none guesses the range from the
type: `data_range` is the distance from black to white, 255, 65535 or 1.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

# Equal photos of 8 bits may have been rounded from two that differ by as much: by 1/12 level² (58.9 dB).
MOST_DB = 10 * math.log10(12 * 255**2)

# Wang, Bovik, Sheikh & Simoncelli, "Image Quality Assessment: From Error Visibility to Structural
# Similarity", IEEE TIP 13(4), 2004: an 11 x 11 Gaussian window of 1.5 pixels, and two constants.
_WINDOW_PX, _SIGMA_PX = 11, 1.5
_K1, _K2 = 0.01, 0.03

# Crete, Dolmiere, Ladret & Nicolas, "The blur effect: perception and estimation with a new
# no-reference perceptual blur metric", SPIE 6492, 2007; box and Sobel operator as in scikit-image.
_REBLUR_PX = 11
# A photo is measured band by band: as float32, one of 100 megapixels would take gigabytes. Bands
# overlap by what blur and Sobel operator see.
_BAND_PIXELS = 2_000_000
_HALO_PX = 8


def psnr(a: NDArray, b: NDArray, *, data_range: float) -> float:
    """Return the peak signal-to-noise ratio of two photos in dB; infinite for equal ones."""
    _check_pair(a, b)
    # OpenCV sums in double precision without a copy of the photos.
    squared_error = cv2.norm(a, b, cv2.NORM_L2SQR) / a.size
    return 10 * math.log10(data_range**2 / squared_error) if squared_error else math.inf


def psnr_8bit(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the PSNR of two uint8 photos in dB, at most `MOST_DB`, so that a mean of many is finite."""
    return min(psnr(a, b, data_range=255), MOST_DB)


def ssim(a: NDArray, b: NDArray, *, data_range: float) -> float:
    """Return the mean structural similarity of two photos, -1 to 1, over all channels.

    After Wang et al. 2004: each channel by itself, and only where the window lies inside the photo.
    The same as scikit-image's with gaussian_weights=True, sigma=1.5, use_sample_covariance=False.
    """
    _check_pair(a, b)
    if min(a.shape[:2]) < _WINDOW_PX:
        raise ValueError(f"SSIM needs {_WINDOW_PX} pixels each way, got {a.shape}")
    scale = np.float32(1 / data_range)
    a, b = a * scale, b * scale
    mean_a, mean_b = _window(a), _window(b)
    mean_product, mean_squares = mean_a * mean_b, mean_a * mean_a + mean_b * mean_b
    covariance = _window(a * b) - mean_product
    variances = _window(a * a + b * b) - mean_squares
    similarity = (2 * mean_product + _K1**2) * (2 * covariance + _K2**2)
    similarity /= (mean_squares + _K1**2) * (variances + _K2**2)
    edge = _WINDOW_PX // 2
    return float(similarity[edge:-edge, edge:-edge].mean(dtype=np.float64))


def sharpness(image: NDArray) -> float:
    """Return how sharp a photo is by itself: from 0 (nothing to see) to 1.

    The complement of Crete et al.'s blur effect (2007): blur the luma again, and see how much of
    its gradients that takes away, in the direction that loses less. Being a ratio it depends on
    neither contrast nor brightness nor the type's scale, so one threshold serves all photos (that
    of the variance of the Laplacian does not). 5th to 95th percentile of 60 crops of BSDS500: 0.62
    to 0.78 sharp, 0.16 to 0.30 blurred by `box14`, 0.27 to 0.56 blurred by `photo`. In full size
    pixels are less sharp: 0.37 to 0.75 for 17 photos as cameras took them.
    """
    height, width = image.shape[:2]
    rows = max(_BAND_PIXELS // width, _HALO_PX)
    total, lost = np.zeros(2), np.zeros(2)
    for top in range(0, height, rows):
        above, below = max(0, top - _HALO_PX), min(height, top + rows + _HALO_PX)
        inner = slice(max(top, 2) - above, min(top + rows, height - 1) - above)
        luma = image[above:below].astype(np.float32)
        if luma.ndim == 3:
            luma = cv2.cvtColor(luma, cv2.COLOR_RGB2GRAY)
        for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
            reblurred = cv2.blur(luma, (_REBLUR_PX, 1) if dx else (1, _REBLUR_PX))
            before = np.abs(cv2.Sobel(luma, cv2.CV_32F, dx, dy)[inner, 2:-1])
            after = np.abs(cv2.Sobel(reblurred, cv2.CV_32F, dx, dy)[inner, 2:-1])
            total[axis] += before.sum(dtype=np.float64)
            lost[axis] += np.maximum(before - after, 0).sum(dtype=np.float64)
    return float(np.min(lost / np.where(total > 0, total, 1)))


def _window(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    averaged: NDArray[np.float32] = cv2.GaussianBlur(channels, (_WINDOW_PX, _WINDOW_PX), _SIGMA_PX)
    return averaged


def _check_pair(a: NDArray, b: NDArray) -> None:
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"cannot compare {a.shape} {a.dtype} with {b.shape} {b.dtype}")
