"""Dormant units: all but never active, so that they neither do nor learn anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

# Of pixels, on average over photos. Until 2026-11-27 the recipes' rate was one for all weights, and nearly all
# units of the deeper blocks of `photo` and `box14` were below it (0 on most photos).
LEAST_ACTIVE = 1e-3
_LEAST_DEVIATION = 1e-3  # pictures that are all alike say nothing about a unit


class Units(NamedTuple):
    """A layer of hidden units, the layers that they lead to, and the one that multiplies them."""

    layer: Any
    followers: list[Any]
    scale: Any | None = None


def shares(generator: Any, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return, for each layer, the share of pixels at which each of its units is active.

    Args:
        generator: of `wiener_unet`, whose blocks are NAME_in, perhaps NAME_scale, and NAME_out, and whose
            `context`, if it has one, leads to the scales.
        pictures: (H, W, 3) float32 in [0, 1] each.
    """
    totals: dict[str, np.ndarray] = {}
    for seen in outputs(generator, [units.layer for units in _all_units(generator)], pictures):
        for name, output in seen.items():
            share = (output > 0).mean(axis=(0, 1, 2)) / len(pictures)
            totals[name] = totals.get(name, 0) + share
    return totals


def revive(generator: Any, pictures: Sequence[np.ndarray], *, seed: int) -> int:
    """Begin the dormant units anew, and return how many there were.

    What leads to them is drawn as at first and what they lead to is 0, so the network does what it did,
    and learns again. "ReDo", Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning",
    ICML 2023.

    Units of the context have one value a picture, of inputs that are means and differ little between
    pictures; drawn alone, they would be all the same or die again within some steps. So they are scaled
    and shifted to be active on half of the pictures, with a deviation of 1 before their activation
    (Mishkin & Matas, "All you need is a good init", ICLR 2016).

    Args:
        generator: of `wiener_unet`; others have no such units and are left as they are.
        pictures: (H, W, 3) float32 in [0, 1] each, as the network is meant for.
        seed: of the new weights.
    """
    count = 0
    active = shares(generator, pictures)
    for index, (layer, followers, scale) in enumerate(_all_units(generator)):
        dormant = active[layer.name] < LEAST_ACTIVE
        if not dormant.any():
            continue
        count += int(dormant.sum())
        kernel, bias = layer.get_weights()
        initializer = type(layer.kernel_initializer).from_config(
            layer.kernel_initializer.get_config() | {"seed": seed + index}
        )
        fresh, start = keras.ops.convert_to_numpy(initializer(kernel.shape)), np.zeros_like(bias)
        if isinstance(layer, keras.layers.Dense):
            fresh, start = _spread(generator, layer, fresh, pictures)
        layer.set_weights([np.where(dormant, fresh, kernel), np.where(dormant, start, bias)])
        for follower in followers:
            kernel, bias = follower.get_weights()
            follower.set_weights([np.where(dormant[:, None], 0, kernel), bias])
        if scale is not None:
            kernel, bias = scale.get_weights()
            scale.set_weights([np.where(dormant, 0, kernel), np.where(dormant, 1, bias)])
    return count


def blocks(generator: Any) -> list[Units]:
    """Return the units inside the blocks of a `wiener_unet`; none of other networks."""
    layers = {layer.name: layer for layer in generator.layers}
    return [
        Units(layer, [layers[f"{block}_out"]], layers.get(f"{block}_scale"))
        for name, layer in layers.items()
        if (block := name.removesuffix("_in")) != name
    ]


def _all_units(generator: Any) -> list[Units]:
    units = blocks(generator)
    layers = {layer.name: layer for layer in generator.layers}
    if "context" in layers:
        scales = [block.scale for block in units if block.scale]
        units += [
            Units(layers["context_seen"], [layers["context"]]),
            Units(layers["context"], scales),
        ]
    return units


def outputs(
    generator: Any, layers: Sequence[Any], pictures: Sequence[np.ndarray]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield for each picture the layers' (1, H, W, C) outputs by their names."""
    if not layers:
        return
    model = keras.Model(generator.input, {layer.name: layer.output for layer in layers})
    for picture in pictures:
        outputs = model(picture[None], training=False)
        yield {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}


def _spread(
    generator: Any, layer: Any, kernel: np.ndarray, pictures: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the kernel and a bias with which values have a median of 0 and a deviation of 1 over pictures."""
    before = generator.get_layer(f"{layer.name}_mean")
    means = [seen[before.name][0, 0, 0] for seen in outputs(generator, [before], pictures)]
    values = np.stack(means) @ kernel
    deviation = np.maximum(values.std(axis=0), _LEAST_DEVIATION)
    return kernel / deviation, -np.median(values, axis=0) / deviation
