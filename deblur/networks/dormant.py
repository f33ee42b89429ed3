"""Dormant units of residual blocks: all but never active, so that they neither do nor learn anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

# Of pixels, on average over photos. Until 2026-11-27 the recipes' rate was one for all weights, and nearly all
# units of the deeper blocks of `photo` and `box14` were below it (0 on most photos).
LEAST_ACTIVE = 1e-3


def shares(generator: Any, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return, for each block, the share of pixels at which each of its units is active.

    Args:
        generator: of `wiener_unet`, whose blocks are NAME_in, perhaps NAME_scale, and NAME_out.
        pictures: (H, W, 3) float32 in [0, 1] each.
    """
    layers = [layer for layer in generator.layers if layer.name.endswith("_in")]
    if not layers:
        return {}
    seen = keras.Model(generator.input, [layer.output for layer in layers])
    totals = [np.zeros(layer.filters) for layer in layers]
    for picture in pictures:
        for total, active in zip(totals, seen(picture[None], training=False), strict=True):
            total += (keras.ops.convert_to_numpy(active) > 0).mean(axis=(0, 1, 2)) / len(pictures)
    return {
        layer.name.removesuffix("_in"): total for layer, total in zip(layers, totals, strict=True)
    }


def revive(generator: Any, pictures: Sequence[np.ndarray], *, seed: int) -> int:
    """Begin the dormant units anew, and return how many there were.

    What leads to them is drawn as at first and what they lead to is 0, so the network does what it did,
    and learns again. "ReDo", Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning",
    ICML 2023.

    Args:
        generator: of `wiener_unet`; others have no blocks and are left as they are.
        pictures: (H, W, 3) float32 in [0, 1] each, as the network is meant for.
        seed: of the new weights.
    """
    count = 0
    scales = {layer.name for layer in generator.layers if layer.name.endswith("_scale")}
    for index, (name, share) in enumerate(shares(generator, pictures).items()):
        dormant = share < LEAST_ACTIVE
        count += int(dormant.sum())
        first, last = (generator.get_layer(f"{name}_{part}") for part in ("in", "out"))
        kernel, bias = first.get_weights()
        initializer = type(first.kernel_initializer).from_config(
            first.kernel_initializer.get_config() | {"seed": seed + index}
        )
        fresh = keras.ops.convert_to_numpy(initializer(kernel.shape))
        first.set_weights([np.where(dormant, fresh, kernel), np.where(dormant, 0, bias)])
        kernel, bias = last.get_weights()
        last.set_weights([np.where(dormant[:, None], 0, kernel), bias])
        if f"{name}_scale" in scales:
            scale = generator.get_layer(f"{name}_scale")
            kernel, bias = scale.get_weights()
            scale.set_weights([np.where(dormant, 0, kernel), np.where(dormant, 1, bias)])
    return count
