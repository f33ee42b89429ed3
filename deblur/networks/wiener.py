"""Wiener filters for blurs that are guessed, as a layer without weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import layers, ops

from deblur.classical import OPPONENT

Tensor = Any


class Guess(NamedTuple):
    """A blur that the network is handed the Wiener filter of.

    Attributes:
        kind: `box` or `gaussian`.
        size_px: the box's side, or the Gaussian's standard deviation.
        noise: variance of the noise in levels of 8 bits, squared; 1/12 is that of rounding.
    """

    kind: Literal["box", "gaussian"]
    size_px: float
    noise: float


# Of luma and two colour differences, times the square of the frequency (cycles a pixel), as in
# `deblur.classical`; 40 photos: 28.8 dB with these powers, 28.6 with those.
_POWER = np.array([5e-4, 1e-5, 5e-6], np.float32)


class _Cosines(NamedTuple):
    """Along one side: analysis (m, n), synthesis (n, m), and the angular frequencies (m,)."""

    analysis: Tensor
    synthesis: Tensor
    angular: Tensor

    def coarse(self) -> _Cosines:
        """Return the lower half of the frequencies."""
        half = ops.shape(self.angular)[0] // 2
        return _Cosines(self.analysis[:half], self.synthesis[:, :half], self.angular[:half])


@keras.saving.register_keras_serializable("deblur")
class WienerDetail(layers.Layer):
    """(B, H, W, 3) in [0, 1] to (B, H, W, 3 K): what K Wiener filters would add to the picture.

    Mirrored at its borders a picture is a sum of cosines, and a blur by a symmetric kernel scales
    each of them. So the filter is exact to the last pixel: matrices of cosines from both sides (at
    256 pixels faster than any convolution so long), a gain each between. It has no weights.

    Of the colour differences the lower half of the frequencies is filtered, and what is finer is not
    in the results: that takes 0.58 of the multiplications. `box14` has 28.824 dB for 28.825 on 160
    photos of 256 pixels, 28.789 with a quarter; `photo` 23.587 with all, 23.587 and 23.589. A
    sum of cosines in bfloat16 takes a quarter off the layer's time, and leaves 28.822 and 23.587.

    Args:
        guesses: K blurs.
        mirror_shift: see `blur.mirror_shift`.
    """

    def __init__(
        self, guesses: Sequence[Sequence[Any]], *, mirror_shift: int = 0, **options: Any
    ) -> None:
        super().__init__(autocast=False, **options)
        self.guesses = tuple(Guess(*guess) for guess in guesses)
        self.mirror_shift = mirror_shift

    def call(self, picture: Tensor) -> Tensor:
        """Filter, in float32 until the gains, which exceed 100, and in the layer's dtype after them."""
        down, across = (self._cosines(size) for size in ops.shape(picture)[1:3])
        # Without its mean, so that bfloat16 has steps of a share of the contrast.
        centred = picture - ops.mean(picture, axis=(1, 2), keepdims=True)
        opponent = ops.transpose(ops.matmul(centred, OPPONENT.T), (0, 3, 1, 2))
        lumas = self._filter(opponent[:, :1], _POWER[:1], down, across)
        colours = self._filter(opponent[:, 1:], _POWER[1:], down.coarse(), across.coarse())
        restored = (
            ops.cast(ops.transpose(ops.concatenate(pair, axis=1), (0, 2, 3, 1)), "float32")
            for pair in zip(lumas, colours, strict=True)
        )
        return ops.concatenate([ops.matmul(each, OPPONENT) - centred for each in restored], axis=-1)

    def _filter(
        self, channels: Tensor, power: np.ndarray, down: _Cosines, across: _Cosines
    ) -> list[Tensor]:
        """Return the (B, C, H, W) channels through each filter, in the layer's dtype."""
        seen = ops.matmul(ops.matmul(down.analysis, channels), ops.transpose(across.analysis))
        # Cycles a pixel, squared; a mirrored picture's lowest are 1 / (2 n), and 0 has to be passed.
        squared = (down.angular[:, None] ** 2 + across.angular**2) / (4 * math.pi**2) + 1e-6
        rows, columns = (
            ops.cast(each, self.compute_dtype)
            for each in (down.synthesis, ops.transpose(across.synthesis))
        )
        filtered = []
        for guess in self.guesses:
            response = _response(guess, down.angular)[:, None] * _response(guess, across.angular)
            noise = (guess.noise / 255**2) * squared / power[:, None, None]
            restored = ops.cast(seen * (response / (response**2 + noise)), self.compute_dtype)
            filtered.append(ops.matmul(ops.matmul(rows, restored), columns))
        return filtered

    def _cosines(self, size: Any) -> _Cosines:
        index, last = ops.arange(size, dtype="int32"), size - 1
        place, order = index, index[:, None]
        synthesis = _cosine(order * place, 2 * last)
        if self.mirror_shift:
            # Sampled half a pixel off, where the last cosine is 0 and the first two samples are one.
            analysis = _cosine(order * (2 * place - 1), 4 * last)
            analysis *= ops.cast((place > 0) & (order < last), "float32")
            analysis *= ops.where(order > 0, 2.0, 1.0)
        else:
            half = ops.where((index > 0) & (index < last), 1.0, 0.5)
            analysis = 2 * synthesis * half[:, None] * half
        count = ops.cast(last, "float32")
        return _Cosines(analysis / count, synthesis, ops.cast(index, "float32") * (math.pi / count))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        guesses = [list(guess) for guess in self.guesses]
        return {**super().get_config(), "guesses": guesses, "mirror_shift": self.mirror_shift}

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Three channels a guess."""
        return (*shape[:-1], 3 * len(self.guesses))


def _cosine(numerator: Tensor, turn: Any) -> Tensor:
    # Whole turns are taken off as integers: of 65,025 of them float32 would leave three digits.
    angle = ops.cast(ops.mod(numerator, turn), "float32") / ops.cast(turn, "float32")
    return ops.cos(2 * math.pi * angle)


def _response(guess: Guess, angular: Tensor) -> Tensor:
    """Return by what the blur multiplies the cosines of these frequencies."""
    if guess.kind == "gaussian":
        return ops.exp(-0.5 * (guess.size_px * angular) ** 2)
    half = ops.maximum(0.5 * angular, 1e-4)  # the limit at 0 is 1
    return ops.sin(guess.size_px * half) / (guess.size_px * ops.sin(half))
