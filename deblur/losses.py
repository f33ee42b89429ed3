"""Adversarial and pixel losses, in pure Keras ops.

Each returns one value a photo, (B,): a step adds them up with weights, so that a batch may be
shared by any number of workers, and filled up with photos that count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras import ops

Tensor = Any

# NAFNet's (Chen et al., ECCV 2022): an error that no 8-bit photo shows.
_PSNR_EPSILON = 1e-8


def l1(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the mean absolute error of (B, H, W, 3) in [0, 1], on pix2pix's [-1, 1] scale."""
    return 2.0 * ops.mean(ops.abs(restored - sharp), axis=(1, 2, 3))


def psnr(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return minus the PSNR in dB of (B, H, W, 3) in [0, 1]: each photo counts alike.

    Chen et al., "Simple Baselines for Image Restoration" (NAFNet), ECCV 2022.
    """
    error = ops.mean(ops.square(restored - sharp), axis=(1, 2, 3))
    return (10.0 / ops.log(10.0)) * ops.log(error + _PSNR_EPSILON)


PIXEL: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "psnr": psnr,
}


def cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    """Return the binary cross-entropy of (B, H, W, 1) logits that should all say `real`, or not."""
    return ops.mean(ops.softplus(-logits if real else logits), axis=(1, 2, 3))


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the sum of both sides (the tutorial does not halve it)."""
    return cross_entropy(real_logits, real=True) + cross_entropy(fake_logits, real=False)


def accuracy(logits: Tensor, *, real: bool) -> Tensor:
    """Return the share of patches of (B, H, W, 1) logits that are judged right."""
    right = logits > 0 if real else logits < 0
    return ops.mean(ops.cast(right, "float32"), axis=(1, 2, 3))
