"""Writes blur.npz: a small sharp picture and what every recipe makes of it.

Run it only when a recipe is meant to change:  python tests/golden/make_blur.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deblur import blur

CASES = [(recipe, key) for recipe in blur.RECIPES for key in ("a", "b")]
# `photo` draws what it does: these keys cover its four blurs, with JPEG and without.
CASES += [("photo", key) for key in "cdefgh"]


def sharp_picture(size_px: int = 24) -> np.ndarray:
    """Return a picture with edges, a gradient, a texture and a clipped highlight."""
    rng = np.random.default_rng(0)
    picture = rng.integers(60, 120, (size_px, size_px, 3))
    picture[:, size_px // 2 :] += np.arange(size_px)[:, None, None] * 3
    picture[3:10, 3:16] = (230, 40, 20)
    picture[15:20, 5:10] = 255
    return np.clip(picture, 0, 255).astype(np.uint8)


def main() -> None:
    """Write the file next to this one."""
    sharp = sharp_picture()
    arrays = {"sharp": sharp}
    for recipe, key in CASES:
        degradation = blur.draw(recipe, seed=0, key=key)
        arrays[f"{recipe}-{key}"] = blur.degrade(sharp, degradation)
        arrays[f"{recipe}-{key}.json"] = np.array(degradation.to_json())
    np.savez_compressed(Path(__file__).with_name("blur.npz"), **arrays)


if __name__ == "__main__":
    main()
