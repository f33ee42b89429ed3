from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest

from deblur import blur
from deblur.jitter import jitter


class Drawn:
    """Stands in for a generator: draws this place, and a mirror or none."""

    def __init__(self, top: int, left: int, mirrored: bool, *bounds: tuple[int, int]) -> None:
        self._places, self._mirrored, self._bounds = [left, top], mirrored, bounds

    def integers(self, low: int, high: int) -> int:
        assert (low, high) in self._bounds
        return self._places.pop()

    def random(self) -> float:
        return 0.0 if self._mirrored else 0.999


@pytest.mark.parametrize(("kernel_px", "shift"), [(14, 1), (15, 0), (1, 0)])
@pytest.mark.parametrize("size", [(40, 48), (33, 33)])
def test_a_jittered_pair_is_a_pair_of_the_same_kernel(
    photos: Any, kernel_px: int, shift: int, size: tuple[int, int]
) -> None:
    """As if the sharp photo had been continued, shifted and mirrored first and blurred then."""
    assert blur.mirror_shift("box14") == 1
    height, width = size
    kernel = (kernel_px, kernel_px)
    sharp = photos.pixels(height, width)
    blurred = cv2.blur(sharp, kernel, borderType=cv2.BORDER_REFLECT_101)
    margin = 30
    wide = np.pad(sharp, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    for mirrored in (False, True):
        continued = np.ascontiguousarray(wide[:, ::-1]) if mirrored else wide
        expected = cv2.blur(continued, kernel)
        for top, left in itertools.product(range(-15, 16), repeat=2):
            # type: ignore[arg-type]
            made = jitter(sharp, blurred, Drawn(top, left, mirrored, (-15, 16)), mirror_shift=shift)
            y, x = margin + top, margin + (-left if mirrored else left)
            window = np.s_[y : y + height, x : x + width]
            where = f"top={top}, left={left}, mirrored={mirrored}"
            np.testing.assert_array_equal(made[0], continued[window], where)
            np.testing.assert_array_equal(made[1], expected[window], where)


def test_jitter_draws_every_shift_and_mirrors_half(photos: Any) -> None:
    column = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3))
    mirrored, lefts = 0, set()
    for epoch in range(400):
        sharp, _ = jitter(column, column, np.random.default_rng(epoch), mirror_shift=0)
        middle = sharp[0, 16:48, 0].astype(int)
        falls = middle[1] < middle[0]
        mirrored += falls
        lefts.add(int(middle[-1] - 16) if falls else int(middle[0] - 16))
    assert 150 < mirrored < 250
    assert lefts == set(range(-15, 16))


@pytest.mark.parametrize("shift", [0, 1])
def test_a_window_of_a_pair_is_a_pair(photos: Any, shift: int) -> None:
    height, width, size = 40, 48, 24
    kernel = (14, 14) if shift else (15, 15)
    sharp = photos.pixels(height, width)
    blurred = cv2.blur(sharp, kernel, borderType=cv2.BORDER_REFLECT_101)
    wide = np.pad(sharp, ((30, 30), (30, 30), (0, 0)), mode="reflect")
    for mirrored in (False, True):
        continued = np.ascontiguousarray(wide[:, ::-1]) if mirrored else wide
        expected = cv2.blur(continued, kernel)
        for place in range(height - size + 1):
            drawn = Drawn(place, place, mirrored, (0, height - size + 1), (0, width - size + 1))
            made = jitter(sharp, blurred, drawn, mirror_shift=shift, size_px=size)
            x = 30 + (width - size - place if mirrored else place)
            window = np.s_[30 + place : 30 + place + size, x : x + size]
            np.testing.assert_array_equal(made[0], continued[window])
            np.testing.assert_array_equal(made[1], expected[window])
