"""Adversarial and pixel losses, in pure Keras ops.

Each is a mean over the batch, so the loss of a batch is the mean of its equal parts' losses.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

Tensor = Any

# Isola et al. 2017, section 3.1 and the report: loss = GAN + 100 L1, for pictures in [-1, 1].
L1_WEIGHT = 100.0


class GeneratorLoss(NamedTuple):
    """What the generator minimises, and its two terms: scalars, total = GAN + 100 L1."""

    total: Tensor
    gan: Tensor
    l1: Tensor


def l1(restored: Tensor, sharp: Tensor) -> Tensor:
    """Return the mean absolute error of (B, H, W, 3) in [0, 1], on the paper's [-1, 1] scale."""
    return 2.0 * ops.mean(ops.abs(restored - sharp))


def cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    """Return the mean binary cross-entropy of logits that should all say `real`, or all not."""
    return ops.mean(ops.softplus(-logits if real else logits))


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Return the sum of both sides (the tutorial does not halve it)."""
    return cross_entropy(real_logits, real=True) + cross_entropy(fake_logits, real=False)


def generator_loss(fake_logits: Tensor, restored: Tensor, sharp: Tensor) -> GeneratorLoss:
    """Return how far (B, H, W, 3) restored in [0, 1] is from sharp, and from deceiving."""
    gan, pixel = cross_entropy(fake_logits, real=True), l1(restored, sharp)
    return GeneratorLoss(gan + L1_WEIGHT * pixel, gan, pixel)
