from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deblur.networks import network
from deblur.networks.transfer import transfer
from deblur.networks.wiener_unet import generator


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(3).random((2, 32, 48, 3), np.float32)


def trained(**arguments: Any) -> Any:
    """Return a generator with weights as after a training: nothing is 0 in it."""
    built = generator(recipe="photo", **arguments)
    rng = np.random.default_rng(4)
    for weight in built.weights:
        weight.assign_add(rng.normal(0, 0.03, weight.shape).astype(np.float32))
    return built


SMALL: dict[str, Any] = {"widths": (8, 16), "blocks": (1, 2), "context": 12}


def test_the_same_network_gets_all_weights(pictures: np.ndarray) -> None:
    source, target = trained(**SMALL), generator(recipe="photo", **SMALL)
    transfer(source, target, pictures)
    for mine, theirs in zip(target.weights, source.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    "larger", [{"blocks": (2, 3)}, {"hidden": (11, 16)}, {"blocks": (3, 2), "hidden": (8, 20)}]
)
def test_a_larger_network_does_what_the_smaller_did(larger: Any, pictures: np.ndarray) -> None:
    source, target = trained(**SMALL), generator(recipe="photo", **SMALL | larger)
    transfer(source, target, pictures)
    expected = source(pictures, training=True)
    np.testing.assert_allclose(target(pictures, training=True), expected, atol=1e-5)
    # What is new can learn: it leads to nothing yet, but is not nothing.
    name = "down0_0_in" if "hidden" in larger else "down1_2_in"
    assert (np.abs(target.get_layer(name).kernel.numpy()).max(axis=(0, 1, 2)) > 0).all()


def test_a_narrower_network_keeps_the_units_that_contribute(pictures: np.ndarray) -> None:
    source = trained(**SMALL)
    kept = {}
    for layer in source.layers:
        if layer.name.endswith("_in"):
            # Units that are never active, that lead to nothing, or all but, and others.
            block = layer.name.removesuffix("_in")
            kernel, bias = layer.get_weights()
            kind = np.random.default_rng(len(kept)).permutation(len(bias)) % 4
            layer.set_weights([kernel, np.where(kind == 0, -1e3, bias)])
            out = source.get_layer(f"{block}_out")
            weights, shift = out.get_weights()
            factor = np.where(kind == 1, 0, np.where(kind == 2, 1e-8, 1))
            out.set_weights([weights * factor[:, None], shift])
            kept[layer.name] = kernel[..., kind == 3]
    target = generator(recipe="photo", **SMALL, hidden=(3, 5))
    transfer(source, target, pictures)
    expected = source(pictures, training=True)
    np.testing.assert_allclose(target(pictures, training=True), expected, atol=1e-5)
    for name, kernel in kept.items():
        mine = target.get_layer(name).kernel.numpy()
        assert all((kernel[..., unit, None] == mine).all((0, 1, 2)).any() for unit in range(2))


def test_the_scale_of_a_unit_counts(pictures: np.ndarray) -> None:
    source = trained(**SMALL)
    scale = source.get_layer("up0_0_scale")
    kernel, bias = scale.get_weights()
    silent = np.arange(8) % 2 == 0
    scale.set_weights([np.where(silent, 0, kernel), np.where(silent, 0, bias)])
    target = generator(recipe="photo", **SMALL, hidden=(4, 16))
    transfer(source, target, pictures)
    mine = target.get_layer("up0_0_in").kernel.numpy()
    np.testing.assert_array_equal(mine, source.get_layer("up0_0_in").kernel.numpy()[..., ~silent])


@pytest.mark.parametrize(
    ("source", "layer"),
    [
        (SMALL | {"blocks": (2, 2)}, "down0_1_in"),
        (SMALL | {"widths": (8, 24)}, "down1"),
        (SMALL | {"context": 16}, "context_seen"),
    ],
)
def test_what_the_target_lacks_is_told_and_nothing_changed(
    source: Any, layer: str, pictures: np.ndarray
) -> None:
    target = generator(recipe="photo", **SMALL)
    before = [weight.numpy() for weight in target.weights]
    with pytest.raises(ValueError, match=f"the network has no layer {layer} of these shapes"):
        transfer(trained(**source), target, pictures)
    for mine, old in zip(target.weights, before, strict=True):
        np.testing.assert_array_equal(mine, old)


@pytest.mark.parametrize("name", ["pix2pix-small", "wiener-box14"])
def test_networks_of_any_kind_are_transferred_to_their_own(name: str) -> None:
    source, target = network(name).generator(), network(name).generator()
    transfer(source, target, [])
    for mine, theirs in zip(target.trainable_weights, source.trainable_weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
