from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur import tiles
from deblur.models import Card, Model
from deblur.networks import network
from deblur.restorer import TILE_BATCH, Restorer, Settings, compiled

NETWORK = "pix2pix-small"
ANY_SIZE = "wiener-box14"  # tiles of 256 pixels, and larger ones of larger photos
TILING = tiles.Tiling(256, 32, 256, 256)
DEPTHS = [np.uint8, np.uint16]
SIDES = [1, 2, 31, 255, 256, 257, 479, 480, 481, 600]
FEWER = [(257, 300), (64, 80), (256, 256), (1, 9)]
MIXED = [(300, 500), (64, 80), (256, 256), (257, 700), (1, 9), (480, 480)]


def model(generator: Any, name: str = NETWORK) -> Model:
    return Model(
        Card("mine", name, "0", "box14", "float32", {}, "", steps=0, seconds=0, seed=0),
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
def identity(tile_batch: int = TILE_BATCH, name: str = NETWORK) -> Restorer:
    return Restorer(model(Identity(), name), "float32", tile_batch)


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
    name=st.sampled_from([NETWORK, ANY_SIZE]),
)
def test_the_identity_for_any_stream(
    sizes: list[tuple[int, int]], dtype: type, tile_batch: int, name: str
) -> None:
    photos = [noise(*size, dtype, seed) for seed, size in enumerate(sizes)]
    restored = list(identity(tile_batch, name).restore(photos))
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


def test_tiles_of_larger_photos_go_alone() -> None:
    generator = Identity()
    restorer = Restorer(model(generator, ANY_SIZE), "float32")
    photos = [noise(511, 900), noise(512, 512), noise(700, 1100), noise(20, 20), noise(256, 90)]
    list(restorer.restore(photos))
    assert sorted(generator.traced, key=str) == [(1, None, None, 3), (TILE_BATCH, 256, 256, 3)]


def test_a_small_photo_does_not_wait_for_others_of_its_size() -> None:
    drawn = []

    def photos() -> Iterator[np.ndarray]:
        yield noise(20, 20)
        for number in range(30):
            drawn.append(number)
            yield noise(512, 512, seed=number)

    restored = identity(8, ANY_SIZE).restore(photos())
    np.testing.assert_array_equal(next(restored), noise(20, 20))
    assert len(drawn) == 8


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
    assert identity().settings == Settings("float32", TILING, TILE_BATCH)


# === Seams ===


@cache
def convolutions() -> Any:
    """Return a network of eight convolutions, which see 17 pixels: an unsharp mask in many steps."""
    smooth = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32) / 16
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    for channel in range(3):
        kernel[:, :, channel, channel] = smooth
    picture = keras.Input((None, None, 3))
    low = picture
    for _ in range(8):
        layer = keras.layers.Conv2D(3, 3, padding="same", use_bias=False)
        low = layer(low)
        layer.set_weights([kernel])
    detail = keras.layers.Subtract()([picture, low])
    return keras.Model(picture, keras.layers.Add()([picture, detail]))


def seams(height: int, width: int) -> np.ndarray:
    """Return where tiles meet: the pixels that more than one of them has."""
    layout = tiles.plan(height, width, TILING)
    masks = []
    for starts, length in ((layout.rows, height), (layout.columns, width)):
        covered = np.zeros(length, int)
        for start in starts:
            covered[start : start + 256] += 1
        masks.append(covered > 1)
    return masks[0][:, None] | masks[1][None, :]


def test_tiles_leave_no_seams() -> None:
    """Whole or in tiles: at most one level of 8 bits apart, and as near the sharp photo."""
    height, width = 700, 930
    rng = np.random.default_rng(5)
    grid = rng.random((height // 6, width // 6, 3), np.float32)
    sharp = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    sharp = np.rint(sharp * 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 2.0)

    unit = blurred[None].astype(np.float32) / 255
    whole = np.rint(np.asarray(convolutions()(unit))[0].clip(0, 1) * 255)
    tiled = next(Restorer(model(convolutions()), "float32").restore([blurred])).astype(np.float32)
    inside = np.zeros((height, width), bool)
    inside[16:-16, 16:-16] = True  # at the photo's own border both see the same zeros

    apart = np.abs(tiled - whole).max(axis=2)
    assert np.quantile(apart[inside], 0.99) == 0
    assert apart[inside].max() <= 1

    seam = seams(height, width) & inside
    elsewhere = ~seams(height, width) & inside
    assert min(seam.sum(), elsewhere.sum()) > 50_000

    def error(picture: np.ndarray, where: np.ndarray) -> float:
        return float(np.sqrt(np.mean((picture - sharp)[where] ** 2.0)))

    assert error(tiled, inside) < error(blurred.astype(np.float32), inside)
    assert error(tiled, seam) <= 1.001 * error(whole, seam)
    assert error(tiled, seam) <= 1.02 * error(tiled, elsewhere)


# === Memory ===


def short_of_memory(restorer: Restorer, most: int) -> list[int]:
    """Make a restorer's calls fail with more tiles than `most`; return the list of those made."""
    call, made = restorer._together, []

    def fail(batch: np.ndarray) -> np.ndarray:
        made.append(len(batch))
        if len(batch) > most:
            raise MemoryError
        return call(batch)

    restorer._together = restorer._alone = fail
    return made


@pytest.mark.parametrize(("most", "calls"), [(4, [6, 3]), (2, [6, 3, 2]), (1, [6, 3, 2, 1])])
def test_without_memory_for_a_batch_half_of_it_is_tried(most: int, calls: list[int]) -> None:
    restorer = Restorer(model(Identity()), "float32")
    made = short_of_memory(restorer, most)
    photos = [noise(700, 700), noise(300, 20), noise(64, 600)]
    for photo, result in zip(photos, restorer.restore(photos), strict=True):
        np.testing.assert_array_equal(result, photo)
    assert made[: len(calls)] == calls
    assert set(made[len(calls) :]) == {calls[-1]}
    assert restorer.tile_batch == calls[-1]
    assert restorer.settings.tile_batch == TILE_BATCH


@pytest.mark.parametrize("name", [NETWORK, ANY_SIZE])
def test_without_memory_for_one_tile_there_is_an_end(name: str) -> None:
    restorer = Restorer(model(Identity(), name), "float32")
    short_of_memory(restorer, 0)
    with pytest.raises(MemoryError):
        next(restorer.restore([noise(300, 300)]))


def test_what_the_device_calls_exhausted_is_a_lack_of_memory() -> None:
    import tensorflow as tf

    def exhausted(batch: Any, training: bool) -> Any:
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    with pytest.raises(MemoryError, match="no memory for 2 tiles"):
        compiled(exhausted)(np.zeros((2, 256, 256, 3), np.float32))


def test_it_has_no_files_that_a_killed_one_would_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    compiled(Identity())(np.zeros((2, 256, 256, 3), np.float32))
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("name", [NETWORK, "wiener-box14-lean", "wiener-photo-lean"])
def test_a_tile_is_rounded_alike_in_all_places_of_a_call(name: str) -> None:
    """To the bit, whatever the CPU; the black that fills a call up is a neighbour like any."""
    keras.utils.set_random_seed(0)
    generator = network(name).generator()
    # As trained: some layers begin with zeros, and would hide what those before them round.
    rng = np.random.default_rng(0)
    for weight in generator.weights:
        if "seed" not in weight.path:
            weight.assign(weight + rng.normal(0, 0.01, weight.shape))
    call, tile = compiled(generator), soft(256, 256) / np.float32(255)
    batch = np.stack([noise(256, 256, seed=seed) for seed in range(TILE_BATCH)]) / np.float32(255)
    results = []
    for place in range(TILE_BATCH):
        filled = batch.copy()
        filled[place] = tile
        results.append(call(filled)[place])
    assert all(np.array_equal(result, results[0]) for result in results)


# Where a CPU has no bfloat16, that takes ten times as long.
@pytest.mark.parametrize(
    ("policy", "dtype", "sizes"),
    [
        ("float32", np.uint8, MIXED),
        ("float32", np.uint16, MIXED),
        ("mixed_bfloat16", np.uint8, FEWER),
        ("mixed_bfloat16", np.uint16, FEWER),
    ],
)
def test_a_photo_s_pixels_do_not_depend_on_its_company(
    policy: str, dtype: type, sizes: list[tuple[int, int]]
) -> None:
    photos = [soft(*size, dtype) for size in sizes]
    alone = [next(small(policy).restore([photo])) for photo in photos]
    listed = list(range(len(photos)))
    mixed = [*listed[2::2], 0, *listed[1::2]]
    for order in (listed, listed[::-1], mixed):
        together = small(policy).restore(photos[index] for index in order)
        for index, result in zip(order, together, strict=True):
            np.testing.assert_array_equal(result, alone[index])


def test_nor_do_they_where_tiles_are_of_many_sizes() -> None:
    keras.utils.set_random_seed(0)
    restorer = Restorer(model(network(ANY_SIZE).generator(), ANY_SIZE), "float32")
    photos = [soft(*size) for size in [(20, 20), (520, 700), (300, 300)]]
    alone = [next(restorer.restore([photo])) for photo in photos]
    for result, expected in zip(restorer.restore(photos), alone, strict=True):
        np.testing.assert_array_equal(result, expected)


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
