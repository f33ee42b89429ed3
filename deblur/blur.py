"""Kernels and degradations, seeded: the named recipes that turn a sharp photo into a blurred one.

A recipe *draws* a `Degradation` for a photo's key, and `degrade` carries it out. The two are apart
because a pair keeps its degradation as JSON: from that text and the sharp photo the blurred one
follows, bit for bit on one kind of CPU. On CPUs whose vector units add up in another order, some 5
values of a million are a level off, but for `box14` and `box14-jpeg`, which add integers. (In float64
they would be as good as never, but a Gaussian takes three times as long.)

    box14      cv2.blur with 14 x 14, the blur of the original report: fixed, draws nothing
    box14-jpeg the same, and in three of ten photos saved as JPEG, which a filter's noise must know
    gaussian   an isotropic Gaussian
    motion     the trajectory of a shaken hand
    defocus    the disk of a lens out of focus
    photo      what happens to photos: any of the last three or none, in linear light, with blown
               highlights, sensor noise and JPEG

All borders are reflect-101. All but `photo` blur display values, so without JPEG they are linear
operators plus rounding, and the classical baselines can be exact for them; `photo` is not meant to be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from deblur import pictures, seeds, trajectory
from deblur.errors import UsageError

RECIPES: tuple[str, ...] = ("box14", "box14-jpeg", "gaussian", "motion", "defocus", "photo")

# === The ranges drawn from, for crops of 256 pixels ===
# Standard deviations up to that of box14, sqrt((14² - 1) / 12) = 4.03 px; beyond it such a crop
# keeps little but its colours. A disk of radius r has one of r / 2.
SIGMA_PX = (0.8, 4.0)
RADIUS_PX = (1.6, 8.0)
# The part of the trajectory that the exposure shows: paths of 6 to 42 px, whose extents are like
# the 13 to 27 px of the hand shakes measured by Levin et al., "Understanding and Evaluating Blind
# Deconvolution Algorithms", CVPR 2009.
EXPOSURE = (0.1, 0.7)
# As DeblurGAN chose it (Kupyn et al., CVPR 2018); the generator's own, up to 0.1, makes blobs.
ANXIETY = (0.001, 0.01)
# How often `photo` blurs how. Some stay sharp, so that a model learns to leave such photos alone.
PHOTO_BLURS = {"motion": 0.4, "defocus": 0.25, "anisotropic": 0.2, "none": 0.15}
# Light beyond white, added where the sharp photo is clipped, as in RSBlur (Rim et al., "Realistic
# Blur Synthesis", ECCV 2022); from below 255, since JPEG makes clipped areas waver by some levels.
HIGHLIGHT, HIGHLIGHT_LEVEL = (0.25, 1.75), 250
# Raw noise after Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019: its
# variance is shot * light + read, shot log-uniform, log(read) normal about a line in log(shot). A
# quarter of it is left, as if binned 2 x 2: cameras denoise, and photos are rarely kept full size.
SHOT, READ_LOG, BINNING = (1e-4, 0.012), (2.18, 1.20, 0.26), 4
# One in four that are blurred or compressed has no noise left, as photos that were made much smaller. A
# model that had seen none of them took fine detail for noise: 27.61 dB of a Gaussian of a pixel became 27.20.
NOISELESS_SHARE = 0.25
# Qualities from poor web copies (Real-ESRGAN goes down to 30) to what cameras write; one photo in
# four is left uncompressed. 4:2:0 JPEG has blocks of 16 pixels, and crops cut them anywhere.
JPEG_SHARE, JPEG_QUALITY, JPEG_BLOCK_PX = 0.75, (60, 98), 16
# `box14-jpeg` is mostly exact, so that a model trained on it loses little where there is no JPEG.
BOX_JPEG_SHARE, BOX_JPEG_QUALITY = 0.3, (85, 100)
_BOXES = ("box14", "box14-jpeg")


@dataclass(frozen=True)
class Degradation:
    """What exactly is done to one photo.

    Args:
        recipe: one of RECIPES.
        parameters: all that was drawn, the seeds of path and noise included; JSON types only.
    """

    recipe: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a recipe that does not exist."""
        if self.recipe not in RECIPES:
            raise UsageError(f"No blur recipe {self.recipe!r}; there are {', '.join(RECIPES)}.")

    def to_json(self) -> str:
        """Return one line of JSON: the same text for the same degradation, always."""
        content = {"recipe": self.recipe, "parameters": self.parameters}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Degradation:
        """Return what `to_json` wrote."""
        return cls(**json.loads(text))


# === Drawing ===


def draw(recipe: str, *, seed: int, key: str) -> Degradation:
    """Return what `recipe` does to the photo `key` under `seed`."""
    rng = seeds.generator(seed, key, "blur")
    if recipe != "photo":
        return Degradation(recipe, _draw_blur(recipe, rng))
    kind = str(rng.choice(list(PHOTO_BLURS), p=list(PHOTO_BLURS.values())))
    return Degradation(
        recipe, {"blur": {"kind": kind, **_draw_blur(kind, rng)}, **_camera(kind, rng)}
    )


def _draw_blur(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    match kind:
        case "gaussian":
            return {"sigma_px": _uniform(rng, SIGMA_PX)}
        case "anisotropic":
            sigma_px = [_uniform(rng, SIGMA_PX), _uniform(rng, SIGMA_PX)]
            return {"sigma_px": sigma_px, "angle_rad": _uniform(rng, (0, math.pi))}
        case "defocus":
            return {"radius_px": _uniform(rng, RADIUS_PX)}
        case "motion":
            drawn = {"exposure": _uniform(rng, EXPOSURE), "anxiety": _uniform(rng, ANXIETY)}
            return {**drawn, "path_seed": int(rng.integers(2**32))}
        case "box14-jpeg":
            return _draw_jpeg(rng, rng.random() < BOX_JPEG_SHARE, BOX_JPEG_QUALITY)
    return {}


def _camera(kind: str, rng: np.random.Generator) -> dict[str, Any]:
    shot_log = rng.uniform(*np.log(SHOT))
    slope, offset, spread = READ_LOG
    read_log = slope * shot_log + offset + rng.normal(0, spread)
    compressed = rng.random() < JPEG_SHARE
    drawn = {
        "highlight": _uniform(rng, HIGHLIGHT),
        "shot": float(f"{math.exp(shot_log) / BINNING:.4g}"),
        "read": float(f"{math.exp(read_log) / BINNING:.4g}"),
        "noise_seed": int(rng.integers(2**32)),
        **_draw_jpeg(rng, compressed, JPEG_QUALITY),
    }
    noiseless = rng.random() < NOISELESS_SHARE and (kind != "none" or compressed)
    return drawn | {"shot": 0.0, "read": 0.0} if noiseless else drawn


def _draw_jpeg(
    rng: np.random.Generator, compressed: bool, quality: tuple[int, int]
) -> dict[str, Any]:
    return {
        "jpeg_quality": int(rng.integers(*quality, endpoint=True)) if compressed else None,
        "jpeg_phase_px": rng.integers(JPEG_BLOCK_PX, size=2).tolist(),
    }


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    # Rounded, so that the JSON is readable and yet the whole truth.
    return round(float(rng.uniform(*bounds)), 4)


# === Kernels ===


def psf(degradation: Degradation) -> NDArray[np.float32]:
    """Return the point spread function: (k, k) float32, k odd, not negative, sum 1.

    It is a correlation kernel centred at c = k // 2, as `cv2.filter2D` wants it: blurred[y, x] is
    the sum of psf[i, j] * sharp[y + i - c, x + j - c]. That of `photo` acts in linear light.
    """
    taps = separable(degradation)
    if taps is not None:
        return np.outer(taps, taps)
    drawn: Mapping[str, Any] = degradation.parameters.get("blur", degradation.parameters)
    match drawn.get("kind", degradation.recipe):
        case "motion":
            kernel = trajectory.kernel(drawn["exposure"], drawn["anxiety"], drawn["path_seed"])
        case "defocus":
            kernel = _disk(drawn["radius_px"])
        case "anisotropic":
            kernel = _anisotropic(drawn["sigma_px"], drawn["angle_rad"])
        case _:
            kernel = np.ones((1, 1))
    return np.float32(1 / kernel.sum()) * kernel.astype(np.float32)


def separable(degradation: Degradation) -> NDArray[np.float32] | None:
    """Return the (k,) float32 kernel whose outer product with itself is the PSF, if there is one.

    Centred and odd like `psf`. The 14 taps of `box14` lie at -7 to +6, so its last one is 0.
    """
    if degradation.recipe in _BOXES:
        taps = np.append(np.ones(14), 0)
    elif degradation.recipe == "gaussian":
        sigma = degradation.parameters["sigma_px"]
        taps = np.exp(-0.5 * (_offsets(4 * sigma) / sigma) ** 2)
    else:
        return None
    return np.float32(1 / taps.sum()) * taps.astype(np.float32)


def mirror_shift(recipe: str) -> int:
    """Return s such that a pair stays one when mirrored as sharp[-i], blurred[s - i].

    1 for `box14`, with JPEG or without, whose even kernel averages i - 7 to i + 6 and so shifts by half a pixel. 0 for
    the others, as mirroring the kernel makes one that could as well have been drawn.
    """
    return int(recipe in _BOXES)


def _offsets(radius_px: float) -> NDArray[np.float64]:
    reach = math.ceil(radius_px)
    return np.arange(-reach, reach + 1, dtype=np.float64)


def _disk(radius_px: float) -> NDArray[np.float64]:
    x = _offsets(radius_px + 0.5)
    # Antialiased: the rim falls from 1 to 0 over one pixel, so the radius acts continuously.
    return np.clip(radius_px + 0.5 - np.hypot(x, x[:, None]), 0, 1)


def _anisotropic(sigma_px: list[float], angle_rad: float) -> NDArray[np.float64]:
    x = _offsets(4 * max(sigma_px))
    y = x[:, None]
    u = math.cos(angle_rad) * x + math.sin(angle_rad) * y
    v = math.cos(angle_rad) * y - math.sin(angle_rad) * x
    return np.exp(-0.5 * ((u / sigma_px[0]) ** 2 + (v / sigma_px[1]) ** 2))


# === Carrying it out ===


def degrade(sharp: NDArray[np.uint8], degradation: Degradation) -> NDArray[np.uint8]:
    """Return `sharp`, (H, W, 3) uint8 RGB, as the degradation leaves it, of the same shape."""
    if sharp.dtype != np.uint8 or sharp.ndim != 3 or sharp.shape[2] != 3:
        raise ValueError(f"want (H, W, 3) uint8, got {sharp.shape} {sharp.dtype}")
    if degradation.recipe == "photo":
        return _photograph(sharp, degradation)
    blurred: NDArray[np.uint8]
    if degradation.recipe in _BOXES:
        blurred = cv2.blur(sharp, (14, 14), borderType=cv2.BORDER_REFLECT_101)
    else:
        # In float32: on 8 bits OpenCV would round the kernel as well.
        blurred = cv2.convertScaleAbs(_filter(sharp.astype(np.float32), degradation))
    return _saved(blurred, degradation.parameters)


def _filter(picture: NDArray[np.float32], degradation: Degradation) -> NDArray[np.float32]:
    filtered: NDArray[np.float32]
    taps = separable(degradation)
    if taps is not None:
        filtered = cv2.sepFilter2D(picture, -1, taps, taps, borderType=cv2.BORDER_REFLECT_101)
    else:
        filtered = cv2.filter2D(picture, -1, psf(degradation), borderType=cv2.BORDER_REFLECT_101)
    # Large kernels go through the DFT, which may leave a zero slightly below zero.
    return np.maximum(filtered, 0)


def _photograph(sharp: NDArray[np.uint8], degradation: Degradation) -> NDArray[np.uint8]:
    # Light adds up linearly, before the camera clips and encodes it. Blurring display values would
    # dim the streaks of lamps, and models trained on that do worse on real photos (RSBlur).
    drawn = degradation.parameters
    light = _LIGHT[sharp]
    light[sharp >= HIGHLIGHT_LEVEL] += drawn["highlight"]
    light = _filter(light, degradation)
    noise = np.random.default_rng(drawn["noise_seed"]).standard_normal(light.shape, np.float32)
    light += np.sqrt(np.float32(drawn["shot"]) * light + np.float32(drawn["read"])) * noise
    light = np.clip(light, 0, 1)
    # sRGB, IEC 61966-2-1.
    display = np.where(light <= 0.0031308, 12.92 * light, 1.055 * cv2.pow(light, 1 / 2.4) - 0.055)
    blurred: NDArray[np.uint8] = cv2.convertScaleAbs(display, alpha=255)
    return _saved(blurred, drawn)


def _saved(picture: NDArray[np.uint8], drawn: Mapping[str, Any]) -> NDArray[np.uint8]:
    quality = drawn.get("jpeg_quality")
    return picture if quality is None else pictures.jpeg(picture, quality, drawn["jpeg_phase_px"])


def noise_variance(degradation: Degradation) -> float:
    """Return the variance of all that is not blur, in units of [0, 1]² of display values.

    Rounding to 8 bits, the error of JPEG, and for `photo` the sensor's noise at mid-grey.
    """
    variance = 1 / 12 / 255**2
    drawn = degradation.parameters
    if degradation.recipe == "photo":
        variance += _MID_SLOPE**2 * (drawn["shot"] * _MID_LIGHT + drawn["read"])
    if drawn.get("jpeg_quality") is not None:
        # Fitted to 30 blurred BSDS500 crops with little noise: 19.3 levels² at quality 60, 10.6 at
        # 80, 5.7 at 90, 2.2 at 98; the line is within 0.4 of them.
        variance += (47.3 - 0.46 * drawn["jpeg_quality"]) / 255**2
    return float(variance)


_DISPLAY = np.arange(256) / 255
_LIGHT: NDArray[np.float32] = np.where(
    _DISPLAY <= 0.04045, _DISPLAY / 12.92, ((_DISPLAY + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_MID_LIGHT, _MID_SLOPE = float(_LIGHT[128]), 1 / 255 / float(_LIGHT[129] - _LIGHT[128])
