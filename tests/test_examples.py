from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from deblur import blur
from deblur.examples import Maker


def test_an_example_depends_on_seed_key_and_epoch_alone(photos: Any) -> None:
    photo = photos.pixels(300, 400)
    first = Maker("photo", 128, 1).of_photo(photo, "a", 3)
    again = Maker("photo", 128, 1).of_photo(photo, "a", 3)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    for maker, key, epoch in (
        (Maker("photo", 128, 2), "a", 3),
        (Maker("photo", 128, 1), "b", 3),
        (Maker("photo", 128, 1), "a", 4),
    ):
        other = maker.of_photo(photo, key, epoch)
        assert (other.sharp != first.sharp).any()


@pytest.mark.parametrize("recipe", blur.RECIPES)
@pytest.mark.parametrize("size", [(64, 64), (64, 90), (300, 200)])
def test_photos_of_any_size_that_suffices(photos: Any, recipe: str, size: tuple[int, int]) -> None:
    photo = photos.pixels(*size)
    for epoch in range(12):
        sharp, blurred = Maker(recipe, 64, 0).of_photo(photo, "a", epoch)
        assert sharp.shape == blurred.shape == (64, 64, 3)
        assert sharp.dtype == blurred.dtype == np.uint8


def test_the_blur_is_that_of_the_crop_or_of_what_lies_around(photos: Any) -> None:
    """Either way the middle is what the recipe makes of the sharp crop, to the bit."""
    photo = photos.pixels(300, 300)
    exact = 0
    for epoch in range(40):
        sharp, blurred = Maker("box14", 96, 0).of_photo(photo, "a", epoch)
        alone = cv2.blur(sharp, (14, 14), borderType=cv2.BORDER_REFLECT_101)
        assert np.array_equal(blurred[7:-6, 7:-6], alone[7:-6, 7:-6])
        exact += np.array_equal(blurred, alone)
    assert 20 <= exact <= 38  # three quarters reflect at their borders, as pairs do


def test_all_turns_and_scales_are_drawn(photos: Any) -> None:
    """A photo of one bright corner comes in eight ways, and its grain in many sizes."""
    ramp = np.linspace(0, 255, 256, dtype=np.uint8)
    photo = np.dstack([np.broadcast_to(ramp, (256, 256)), np.broadcast_to(ramp[:, None], (256, 256)),
                       np.zeros((256, 256), np.uint8)])  # fmt: skip
    ways, steepness = set(), set()
    for epoch in range(200):
        sharp, _ = Maker("box14", 64, 0).of_photo(photo, "a", epoch)
        slopes = [
            int(sharp[32, -1, channel]) - int(sharp[32, 0, channel]) for channel in range(2)
        ] + [int(sharp[-1, 32, channel]) - int(sharp[0, 32, channel]) for channel in range(2)]
        ways.add(tuple(np.sign(slope) if abs(slope) > 20 else 0 for slope in slopes))
        steepness.add(max(map(abs, slopes)))
    assert len(ways) == 8
    assert min(steepness) < 72
    assert max(steepness) > 115


@pytest.mark.parametrize("size", [64, 48])
def test_pairs_stay_pairs(photos: Any, size: int) -> None:
    sharp = photos.pixels(64, 64)
    blurred = blur.degrade(sharp, blur.draw("box14", seed=0, key="a"))
    for epoch in range(10):
        example = Maker("box14", size, 0).of_pair(sharp, blurred, "a", epoch)
        assert example.sharp.shape == (size, size, 3)
        inner = slice(7, size - 6)
        again = cv2.blur(example.sharp, (14, 14), borderType=cv2.BORDER_REFLECT_101)
        wide = np.abs(example.blurred.astype(int) - again)[inner, inner]
        # What the jitter reflects is the wide photo's blur, which the crop alone does not know.
        assert np.median(wide) == 0


def test_what_is_held_out_is_the_middle_and_does_not_depend_on_the_seed(photos: Any) -> None:
    photo = photos.pixels(100, 140)
    one, other = (Maker("gaussian", 64, seed, 96).held_out(photo, "a") for seed in (1, 2))
    shrunk = cv2.resize(photo, (134, 96), interpolation=cv2.INTER_AREA)
    assert np.array_equal(one.sharp, shrunk[:, 19:115])
    assert np.array_equal(one.blurred, other.blurred)
    drawn = blur.draw("gaussian", seed=0, key="a")
    assert np.array_equal(one.blurred, blur.degrade(one.sharp, drawn))
    # Smaller photos are validated on what they are trained on.
    assert Maker("gaussian", 64, 1, 128).held_out(photo, "a").sharp.shape == (64, 64, 3)
