"""Convolutions, and the way back up from half of the size."""

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


def conv(x: Tensor, filters: int, kernel: int, dtype: str, name: str, **options: Any) -> Tensor:
    """Return a convolution that keeps the size, if it has no strides; `gain` is of its first weights."""
    gain = options.pop("gain", 1.0)
    initializer = keras.initializers.VarianceScaling(gain)
    return layers.Conv2D(
        filters,
        kernel,
        padding="same",
        kernel_initializer=initializer,
        dtype=dtype,
        name=name,
        **options,
    )(x)


def up(x: Tensor, skip: Tensor, dtype: str, name: str, **options: Any) -> Tensor:
    """Return twice the size, with what was there on the way down added."""
    x = conv(x, 4 * skip.shape[-1], 1, dtype, name, **options)
    x = DepthToSpace(dtype=dtype, name=f"{name}_spread")(x)
    return layers.Add(dtype=dtype, name=f"{name}_skip")([x, skip])
