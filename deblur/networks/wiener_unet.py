"""A residual U-Net that is handed Wiener filters: what linear filters can do it need not learn.

The inverse of a wide blur is a filter of a hundred pixels that convolutions of 3 x 3 learn slowly,
while for a given kernel it is known. So the first layer computes it, for a few guesses of the blur,
and a U-Net does the rest: it sees the picture and what each filter would add, and returns, for each
pixel, how much of each to take and a residual. Deep Wiener deconvolution (Dong, Roth & Schiele,
NeurIPS 2020) filters features, by a kernel that it is told; here nothing is told, and where no
guess is right the weights can go to zero.

PSNR on 40 photos held out of training, 256 x 256 crops blurred by `box14` (21.50 dB; the exact
Wiener filter 28.65), after 120 and 240 s of CPU time (AdamW 1e-3, 4 crops of 128 x 128 a step; one
run each, at the middle and the end of its cosine):

    a U-Net of blocks 1, 1, 2, 4 alone                      25.07   25.82
    ... beside 5 trained separable filters of 193 taps      27.32           8 crops, first quarter
    ... beside the Wiener filters, added to the input       29.22   29.55
    ... the same, added to the first filter's result        29.61   29.82
    NAFNet of width 16 beside them, added to the input      26.22           0.48 s a step, not 0.21

What is built here differs from the fourth in its weights a pixel, which are shares of one, in two
deepest blocks for four, and in a second filter for colours too: with three of ten crops as JPEG, and
240 s, 29.52 and 26.64 dB from JPEG of quality 95 (the retuned filter 25.55 to 26.08), where the fourth
has 29.51 and 26.50, free weights 29.54 and 26.54, and four deepest blocks 29.47 and 26.55. For `photo`
(24.40 blurred), 240 s gave 24.78, and the U-Net alone 24.71: no proof of the guesses.

Zero padding inside does no harm then: without a border of 32 pixels, the last 29.82 are 29.50, as
the exact filter's 28.65 are 28.46.

The U-Net: plain residual blocks without normalisation (EDSR, Lim et al., CVPRW 2017), since a 3 x 3
convolution runs at 200 to 225 GFLOP/s a core in bfloat16 at any width, from 32 channels at half
size to 384 at a sixteenth, while NAFNet's layers take 1.6 times as long for a multiplication;
pixels spread from channels (Shi et al., CVPR 2016) and no transposed convolutions. 4.1 M
parameters. CPU time a tile: 46 ms in batches of 8, where pix2pix takes 88, and 54 ms for single
ones, where it takes 146.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from deblur import blur
from deblur.networks import kernel as kernels
from deblur.networks.convolution import DepthToSpace, conv, up
from deblur.networks.wiener import Guess, WienerDetail

Tensor = Any

_register = keras.saving.register_keras_serializable("deblur")


# 2 is best for JPEG of quality 95 (26.1 dB; 1 and 4: 26.0 and 25.9), which makes 1/12 useless.
GUESSES = {
    "box14": (Guess("box", 14, 1 / 12), Guess("box", 14, 2)),
    "photo": (Guess("gaussian", 1, 4), Guess("gaussian", 2, 4), Guess("gaussian", 3, 4)),
}
_START = {"box14": 0}  # the guess that an untrained network returns; without, its input
_START_LOGIT = 3.0  # a share of 91 % beside two others
_MOST_LOGIT = 60.0  # beyond it the share is 1, and the exponential not far from infinity


@_register
class Blend(layers.Layer):
    """[picture, details, head] to the restored picture: picture + sum of w_k details_k + residual.

    The head holds a residual and, for each detail, the logit of its weight at each pixel; that of
    the picture as it is is 0. So where a photo is noisy or sharp the network turns a filter down
    that would do harm, and whatever it says the weights are shares of one: unbounded ones threw
    the training off at times, as a filter of the wrong noise is off by hundreds of levels.

    Args:
        start: the detail that an untrained network gives nearly all of the weight; None is the picture.
    """

    def __init__(self, *, start: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.start = start

    def call(self, inputs: Sequence[Tensor], training: bool | None = None) -> Tensor:
        """Blend, and clip to [0, 1] outside training, where clipping would hide errors."""
        restored, details, head = inputs
        count = details.shape[-1] // 3
        low = _START_LOGIT * (self.start is None)
        begin = [_START_LOGIT * (index == self.start) - low for index in range(count)]
        residual, *logits = ops.split(head, list(range(3, 3 + count)), axis=-1)
        # Softmax beside a logit of 0. `ops.softmax` over so few channels takes 6 times as long, a
        # twelfth of the whole network's time; and slices of one tensor of parts, 3 times the gradient's.
        parts = [
            ops.exp(ops.minimum(logit + first, _MOST_LOGIT))
            for logit, first in zip(logits, begin, strict=True)
        ]
        share = 1 / (1 + sum(parts))
        restored = restored + residual
        for part, detail in zip(parts, ops.split(details, count, axis=-1), strict=True):
            restored += (part * share) * detail
        return restored if training else ops.clip(restored, 0, 1)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments."""
        return {**super().get_config(), "start": self.start}

    def compute_output_shape(
        self, shapes: Sequence[tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """As the picture."""
        return tuple(shapes[0])


def generator(
    dtype: str = "float32",
    *,
    recipe: str = "box14",
    widths: tuple[int, ...] = (32, 64, 128, 256),
    blocks: tuple[int, ...] = (1, 1, 2, 2),
    hidden: tuple[int, ...] | None = None,
    context: int = 0,
    kernel: bool = False,
) -> keras.Model:
    """Return the network: (B, H, W, 3) in [0, 1] to the same; sides are multiples of 16.

    Args:
        dtype: Keras dtype policy, `float32` or `mixed_bfloat16`; the output is float32.
        recipe: what blur it is for: `box14` or `photo`.
        widths: channels at each level, from half the size down.
        blocks: residual blocks at each level, on the way down and as many on the way up.
        hidden: channels inside the blocks of each level; None is as many as outside.
        context: how many numbers say what all of the picture has in common, as its blur, to the
            blocks on the way up; 0 is none.
        kernel: whether the blur's kernel is estimated from what is restored, and what it explains put
            right (`deblur.networks.kernel`).
    """
    guesses, hidden = GUESSES[recipe], hidden or widths
    picture = keras.Input((None, None, 3), name="blurred")
    details = WienerDetail(
        guesses, mirror_shift=blur.mirror_shift(recipe), dtype=dtype, name="wiener"
    )(picture)
    # Levels of 8 bits become multiples of 1/128 from -1 on, which bfloat16 holds exactly.
    signed = layers.Rescaling(255 / 128, -1.0, dtype="float32", name="to_signed")(picture)
    x = layers.Concatenate(dtype="float32", name="seen")([signed, details])

    # === Down ===
    x = conv(x, widths[0], 6, dtype, "stem", strides=2)
    skips = []
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        if level > 0:
            skips.append(x)
            x = conv(x, width, 2, dtype, f"down{level}", strides=2)
        for index in range(count):
            x = _block(x, width, hidden[level], dtype, f"down{level}_{index}")

    # === Up ===
    common = _context(x, context, dtype) if context else None
    for level in reversed(range(len(skips))):
        x = up(x, skips[level], dtype, f"up{level}")
        for index in range(blocks[level]):
            x = _block(x, widths[level], hidden[level], dtype, f"up{level}_{index}", common)

    head = layers.Conv2D(
        4 * (3 + len(guesses)),
        3,
        padding="same",
        kernel_initializer="zeros",
        dtype=dtype,
        name="head",
    )(x)
    head = DepthToSpace(dtype=dtype, name="head_spread")(head)
    name = "blended" if kernel else "restored"
    restored = Blend(start=_START.get(recipe), dtype="float32", name=name)([picture, details, head])
    if kernel:
        maps, levels = kernels.Evidence(dtype="float32", name="evidence")([picture, restored])
        estimate = kernels.estimate(maps, levels, dtype)
        restored = kernels.Deconvolution(dtype="float32", name="restored")(
            [picture, restored, *estimate]
        )
    return keras.Model(picture, restored, name="generator")


def _context(x: Tensor, size: int, dtype: str) -> Tensor:
    """Return (B, 1, 1, size) of what features have in common, wherever in the picture they are."""
    x = conv(x, size, 1, dtype, "context_seen", gain=2.0, activation="relu")
    x = layers.GlobalAveragePooling2D(keepdims=True, dtype="float32", name="context_mean")(x)
    return layers.Dense(size, "relu", dtype=dtype, name="context")(x)


def _block(
    x: Tensor, filters: int, hidden: int, dtype: str, name: str, common: Tensor | None = None
) -> Tensor:
    y = conv(x, hidden, 3, dtype, f"{name}_in", gain=2.0, activation="relu")
    if common is not None:
        # 1 at first, so that a network without context can be gone on from.
        scale = layers.Dense(
            hidden,
            kernel_initializer="zeros",
            bias_initializer="ones",
            dtype=dtype,
            name=f"{name}_scale",
        )(common)
        y = layers.Multiply(dtype=dtype, name=f"{name}_scaled")([y, scale])
    # Small, so that a deep stack without normalisation starts near the identity.
    y = conv(y, filters, 3, dtype, f"{name}_out", gain=0.1)
    return layers.Add(dtype=dtype, name=f"{name}_add")([x, y])


def discriminator(dtype: str = "float32", *, width: int = 32) -> keras.Model:
    """Return the discriminator: [blurred, picture], (B, H, W, 3) in [0, 1], to (B, H/8, W/8, 1) logits.

    A logit judges a patch of 47 x 47 pixels: positive if it takes the picture for a sharp photo. It
    sees only what is finer than three pixels, eightfold: what `box14` restores differs from sharp
    photos in nothing else. In 400 steps at 2e-4 (four crops of 128 pixels; the generator stands
    still) it is right about 92 % of the patches; handed the whole picture, about 57 %; the whole
    picture, the blurred one and the fine part, 68 %; and pix2pix's PatchGAN stays at 50 %. What the
    picture ought to show the pixel loss says, not the discriminator.

    Args:
        dtype: Keras dtype policy, `float32` or `mixed_bfloat16`; the logits are float32.
        width: filters of the first level.
    """
    blurred = keras.Input((None, None, 3), name="blurred")
    picture = keras.Input((None, None, 3), name="picture")
    coarse = layers.AveragePooling2D(3, 1, "same", dtype="float32", name="coarse")(picture)
    x = layers.Subtract(dtype="float32", name="fine")([picture, coarse])
    x = layers.Rescaling(8.0, dtype="float32", name="eightfold")(x)
    for index, (factor, stride) in enumerate(_JUDGE):
        x = conv(x, factor * width, 3, dtype, f"judge{index}", gain=2.0, strides=stride)
        x = layers.LeakyReLU(0.2, dtype=dtype, name=f"judge{index}_act")(x)
    logits = layers.Conv2D(1, 3, padding="same", dtype="float32", name="logits")(x)
    return keras.Model([blurred, picture], logits, name="discriminator")


_JUDGE = ((1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2))  # filters as a multiple, and strides
