"""One network's weights for another that has more layers, or more or fewer units inside its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deblur.networks.dormant import Units, blocks, outputs


def transfer(source: Any, target: Any, pictures: Sequence[np.ndarray]) -> None:
    """Give `target` the weights of `source`.

    It does what the source does, to begin with: blocks that only `target` has add nothing at first, and
    so do the units that a block of it has more of inside. Where it has fewer, those are kept that
    contribute most. Other layers that only `target` has keep what they were initialised with.

    Of the shipped `box14` of 2026-11 256 units inside each block of its deepest level can be 32, 128 of
    the third 32, and 64 of the second 48, for 0.00 dB on 120 photos.

    Args:
        source: a generator of `wiener_unet`, or of the same network as `target`.
        target: a generator.
        pictures: (H, W, 3) float32 in [0, 1] each, as the source is meant for.

    Raises:
        ValueError: if the source has a layer that the target lacks. Nothing is changed then.
    """
    mine = {layer.name: layer for layer in target.layers}
    theirs = {layer.name: layer.get_weights() for layer in source.layers if layer.weights}
    other = [
        units
        for units in blocks(source)
        if (here := mine.get(units.layer.name))
        and here.kernel.shape[:3] == units.layer.kernel.shape[:3]
        and here.filters != units.layer.filters
    ]
    for units, share in zip(other, _contributions(source, other, pictures), strict=True):
        most = np.argsort(-share, kind="stable")[: mine[units.layer.name].filters]
        theirs |= _fitted(units, np.sort(most), mine)
    for name, weights in theirs.items():
        here = mine.get(name)
        if here is None or [w.shape for w in here.weights] != [w.shape for w in weights]:
            raise ValueError(f"the network has no layer {name} of these shapes")
    for name, weights in theirs.items():
        mine[name].set_weights(weights)
    for units in blocks(target):
        if units.layer.name not in theirs:
            kernel, bias = units.followers[0].get_weights()
            units.followers[0].set_weights([np.zeros_like(kernel), bias])


def _contributions(
    source: Any, those: Sequence[Units], pictures: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return for each block how much each of its units adds to its result: a mean square."""
    last = [
        source.get_layer(f"{units.layer.name.removesuffix('_in')}_scaled")
        if units.scale
        else units.layer
        for units in those
    ]
    powers = [np.zeros(units.layer.filters) for units in those]
    for seen in outputs(source, last, pictures):
        for power, layer in zip(powers, last, strict=True):
            power += np.square(seen[layer.name].astype(np.float32)).mean(axis=(0, 1, 2))
    weights = (np.square(units.followers[0].kernel).sum(axis=(0, 1, 3)) for units in those)
    return [power * weight for power, weight in zip(powers, weights, strict=True)]


def _fitted(units: Units, kept: np.ndarray, mine: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """Return the weights of a block's layers with the kept units first, by the layers' names."""
    fitted = {}
    for layer in (units.layer, units.scale):
        if layer is not None:
            fitted[layer.name] = weights = mine[layer.name].get_weights()
            for fresh, known in zip(weights, layer.get_weights(), strict=True):
                fresh[..., : len(kept)] = known[..., kept]
    follower = units.followers[0]
    known, bias = follower.get_weights()
    kernel = np.zeros_like(mine[follower.name].get_weights()[0])
    kernel[:, :, : len(kept)] = known[:, :, kept]
    return fitted | {follower.name: [kernel, bias]}
