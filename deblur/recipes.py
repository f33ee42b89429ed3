"""The named training recipes: everything that decides a model besides its photos and its seed.

`deblur train --recipe NAME` takes one; single options replace parts of it. docs/training.md has the
commands, and what came of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from deblur.errors import UsageError

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        network: name of the network.
        epochs: times that every photo is seen.
        max_steps: at which it ends, if the epochs have not ended it.
        batch_size: photos a step, shared by all workers.
        size_px: side of the crops; None is that of the pairs, or the network's tile.
        pixel: pixel loss, one of `losses.PIXEL`, and its weight.
        adversarial_weight: of the GAN's loss; with 0 there is no discriminator.
        learning_rate: Adam's for both sides, reached after the warm-up. It belongs to the batch
            size, and the number of workers does not touch it.
        warmup_steps: over which it rises from nothing.
        schedule: `constant`, or `cosine`: falls to a thousandth at the last step.
        beta_1: Adam's.
        clip_norm: largest norm of the gradients of a side, over all its weights; None clips nothing.
        full_rate_inputs: the generator's weights that add up more inputs than these have a rate that
            is lower in proportion; None is one rate for all.
        average: decay of the moving average of the generator's weights, which is what is validated
            and kept; 0 keeps the weights themselves.
        keep: the `best` by PSNR on the photos held out, or the `last`, where PSNR is not the aim.
    """

    network: str
    epochs: int
    batch_size: int
    max_steps: int | None = None
    size_px: int | None = None
    pixel: str = "l1"
    pixel_weight: float = 1.0
    adversarial_weight: float = 0.0
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    beta_1: float = 0.9
    clip_norm: float | None = None
    full_rate_inputs: int | None = None
    average: float = 0.0
    keep: Literal["best", "last"] = "best"

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        after = (step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1)
        fall = 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))
        return self.learning_rate * (_LEAST + (1 - _LEAST) * fall)


_LEAST = 1e-3  # of the learning rate, at the end of a cosine


REPORT = Recipe(
    network="pix2pix",
    epochs=40,
    batch_size=1,
    pixel="l1",
    pixel_weight=100.0,
    adversarial_weight=1.0,
    beta_1=0.5,
)
"""The report's: pix2pix as TensorFlow's tutorial trains it (Isola et al., CVPR 2017)."""

BEST = Recipe(
    network="wiener-photo",
    epochs=10_000,
    max_steps=20_000,
    batch_size=4,
    size_px=128,
    pixel="psnr",
    pixel_weight=0.1,  # the gradients' norm is then mostly within the clip's
    learning_rate=1e-3,  # `fast` with it 30.63 dB on held-out photos, with 5e-4 30.43
    warmup_steps=200,
    schedule="cosine",
    clip_norm=1.0,
    full_rate_inputs=288,  # of 3 x 3 in 32 channels, the first level's
    average=0.999,
)
"""What the shipped models are trained with, on sharp photos blurred anew."""

FAST = replace(BEST, max_steps=1_500)
"""Most of it in minutes."""

ADVERSARIAL = replace(
    BEST, max_steps=3_000, learning_rate=1e-4, adversarial_weight=0.05, keep="last"
)
"""Goes on from a model of `best` (`--start-from`) with a discriminator: texture for PSNR."""

RECIPES: Mapping[str, Recipe] = {
    "report": REPORT,
    "fast": FAST,
    "best": BEST,
    "adversarial": ADVERSARIAL,
}


def recipe(name: str) -> Recipe:
    """Return a recipe by its name. Raises UsageError for an unknown one."""
    try:
        return RECIPES[name]
    except KeyError:
        raise UsageError(
            f"there is no training recipe {name!r}; there are {', '.join(RECIPES)}"
        ) from None
