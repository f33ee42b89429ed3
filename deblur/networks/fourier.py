"""Fourier transforms of pictures as matrices of cosines and sines, which any backend multiplies and ONNX has."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from keras import ops

Tensor = Any


class Spectrum(NamedTuple):
    """Real and imaginary part, (..., frequencies down, frequencies across)."""

    real: Tensor
    imaginary: Tensor

    def power(self) -> Tensor:
        """Return the square of its absolute value."""
        return ops.square(self.real) + ops.square(self.imaginary)

    def times(self, other: Spectrum) -> Spectrum:
        """Return the product: the spectrum of a circular convolution."""
        return Spectrum(
            self.real * other.real - self.imaginary * other.imaginary,
            self.real * other.imaginary + self.imaginary * other.real,
        )

    def plus(self, other: Spectrum) -> Spectrum:
        """Return the sum."""
        return Spectrum(self.real + other.real, self.imaginary + other.imaginary)

    def conjugate(self) -> Spectrum:
        """Return the spectrum of the same turned around."""
        return Spectrum(self.real, -self.imaginary)

    def scaled(self, factor: Tensor) -> Spectrum:
        """Return it multiplied by a real factor."""
        return Spectrum(self.real * factor, self.imaginary * factor)


class Grid:
    """The frequencies of a torus, (down, across), those across from 0 on, as those of a real picture are.

    Those down are 0, 1 ... m - 1 and -1, -2 ... -m: products with the waves of 0 to m serve both.

    Args:
        height, width: of the torus in pixels, multiples of 4.
        lower: whether only the lower half of the frequencies are taken, in both directions.

    Attributes:
        v, u: angular frequencies down, (V, 1), and across, (U,).
    """

    def __init__(self, height: Any, width: Any, *, lower: bool = False) -> None:
        self.height, self.width, self._lower = height, width, lower
        most = [side // 4 if lower else side // 2 for side in (height, width)]
        # The highest frequency of an even side is its own negative. The lower half of the frequencies is
        # without its upper bound: of numbers that are no multiple of a vector's CPUs round the last otherwise.
        self._down = ops.arange(most[0] + 1, dtype="int32")
        self._across = ops.arange(most[1] + (not lower), dtype="int32")
        down = ops.concatenate([self._down[:-1], -self._down[1:]])
        v, u = (
            2 * math.pi * ops.cast(orders, "float32") / ops.cast(side, "float32")
            for orders, side in ((down, height), (self._across, width))
        )
        self.v, self.u = v[:, None], u

    def at(self, rows: Tensor, columns: Tensor, mirror: int = 0) -> Places:
        """Return the places on the torus where values lie.

        Args:
            rows, columns: int32.
            mirror: by how many pixels values are continued as their mirror image, at all sides, where
                they are analysed.
        """
        # Those across stand for two, but the first and, of an even side, the last.
        twice = self._across > 0
        if not self._lower:
            twice = twice & (self._across < self.width // 2)
        return Places(
            _waves(self._down, rows, self.height, mirror),
            _waves(self._across, columns, self.width, mirror),
            ops.where(twice, 2.0, 1.0) / ops.cast(self.height * self.width, "float32"),
        )


class _Waves(NamedTuple):
    cosines: Tensor  # (frequencies, places)
    sines: Tensor


class Places(NamedTuple):
    """Rows and columns of a grid's torus: what each frequency has there."""

    down: _Waves
    across: _Waves
    share: Tensor

    def analyse(self, values: Tensor) -> Spectrum:
        """Return the spectrum of (..., H, W) float32 values at these places, with nothing elsewhere."""
        real = ops.matmul(values, ops.transpose(self.across.cosines))
        imaginary = -ops.matmul(values, ops.transpose(self.across.sines))
        cosines, sines = self.down
        even = Spectrum(ops.matmul(cosines, real), ops.matmul(cosines, imaginary))
        odd = Spectrum(ops.matmul(sines, imaginary), -ops.matmul(sines, real))
        return Spectrum(
            *(
                ops.concatenate([(a + b)[..., :-1, :], (a - b)[..., 1:, :]], axis=-2)
                for a, b in zip(even, odd, strict=True)
            )
        )

    def synthesise(self, spectrum: Spectrum) -> Tensor:
        """Return the values at these places, which are not mirrored, that have the spectrum."""
        parts = [ops.split(each, 2, axis=-2) for each in spectrum.scaled(self.share)]
        (even_real, odd_real), (even_imaginary, odd_imaginary) = (
            (_below(up) + _above(down), _below(up) - _above(down)) for up, down in parts
        )
        cosines, sines = (ops.transpose(waves) for waves in self.down)
        real = ops.matmul(cosines, even_real) - ops.matmul(sines, odd_imaginary)
        imaginary = ops.matmul(cosines, even_imaginary) + ops.matmul(sines, odd_real)
        return ops.matmul(real, self.across.cosines) - ops.matmul(imaginary, self.across.sines)


def _below(values: Tensor) -> Tensor:
    """Return (..., F, N) values with a row of zeros below them."""
    return ops.concatenate([values, ops.zeros_like(values[..., :1, :])], axis=-2)


def _above(values: Tensor) -> Tensor:
    return ops.concatenate([ops.zeros_like(values[..., :1, :]), values], axis=-2)


def _waves(orders: Tensor, places: Tensor, period: Any, mirror: int = 0) -> _Waves:
    # Whole turns are taken off as integers, which float32 would round.
    turns = ops.mod(orders[:, None] * places, period)
    angle = ops.cast(turns, "float32") * (2 * math.pi / ops.cast(period, "float32"))
    waves = _Waves(ops.cos(angle), ops.sin(angle))
    if not mirror:
        return waves
    # What is mirrored at the first place, and at the last, is the value's own wave elsewhere.
    for axis in (places[0], places[-1]):
        away = ops.abs(places - axis)
        there = _waves(orders, 2 * axis - places, period)
        here = ops.cast((away > 0) & (away <= mirror), "float32")
        waves = _Waves(waves.cosines + there.cosines * here, waves.sines + there.sines * here)
    return waves
