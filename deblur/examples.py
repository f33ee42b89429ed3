"""What a model sees of a photo in one epoch: a blurred crop, and the same sharp.

Either of a stored pair, whose blur is what it is, or of a sharp photo, which is cut, turned and
blurred anew in each epoch. What is drawn depends on the run's seed, the photo's key and the epoch
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from deblur import blur, pairs, pictures, seeds
from deblur.jitter import jitter

# More than the reach of any kernel that is drawn: 16 of anisotropic, 8 of defocus and box14; of
# motion, the 21 that half of the widest path is.
_MARGIN_PX = 24
# Of photos straight from a camera the smallest details are softer than their pixels, which
# shrinking mends; and one photo is so several. Scales are drawn log-uniformly from here to 1, and
# the middle of them is what held-out photos are validated at.
_LEAST_SCALE = 0.35
# Photos that were made smaller by area are soft, by Lanczos crisp, and many are sharpened then, as web
# pages have them. wiener-box14, trained on the first alone, gained 1.5 dB over the exact Wiener filter
# on 40 photos made so, 1.1 on the same by Lanczos, and 0.7 on 65 photos of a web page.
_LANCZOS_SHARE, _SHARPENED_SHARE = 0.5, 0.25
_SHARPENED_BY, _SHARPENED_SIGMA_PX = (0.2, 0.8), 0.8
# Photos come as JPEG of their own size, with its traces. On from the shipped box14, 1,500 steps with such
# and without gained 1.20 and 1.18 dB over the exact filter on 160 photos of other sources.
_SAVED_SHARE, _SAVED_QUALITY = 0.5, (75, 95)
# How often a crop is blurred without what lies around it, as pairs are: by reflection. In cameras'
# photos something lies there; the box of the report was applied to what is shown, and its exact
# filter counts on that.
_REFLECTED_SHARE = 0.25
_REFLECTED_SHARE_OF = {"box14": 0.75, "box14-jpeg": 0.75}


class Example(NamedTuple):
    """Both (size, size, 3) uint8."""

    sharp: np.ndarray
    blurred: np.ndarray


@dataclass(frozen=True)
class Maker:
    """Makes examples.

    Attributes:
        recipe: the blur; for stored pairs, the one that they have.
        size_px: side of the examples.
        seed: the run's.
        validation_px: side of the middles to validate on, where photos are that large.
        stride_px: of which the sides of the middles of smaller pairs are multiples.
    """

    recipe: str
    size_px: int
    seed: int
    validation_px: int = 256
    stride_px: int = 1

    def of_pair(self, sharp: np.ndarray, blurred: np.ndarray, key: str, epoch: int) -> Example:
        """Return a window of a pair, or a shifted one, mirrored or not."""
        generator = seeds.generator(self.seed, key, f"jitter of epoch {epoch}")
        shift = blur.mirror_shift(self.recipe)
        size_px = self.size_px if self.size_px < min(sharp.shape[:2]) else None
        return Example(*jitter(sharp, blurred, generator, mirror_shift=shift, size_px=size_px))

    def of_photo(self, photo: np.ndarray, key: str, epoch: int) -> Example:
        """Return a crop of a sharp photo, (H, W, 3) uint8 of at least the size, blurred anew."""
        rng = seeds.generator(self.seed, key, f"crop of epoch {epoch}")
        least = min(photo.shape[:2])
        reflected = rng.random() < _REFLECTED_SHARE_OF.get(self.recipe, _REFLECTED_SHARE)
        margin = 0 if reflected else _MARGIN_PX
        margin = min(margin, (least - self.size_px) // 2)
        window = self.size_px + 2 * margin
        side = round(window / _LEAST_SCALE ** rng.uniform(0, 1))
        side = min(side, least)
        top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        crop = _shrunk(photo[top : top + side, left : left + side], window, rng)
        crop = np.rot90(crop, int(rng.integers(4)))
        sharp = np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
        drawn = blur.draw(self.recipe, seed=self.seed, key=f"{key}\0epoch {epoch}")
        inner = slice(margin, margin + self.size_px)
        blurred = blur.degrade(sharp, drawn)
        return Example(sharp[inner, inner], blurred[inner, inner])

    def held_out_pair(self, sharp: np.ndarray, blurred: np.ndarray) -> Example:
        """Return the middle of a pair to validate on: always the same."""
        side = min(self.validation_px, *sharp.shape[:2]) // self.stride_px * self.stride_px
        return Example(pairs.centre_crop(sharp, side), pairs.centre_crop(blurred, side))

    def held_out(self, photo: np.ndarray, key: str) -> Example:
        """Return the middle of a sharp photo to validate on: always the same."""
        least = min(photo.shape[:2])
        size_px = self.validation_px if least >= self.validation_px else self.size_px
        scale = max(_LEAST_SCALE**0.5, size_px / least)
        shape = [max(round(side * scale), size_px) for side in photo.shape[1::-1]]
        shrunk = cv2.resize(photo, shape, interpolation=cv2.INTER_AREA)
        sharp = pairs.centre_crop(shrunk, size_px)
        return Example(sharp, blur.degrade(sharp, blur.draw(self.recipe, seed=0, key=key)))


def _shrunk(crop: np.ndarray, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Return a square crop of this size, as soft or as crisp as photos of that size come."""
    lanczos, sharpened, saved = rng.random(3) < (_LANCZOS_SHARE, _SHARPENED_SHARE, _SAVED_SHARE)
    amount = rng.uniform(*_SHARPENED_BY)
    quality = int(rng.integers(*_SAVED_QUALITY, endpoint=True))
    phase_px = rng.integers(blur.JPEG_BLOCK_PX, size=2).tolist()
    if len(crop) == size_px:
        return crop
    if lanczos:  # Pillow's, since OpenCV's has no filter against aliasing
        small = np.asarray(
            Image.fromarray(crop).resize((size_px, size_px), Image.Resampling.LANCZOS)
        )
    else:
        small = cv2.resize(crop, (size_px, size_px), interpolation=cv2.INTER_AREA)
    if sharpened:
        soft = cv2.GaussianBlur(small, (0, 0), _SHARPENED_SIGMA_PX)
        small = cv2.addWeighted(small, 1 + amount, soft, -amount, 0)
    return pictures.jpeg(small, quality, phase_px) if saved else small
