from __future__ import annotations

import numpy as np
import pytest

from deblur.networks import dormant, network


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(3).random((2, 32, 48, 3), np.float32)


def test_dormant_units_begin_anew_and_the_network_does_what_it_did(pictures: np.ndarray) -> None:
    generator = network("wiener-photo-deep").generator()
    rng = np.random.default_rng(4)
    for weight in generator.weights:
        weight.assign_add(rng.normal(0, 0.02, weight.shape).astype(np.float32))
    first, last, scale = (generator.get_layer(f"up2_0_{part}") for part in ("in", "out", "scale"))
    kernel, bias = first.get_weights()
    dead = np.arange(len(bias)) % 3 == 0
    first.set_weights([kernel, np.where(dead, -1e3, bias)])
    before = generator(pictures, training=True)
    shares = dormant.shares(generator, pictures)
    assert (shares["up2_0_in"][dead] == 0).all()
    asleep = {name: share < dormant.LEAST_ACTIVE for name, share in shares.items()}
    count = dormant.revive(generator, pictures, seed=5)
    assert count == sum(each.sum() for each in asleep.values()) >= dead.sum()
    np.testing.assert_allclose(generator(pictures, training=True), before, atol=1e-4)
    assert (
        dormant.shares(generator, pictures)["up2_0_in"][dead] > dormant.LEAST_ACTIVE
    ).mean() > 0.9
    # What was awake is as it was.
    awake = ~asleep["up2_0_in"]
    np.testing.assert_array_equal(first.kernel.numpy()[..., awake], kernel[..., awake])
    assert (last.kernel.numpy()[:, :, ~awake] == 0).all()
    assert (scale.bias.numpy()[~awake] == 1).all()


def test_units_of_the_context_begin_active_on_half_of_the_pictures() -> None:
    generator = network("wiener-photo-deep").generator()
    rng = np.random.default_rng(4)
    for weight in generator.weights:
        weight.assign_add(rng.normal(0, 0.02, weight.shape).astype(np.float32))
    context = generator.get_layer("context")
    kernel, bias = context.get_weights()
    dead = np.arange(len(bias)) % 5 > 0
    context.set_weights([kernel, np.where(dead, -1e3, bias)])
    level = np.linspace(0.1, 1, 12, dtype=np.float32)[:, None, None, None]
    pictures = level * rng.random((12, 32, 48, 3), np.float32)
    before = generator(pictures, training=True)
    dormant.revive(generator, pictures, seed=5)
    np.testing.assert_allclose(generator(pictures, training=True), before, atol=1e-4)
    np.testing.assert_allclose(dormant.shares(generator, pictures)["context"][dead], 0.5)
    assert (generator.get_layer("up2_0_scale").kernel.numpy()[dead] == 0).all()


def test_a_network_without_blocks_is_left_as_it_is(pictures: np.ndarray) -> None:
    generator = network("pix2pix-small").generator()
    assert dormant.revive(generator, pictures, seed=0) == 0
