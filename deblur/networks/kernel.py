"""The blur that a restored picture tells of: its kernel is estimated, and what it explains is put right.

A U-Net of 3 x 3 convolutions does not find out which way a hand shook. Yet the blurred picture and what
was restored from it tell: the kernel is that which makes the one of the other. `Evidence` correlates
their gradients, `estimate` reads a kernel from that, and `Deconvolution` adds to the restored picture
what, blurred by the kernel, is missing from the blurred one: "Learning to Deblur", Schuler et al., TPAMI
2016, in one round, beside a network that has done most of the work.

All is luma of linear light, in which photos are blurred.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from deblur.networks.convolution import DepthToSpace, conv, up
from deblur.networks.fourier import Grid, Places, Spectrum

Tensor = Any

_register = keras.saving.register_keras_serializable("deblur")

REACH = 24
"""Kernels are (2 REACH, 2 REACH), centred at REACH: shaken paths of `blur` reach 21 pixels, disks 8."""

_LUMA = (0.2126, 0.7152, 0.0722)  # of linear light, ITU-R BT.709
# IEC 61966-2-1: a line, then a curve. As sums of both, since `ops.where` takes more time than the power.
_DISPLAY_KNEE, _LIGHT_KNEE = 0.04045, 0.0031308
_CURVE_FROM = 0.0031308104  # light at the knee, and float32's error more: black is 0


def to_light(display: Tensor) -> Tensor:
    """Return the linear light of display values, which are clipped to [0, 1]."""
    curve = _power((ops.clip(display, _DISPLAY_KNEE, 1.0) + 0.055) / 1.055, 2.4)
    return ops.clip(display, 0.0, _DISPLAY_KNEE) / 12.92 + ops.maximum(curve - _CURVE_FROM, 0.0)


def to_display(light: Tensor) -> Tensor:
    """Return the display values of linear light, which is clipped to [0, 1]."""
    line = 12.92 * (ops.clip(light, 0.0, _LIGHT_KNEE) - _LIGHT_KNEE)
    return line + 1.055 * _power(ops.clip(light, _LIGHT_KNEE, 1.0), 1 / 2.4) - 0.055


def _power(positive: Tensor, exponent: float) -> Tensor:
    # Within 3e-7 of `ops.power`, in a quarter of its time.
    return ops.exp(exponent * ops.log(positive))


def _luma(picture: Tensor) -> Tensor:
    """(B, H, W, 3) display values to (B, H, W) linear luma."""
    return ops.matmul(to_light(picture), ops.convert_to_tensor(_LUMA, "float32"))


def _shifts() -> Tensor:
    return ops.arange(-REACH, REACH, dtype="int32")


def _all(grid: Grid, height: Any, width: Any, mirror: int = 0) -> Places:
    """Return the places of a picture that begins where the grid does."""
    rows, columns = (ops.arange(side, dtype="int32") for side in (height, width))
    return grid.at(rows, columns, mirror)


# === Layers ===


@_register
class Evidence(layers.Layer):
    """[blurred, restored], (B, H, W, 3) in [0, 1], to maps (B, 48, 48, 9) over shifts and (B, 4) levels.

    The maps are estimates of the kernel by least squares between gradients, with six degrees of caution,
    of which two heed strong edges most, and the autocorrelations of both pictures' gradients, one
    of them whitened. The levels say how strong gradients are in the upper half of the frequencies, and
    below it, as if all pictures had 256 x 256 pixels.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(autocast=False, **options)

    def call(self, pictures: Sequence[Tensor], training: bool | None = None) -> list[Tensor]:
        """Correlate. Nobody learns by it to restore what is good evidence and nothing else."""
        if training:
            pictures = [ops.stop_gradient(picture) for picture in pictures]
        blurred, restored = (_luma(picture) for picture in pictures)
        height, width = ops.shape(blurred)[1:3]
        fade = _fade(height)[:, None] * _fade(width)
        mean = ops.mean(blurred, axis=(1, 2), keepdims=True)
        blurred, restored = (blurred - mean) * fade, (restored - mean) * fade
        grid = Grid(height, width)
        here = _all(grid, height, width)
        seen, known = here.analyse(blurred), here.analyse(restored)
        steep = 4 - 2 * ops.cos(grid.v) - 2 * ops.cos(grid.u)  # the power of both differences
        across = ops.roll(restored, -1, 2) - restored
        down = ops.roll(restored, -1, 1) - restored
        edges = ops.square(across) + ops.square(down)
        edges /= edges + _STRONG * ops.mean(edges, axis=(1, 2), keepdims=True) + _DARK
        strong_across, strong_down = here.analyse(edges * across), here.analyse(edges * down)

        power, strong_power = known.power() * steep, strong_across.power() + strong_down.power()
        common = seen.times(known.conjugate()).scaled(steep)
        strong = strong_across.conjugate().times(_difference(grid.u))
        strong = strong.plus(strong_down.conjugate().times(_difference(grid.v))).times(seen)
        own = seen.power() * steep
        spectra = [common.scaled(1 / (power + each * _mean(power) + _DARK)) for each in _CAUTION]
        spectra += [
            strong.scaled(1 / (strong_power + each * _mean(strong_power) + _DARK))
            for each in _STRONG_CAUTION
        ]
        nothing = ops.zeros_like(own)
        spectra += [
            Spectrum(each, nothing) for each in (own, own / (own + _mean(own) + _DARK), power)
        ]
        shifts = _shifts()
        moved = grid.at(shifts, shifts)
        maps = [moved.synthesise(spectrum) for spectrum in spectra]
        centre = ops.cast((shifts[:, None] == 0) & (shifts == 0), "float32")
        for index in (-3, -1):
            maps[index] /= ops.sum(maps[index] * centre, axis=(1, 2), keepdims=True) + _DARK
        maps[-2] *= 1 - centre
        high = ops.cast(ops.square(grid.v) + ops.square(grid.u) > (0.5 * math.pi) ** 2, "float32")
        # Power grows with the number of pixels.
        share = _LEVELS_PX**2 / ops.cast(height * width, "float32")
        levels = [
            ops.log(share * ops.mean(each * part, axis=(1, 2)) + _DARK)
            for each in (own, power)
            for part in (high, 1 - high)
        ]
        return [
            ops.stack(maps, axis=-1) * ops.convert_to_tensor(_SCALES, "float32"),
            ops.stack(levels, axis=-1) / 4,
        ]

    def compute_output_shape(
        self, shapes: Sequence[tuple[int | None, ...]]
    ) -> list[tuple[int | None, ...]]:
        """Maps and levels."""
        batch = shapes[0][0]
        return [(batch, 2 * REACH, 2 * REACH, len(_SCALES)), (batch, 4)]


_CAUTION, _STRONG_CAUTION = (0.03, 0.3, 1.0, 4.0), (0.3, 2.0)  # shares of the mean power
_STRONG = 8.0  # times the mean square of a gradient, where it counts for half
_DARK = 1e-12
_SCALES = (80.0, 144.0, 215.0, 382.0, 89.0, 166.0, 7.7, 286.0, 9.0)  # to deviations of 1
_FADE_PX = 16
_LEVELS_PX = 256  # side of the tiles that levels are those of


def _fade(size: Any) -> Tensor:
    index = ops.arange(size, dtype="float32") + 0.5
    return ops.clip(ops.minimum(index, ops.cast(size, "float32") - index) / _FADE_PX, 0.0, 1.0)


def _difference(angular: Tensor) -> Spectrum:
    """Return the spectrum of the difference to the next pixel."""
    return Spectrum(ops.cos(angular) - 1, ops.sin(angular))


def _mean(power: Tensor) -> Tensor:
    return ops.mean(power, axis=(1, 2), keepdims=True)


@_register
class Kernel(layers.Layer):
    """(B, 48, 48, 1) logits to (B, 48, 48) kernels: not negative, sum 1, and a Gaussian if all are 0."""

    def call(self, logits: Tensor) -> Tensor:
        """Normalise."""
        shifts = ops.cast(_shifts(), "float32")
        near = -(ops.square(shifts[:, None]) + ops.square(shifts)) / (2 * _START_PX**2)
        flat = ops.reshape(2 * ops.cast(logits[..., 0], "float32") + near, (-1, 4 * REACH**2))
        return ops.reshape(ops.softmax(flat), (-1, 2 * REACH, 2 * REACH))

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """One channel less."""
        return tuple(shape[:3])


_START_PX = 6.0


@_register
class Deconvolution(layers.Layer):
    """[blurred, restored, kernel, caution] to the restored picture and what it lacks.

    What is missing from the blurred picture, and would be there if the restored one were right,
    is deconvolved by a Wiener filter and added, in all colours alike. Its noise, as shares of what the
    restored picture lacks, is exp(caution) at eight frequencies. It takes the lower half of the
    frequencies across and down: of 30 shaken photos with their true kernels 24.86 dB for 25.03, and a
    third of the time.

    A kernel that explains no better than none how the blurred picture comes of the restored one has no say:
    of 160 sharp photos some came out at 13.8 dB otherwise.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(autocast=False, **options)

    def call(self, inputs: Sequence[Tensor], training: bool | None = None) -> Tensor:
        """Correct, and clip to [0, 1] outside training."""
        blurred, restored, kernel, caution = inputs
        height, width = ops.shape(blurred)[1:3]
        grid = Grid(height + 2 * _MARGIN_PX, width + 2 * _MARGIN_PX, lower=True)
        shifts, here = _shifts(), _all(grid, height, width)
        continued = _all(grid, height, width, _MARGIN_PX)
        transfer = grid.at(shifts, shifts).analyse(kernel)
        # As only the lower half of the frequencies is made again, only that is compared.
        seen, known = (continued.analyse(_luma(picture)) for picture in (blurred, restored))
        there, now, again = (
            to_display(here.synthesise(each)) for each in (seen, known, known.times(transfer))
        )
        missing = there - again
        unexplained, change = (
            ops.mean(ops.square(each), axis=(1, 2), keepdims=True) + _LEAST_CHANGE
            for each in (missing, there - now)
        )
        share = ops.clip(_SURE * (1 - unexplained / change), 0.0, 1.0)
        frequency = ops.sqrt(ops.sqrt(ops.square(grid.v) + ops.square(grid.u)) / math.pi)
        place = frequency * (caution.shape[-1] - 1)  # 1 is half a cycle a pixel
        knots = ops.arange(caution.shape[-1], dtype="float32")
        near = ops.maximum(1 - ops.abs(place[..., None] - knots), 0.0)
        caution = ops.clip(ops.cast(caution, "float32"), *_CAUTIONS)
        noise = ops.exp(ops.einsum("vuk,bk->bvu", near, caution))
        lacking = continued.analyse(missing).times(transfer.conjugate())
        lacking = lacking.scaled(share / (transfer.power() + noise))
        restored += here.synthesise(lacking)[..., None]
        return restored if training else ops.clip(restored, 0, 1)

    def compute_output_shape(
        self, shapes: Sequence[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """As the picture."""
        return tuple(shapes[0])


# Squared, in [0, 1]: half a level. A kernel has its whole say where it leaves half of a change unexplained.
_LEAST_CHANGE, _SURE = (0.5 / 255) ** 2, 2.0
_CAUTIONS = (-8.0, 8.0)  # where the exponential is neither nothing nor all
_MARGIN_PX = 32  # more than a kernel reaches


# === The estimate ===


def estimate(maps: Tensor, levels: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Return the kernel, (B, 48, 48), and the caution, (B, 8), that `Evidence` speaks for."""
    wide, wider, widest = _WIDTHS
    # Two by two shifts at a time.
    x = skip = _blocks(_conv(maps, wide, 6, dtype, "stem", strides=2), 2, dtype, "near")
    x = middle = _blocks(_conv(x, wider, 3, dtype, "down1", strides=2), 3, dtype, "middle")
    x = _blocks(_conv(x, widest, 3, dtype, "down2", strides=2), 2, dtype, "far")
    seen = _conv(x, widest, 1, dtype, "all_seen", activation="relu")
    common = layers.GlobalAveragePooling2D(dtype="float32", name="kernel_all")(seen)
    told = layers.Dense(widest, "relu", dtype=dtype, name="kernel_all_hidden")(common)
    told = layers.Dense(widest, dtype=dtype, name="kernel_all_told")(told)
    x = layers.Add(dtype=dtype, name="kernel_told")(
        [x, layers.Reshape((1, 1, widest), name="kernel_all_spread")(told)]
    )
    for other, name in ((middle, "up2"), (skip, "up1")):
        x = up(x, other, dtype, f"kernel_{name}", gain=2.0)
        x = _blocks(x, 2, dtype, f"{name}_again")
    logits = layers.Conv2D(
        4, 3, padding="same", kernel_initializer="zeros", dtype=dtype, name="kernel_logits"
    )(x)
    logits = DepthToSpace(dtype=dtype, name="kernel_logits_spread")(logits)
    kernel = Kernel(dtype="float32", name="kernel")(logits)

    even = layers.LayerNormalization(dtype="float32", name="kernel_all_even")(common)
    facts = layers.Concatenate(dtype="float32", name="kernel_facts")([even, levels])
    caution = layers.Dense(64, "relu", dtype="float32", name="kernel_caution_hidden")(facts)
    caution = layers.Dense(
        _CAUTION_KNOTS,
        kernel_initializer="zeros",
        bias_initializer=keras.initializers.Constant(_START_CAUTION),
        dtype="float32",
        name="kernel_caution",
    )(caution)
    return kernel, caution


_WIDTHS = (48, 96, 128)
_CAUTION_KNOTS, _START_CAUTION = 8, 3.0  # so that an untrained network changes little


def _conv(x: Tensor, filters: int, size: int, dtype: str, name: str, **options: Any) -> Tensor:
    return conv(x, filters, size, dtype, f"kernel_{name}", **{"gain": 2.0} | options)


def _blocks(x: Tensor, count: int, dtype: str, name: str) -> Tensor:
    width = x.shape[-1]
    for index in range(count):
        y = _conv(x, width, 3, dtype, f"{name}{index}_first", activation="relu")
        y = _conv(y, width, 3, dtype, f"{name}{index}_second", gain=0.1)
        x = layers.Add(dtype=dtype, name=f"kernel_{name}{index}_add")([x, y])
    return x
