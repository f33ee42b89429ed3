"""The GAN of the report: pix2pix's U-Net generator and 70x70 PatchGAN discriminator.

Isola, Zhu, Zhou, Efros: Image-to-Image Translation with Conditional Adversarial Networks, CVPR
2017, as TensorFlow's tutorial builds it: 54,414,979 + 2,768,641 = 57,183,620 trainable parameters.

One thing differs. The tutorial normalises over the batch and runs inference in training mode, so
that a photo's result depends on chance and on its batch mates. At its batch size of one, those
statistics are the photo's own; so we take the photo's own always (instance normalisation: group
normalisation with one channel a group). The parameters are the same ones, dropout is off outside
training, and a photo gives the same pixels in any company. What stays as it was: at 256x256 the
innermost feature map is one pixel, whose own statistics normalise it to zero, so the weights of the
bottleneck learn nothing (junyanz/pytorch-CycleGAN-and-pix2pix#60).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

SIZE_PX = 256  # eight halvings end in one pixel

_DOWN = (1, 2, 4, 8, 8, 8, 8, 8)  # filters a level, in units of the width; 64 is the paper's
_UP = (8, 8, 8, 8, 4, 2, 1)
_DROPOUT_LEVELS = 3
_LEAK = 0.3  # Keras's default, which the tutorial uses; the paper has 0.2
_HALVING: dict[str, Any] = {"strides": 2, "padding": "same", "use_bias": False}


def _conv(kind: type[keras.Layer], filters: int, dtype: str, name: str, **options: Any) -> Any:
    initializer = keras.initializers.RandomNormal(0.0, 0.02)
    return kind(filters, 4, kernel_initializer=initializer, dtype=dtype, name=name, **options)


def _norm(dtype: str, name: str) -> keras.Layer:
    # 9 % of an inference's time (2 cores, either precision). It computes in float32 always.
    return layers.GroupNormalization(groups=-1, epsilon=1e-3, dtype=dtype, name=name)


def generator(dtype: str = "float32", *, width: int = 64, dropout: float = 0.5) -> keras.Model:
    """Return the U-Net: (B, 256, 256, 3) in [0, 1] to the same.

    Args:
        dtype: Keras dtype policy, `float32` or `mixed_bfloat16`; the output is float32.
        width: filters of the first level.
        dropout: rate in the three innermost levels of the way up, in training alone.
    """
    blurred = keras.Input((SIZE_PX, SIZE_PX, 3), name="blurred")
    # In float32: a bfloat16 near 1 has steps of half an 8-bit level, centred ones of a quarter.
    x = layers.Rescaling(2.0, -1.0, dtype="float32", name="to_signed")(blurred)

    # === Down: 256 -> 1 ===
    skips = []
    for level, factor in enumerate(_DOWN):
        x = _conv(layers.Conv2D, factor * width, dtype, f"down{level}_conv", **_HALVING)(x)
        if level > 0:
            x = _norm(dtype, f"down{level}_norm")(x)
        x = layers.LeakyReLU(_LEAK, dtype=dtype, name=f"down{level}_act")(x)
        skips.append(x)

    # === Up: 1 -> 128 ===
    for level, factor in enumerate(_UP):
        x = _conv(layers.Conv2DTranspose, factor * width, dtype, f"up{level}_conv", **_HALVING)(x)
        x = _norm(dtype, f"up{level}_norm")(x)
        if level < _DROPOUT_LEVELS and dropout:
            x = layers.Dropout(dropout, dtype=dtype, name=f"up{level}_dropout")(x)
        x = layers.ReLU(dtype=dtype, name=f"up{level}_act")(x)
        x = layers.Concatenate(dtype=dtype, name=f"up{level}_skip")([x, skips[-2 - level]])

    # === Out: 128 -> 256 ===
    # In float32, since bfloat16 has too few values near one for photos of 16 bits; it costs no time.
    x = _conv(layers.Conv2DTranspose, 3, "float32", "out_conv", strides=2, padding="same")(x)
    x = layers.Activation("tanh", dtype="float32", name="out_tanh")(x)
    restored = layers.Rescaling(0.5, 0.5, dtype="float32", name="to_unit")(x)
    return keras.Model(blurred, restored, name="generator")


def discriminator(dtype: str = "float32", *, width: int = 64) -> keras.Model:
    """Return the PatchGAN: [blurred, picture], (B, 256, 256, 3) in [0, 1], to (B, 30, 30, 1).

    A logit judges a patch of 70x70 pixels: positive if it takes the picture for a sharp photo.

    Args:
        dtype: Keras dtype policy, `float32` or `mixed_bfloat16`; the logits are float32.
        width: filters of the first level.
    """
    shape = (SIZE_PX, SIZE_PX, 3)
    blurred, picture = keras.Input(shape, name="blurred"), keras.Input(shape, name="picture")
    x = layers.Concatenate(dtype="float32", name="pair")([blurred, picture])
    x = layers.Rescaling(2.0, -1.0, dtype="float32", name="to_signed")(x)
    for level, factor in enumerate(_DOWN[:3]):
        x = _conv(layers.Conv2D, factor * width, dtype, f"down{level}_conv", **_HALVING)(x)
        if level > 0:
            x = _norm(dtype, f"down{level}_norm")(x)
        x = layers.LeakyReLU(_LEAK, dtype=dtype, name=f"down{level}_act")(x)
    x = layers.ZeroPadding2D(dtype=dtype, name="pad0")(x)
    x = _conv(layers.Conv2D, 8 * width, dtype, "patch_conv", use_bias=False)(x)
    x = _norm(dtype, "patch_norm")(x)
    x = layers.LeakyReLU(_LEAK, dtype=dtype, name="patch_act")(x)
    x = layers.ZeroPadding2D(dtype=dtype, name="pad1")(x)
    x = _conv(layers.Conv2D, 1, dtype, "logits_conv")(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model([blurred, picture], logits, name="discriminator")
