from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur.models import Card, Model
from deblur.networks import network
from deblur.restorer import TILE_BATCH, Restorer, Settings

NETWORK = "pix2pix-small"
POLICIES = ["float32", "mixed_bfloat16"]
DEPTHS = [np.uint8, np.uint16]
SIDES = [1, 2, 31, 255, 256, 257, 479, 480, 481, 600]
MIXED = [(300, 500), (64, 80), (256, 256), (257, 700), (1, 9), (480, 480)]


def model(generator: Any) -> Model:
    return Model(
        Card("mine", NETWORK, "0", "box14", "float32", {}, "", steps=0, seconds=0, seed=0),
        generator,
    )


class Identity:
    """A generator that returns what it gets, and remembers the numbers of tiles."""

    def __init__(self) -> None:
        self.traced: list[tuple[int, ...]] = []

    def __call__(self, batch: Any, training: bool) -> Any:
        assert not training
        self.traced.append(tuple(batch.shape))
        return batch


@cache
def identity(tile_batch: int = TILE_BATCH) -> Restorer:
    return Restorer(model(Identity()), "float32", tile_batch)


@cache
def small(policy: str) -> Restorer:
    keras.utils.set_random_seed(0)
    return Restorer(model(network(NETWORK).generator(policy)), policy)


def noise(height: int, width: int, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng((seed, height, width))
    return rng.integers(0, np.iinfo(dtype).max, (height, width, 3), dtype=dtype, endpoint=True)


def soft(height: int, width: int, dtype: Any = np.uint8) -> np.ndarray:
    grid = np.random.default_rng((height, width)).random((5, 5, 3), np.float32)
    picture = cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.rint(picture * np.iinfo(dtype).max).astype(dtype)


# === With a network that does nothing ===


@pytest.mark.parametrize("dtype", DEPTHS)
def test_the_identity_gives_every_photo_back(dtype: type) -> None:
    photos = [noise(height, width, dtype) for height in SIDES for width in (SIDES[0], 257, 600)]
    restored = list(identity().restore(photos))
    assert len(restored) == len(photos)
    for photo, result in zip(photos, restored, strict=True):
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, photo)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(*[st.integers(1, 700)] * 2), max_size=4),
    dtype=st.sampled_from(DEPTHS),
    tile_batch=st.sampled_from([1, 3, 8]),
)
def test_the_identity_for_any_stream(
    sizes: list[tuple[int, int]], dtype: type, tile_batch: int
) -> None:
    photos = [noise(*size, dtype, seed) for seed, size in enumerate(sizes)]
    restored = list(identity(tile_batch).restore(photos))
    assert len(restored) == len(photos)
    for photo, result in zip(photos, restored, strict=True):
        np.testing.assert_array_equal(result, photo)


def test_depths_mix_in_one_call() -> None:
    photos = [noise(300, 40, np.uint8), noise(40, 300, np.uint16)]
    for photo, result in zip(photos, identity().restore(photos), strict=True):
        np.testing.assert_array_equal(result, photo)


def test_a_keras_model_serves_as_well() -> None:
    picture = keras.Input((256, 256, 3))
    linear = keras.Model(picture, keras.layers.Activation("linear")(picture))
    photo = noise(300, 300)
    np.testing.assert_array_equal(next(Restorer(model(linear), "float32").restore([photo])), photo)


def test_the_network_sees_one_shape_always() -> None:
    generator = Identity()
    list(Restorer(model(generator), "float32", 4).restore([noise(*size) for size in MIXED]))
    assert set(generator.traced) == {(4, 256, 256, 3)}


def test_nothing_in_nothing_out() -> None:
    assert list(identity().restore([])) == []


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int16),
    ],
    ids=lambda photo: f"{photo.shape}-{photo.dtype}",
)
def test_another_kind_of_array_is_refused(photo: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected .* received .*8.* " + str(photo.dtype)):
        next(identity().restore([photo]))


def test_settings_say_what_pixels_depend_on() -> None:
    assert identity().settings == Settings(
        "float32", tile_px=256, overlap_px=32, tile_batch=TILE_BATCH
    )


# === Laziness ===


def test_photos_are_drawn_when_their_tiles_are_needed() -> None:
    drawn = []

    def photos(height: int, width: int) -> Iterator[np.ndarray]:
        for number in range(6):
            drawn.append(number)
            yield noise(height, width, seed=number)

    large = identity(8).restore(photos(910, 910))  # 16 tiles: two calls, no rest
    assert drawn == []
    for number in range(3):
        np.testing.assert_array_equal(next(large), noise(910, 910, seed=number))
        assert drawn == list(range(number + 1))

    drawn.clear()
    odd = identity(8).restore(photos(700, 700))  # 9 tiles: the ninth waits for the next photo's
    next(odd)
    assert drawn == [0, 1]

    drawn.clear()
    assert len(list(identity(8).restore(photos(20, 20)))) == 6
    assert drawn == list(range(6))


# === With a network ===


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", DEPTHS)
def test_a_photo_s_pixels_do_not_depend_on_its_company(policy: str, dtype: type) -> None:
    photos = [soft(*size, dtype) for size in MIXED]
    alone = [next(small(policy).restore([photo])) for photo in photos]
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 4, 0, 5, 1, 3]):
        together = small(policy).restore(photos[index] for index in order)
        for index, result in zip(order, together, strict=True):
            np.testing.assert_array_equal(result, alone[index])


def test_another_number_of_tiles_changes_roundings_alone() -> None:
    photo = soft(300, 500)
    keras.utils.set_random_seed(0)
    other = Restorer(model(network(NETWORK).generator()), "float32", tile_batch=3)
    results = [next(each.restore([photo])).astype(int) for each in (other, small("float32"))]
    assert np.abs(results[0] - results[1]).max() <= 1


def test_a_tile_is_restored_as_the_network_does() -> None:
    photo = soft(256, 256)
    keras.utils.set_random_seed(0)
    expected = network(NETWORK).generator()(photo[None] / np.float32(255), training=False)
    result = next(small("float32").restore([photo]))
    assert np.abs(result - 255 * np.asarray(expected)[0]).max() <= 0.51
