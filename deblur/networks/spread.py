"""Pixels spread from channels: half of the size becomes the whole."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

Tensor = Any


@keras.saving.register_keras_serializable("deblur")
class DepthToSpace(layers.Layer):
    """(B, H, W, 4 C) to (B, 2 H, 2 W, C), without the checkerboards of transposed convolutions."""

    def call(self, x: Tensor) -> Tensor:
        """Spread each pixel's channels over two by two."""
        return ops.depth_to_space(x, 2)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Twice the sides."""
        batch, height, width, depth = shape
        return (batch, height and 2 * height, width and 2 * width, depth and depth // 4)
