"""Trains what `wiener-photo-kernel` has beyond `wiener-photo-deep`: the kernel's estimate.

    python -m tests.benchmarks.kernel PHOTOS MODEL OUT [--crops 6000] [--steps 5625] [--joint-steps 2475]

`deblur train --network wiener-photo-kernel --start-from MODEL` trains all of it, end to end, and makes each
crop's restoration in each step, which takes ten times as long as the rest. Here MODEL restores every crop once,
and its own weights stay as they are. The estimate first learns the kernels that the crops were blurred by, from
the maps of `Evidence`, mirrored and transposed at random; then all that is new learns to restore. Shakes are
drawn more often than in the recipe, being what is hard. Every tenth photo is left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import tensorflow as tf

from deblur import blur, models
from deblur.networks import kernel as kernels
from deblur.networks import network
from deblur.networks.transfer import transfer
from deblur.restorer import TILE_BATCH, compiled
from deblur.storage import open_store

NETWORK = "wiener-photo-kernel"
SIZE_PX, LEAST_SCALE, OTHER_SHARE = 256, 0.3, 0.45
REACH, SIDE = kernels.REACH, 2 * kernels.REACH
BATCH, RATE, WARMUP = 16, 6e-4, 300
JOINT_BATCH, JOINT_RATE, JOINT_WARMUP, KERNEL_WEIGHT = 8, 3e-4, 100, 0.1
JOINT_CAUTION = -1.0  # of the constants from -3 to 2, one that gains and loses little
TOLD_EVERY = 250
_LEAST_ERROR = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--crops", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=5625)
    parser.add_argument("--joint-steps", type=int, default=2475)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    started = time.perf_counter()
    before = models.load(models.open_model(options.model), "float32")
    keras.utils.set_random_seed(options.seed)
    generator = network(NETWORK).generator("float32")
    transfer(before.generator, generator, [])
    examples = Examples(Path(options.photos), before.generator, options.crops, options.seed)
    Kernels(generator, examples, options.seed).train(options.steps)
    caution = generator.get_layer("kernel_caution")
    caution.bias.assign(np.full(caution.units, JOINT_CAUTION))
    Joint(generator, examples, options.seed).train(options.joint_steps)
    card = replace(
        before.card,
        network=NETWORK,
        model_id=models.model_id(generator, NETWORK),
        command=f"python -m tests.benchmarks.kernel {' '.join(sys.argv[1:])}",
        precision="float32",
        steps=options.steps + options.joint_steps,
        seed=options.seed,
        seconds=time.perf_counter() - started,
        figures={},
        measured_on="",
    )
    models.save(open_store(options.out), generator, card)


class Examples:
    """Crops, blurred, and restored by a model, with the kernels and what `Evidence` says of them.

    Attributes:
        sharp, blurred, restored: (N, 256, 256, 3) uint8.
        kernels: (N, 48, 48) float32.
        maps, levels: float32.
    """

    def __init__(self, folder: Path, generator: keras.Model, count: int, seed: int) -> None:
        photos = [cv2.imread(str(path))[..., ::-1] for path in sorted(folder.glob("*.jpg"))]
        photos = [photo for index, photo in enumerate(photos) if index % 10]
        shape = (count, SIZE_PX, SIZE_PX, 3)
        self.sharp, self.blurred, self.restored = (np.zeros(shape, np.uint8) for _ in range(3))
        self.kernels = np.zeros((count, SIDE, SIDE), np.float32)
        self.maps, self.levels = (
            np.zeros((count, *shape), np.float32) for shape in ((SIDE, SIDE, 9), (4,))
        )
        restore, evidence = compiled(generator), tf.function(kernels.Evidence())
        for start in range(0, count, TILE_BATCH):
            window = slice(start, start + TILE_BATCH)
            for index in range(start, min(start + TILE_BATCH, count)):
                rng = np.random.default_rng([seed, index])
                self.sharp[index] = crop(photos[rng.integers(len(photos))], rng)
                drawn = draw(index, rng, seed)
                self.blurred[index] = blur.degrade(self.sharp[index], drawn)
                self.kernels[index] = convolving(blur.psf(drawn))
            seen = self.blurred[window].astype(np.float32) / 255
            self.restored[window] = np.rint(255 * restore(seen))
            maps, levels = evidence([seen, self.restored[window].astype(np.float32) / 255])
            self.maps[window], self.levels[window] = maps, levels
            if start % (100 * TILE_BATCH) == 0:
                print(f"{start} of {count} crops", file=sys.stderr, flush=True)


def crop(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a crop of a photo that was made smaller, mirrored or not."""
    least = (SIZE_PX + 1) / min(photo.shape[:2])
    scale = rng.uniform(max(LEAST_SCALE, least), 1)
    small = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (int(rng.integers(side - SIZE_PX + 1)) for side in small.shape[:2])
    part = small[top : top + SIZE_PX, left : left + SIZE_PX]
    return np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)


def draw(index: int, rng: np.random.Generator, seed: int) -> blur.Degradation:
    """Return a degradation of the recipe; those without a shake are kept at times only."""
    for again in range(1000):
        drawn = blur.draw("photo", seed=seed, key=f"{index}-{again}")
        if drawn.parameters["blur"]["kind"] == "motion" or rng.random() < OTHER_SHARE:
            return drawn
    raise AssertionError("no degradation was kept")


def convolving(psf: np.ndarray) -> np.ndarray:
    """Return the (48, 48) kernel that convolves as the PSF correlates, cut off where it reaches further."""
    kernel, reach = np.zeros((SIDE, SIDE), np.float32), min(len(psf) // 2, REACH - 1)
    middle = len(psf) // 2
    inner = slice(middle - reach, middle + reach + 1)
    around = slice(REACH - reach, REACH + reach + 1)
    kernel[around, around] = psf[::-1, ::-1][inner, inner]
    return kernel


def kernel_error(kernel: tf.Tensor, true: tf.Tensor) -> tf.Tensor:
    """Return the logarithm of what blurring a photo by one or the other differs in: its power is 1/f²."""
    down, across = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)
    weight = 1 / (down**2 + across**2 + 0.02**2)
    weight[0, 0] = 0
    weight *= np.where((across == 0) | (across == 0.5), 1, 2) / SIDE**2
    power = tf.abs(tf.signal.rfft2d(kernel - true)) ** 2
    return tf.math.log(tf.reduce_sum(power * weight.astype(np.float32), (1, 2)) + _LEAST_ERROR)


def turned(maps: np.ndarray, kernels: np.ndarray, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both mirrored about the shift of 0, and transposed, in one of eight ways."""
    for bit, axis in ((1, 1), (2, 2)):
        if turn & bit:
            maps, kernels = (np.roll(np.flip(each, axis), 1, axis) for each in (maps, kernels))
    if turn & 4:
        maps, kernels = (np.swapaxes(each, 1, 2) for each in (maps, kernels))
    return np.ascontiguousarray(maps), np.ascontiguousarray(kernels)


class _Phase:
    """Steps over the examples, whose rate rises and falls as a cosine."""

    batch, rate, warmup = BATCH, RATE, WARMUP

    def __init__(self, generator: keras.Model, examples: Examples, seed: int) -> None:
        self.examples, self.weights = examples, generator.trainable_weights
        self.rng = np.random.default_rng(seed)
        layers = (generator.get_layer(name) for name in ("evidence", "kernel", "kernel_caution"))
        evidence, kernel, caution = (layer.output for layer in layers)
        self.estimate = keras.Model(evidence, [kernel, caution])
        self.put_right = generator.get_layer("restored")

    def train(self, steps: int) -> None:
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, max(steps - self.warmup, 1), warmup_target=self.rate, warmup_steps=self.warmup
        )
        optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-3, clipnorm=1.0)

        @tf.function
        def step(*inputs: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss, told = self.loss(*inputs)
            found = zip(tape.gradient(loss, self.weights), self.weights, strict=True)
            optimizer.apply_gradients((g, w) for g, w in found if g is not None)
            return told

        told = []
        for index, chosen in zip(range(steps), self.batches(), strict=False):
            told.append(float(step(*self.inputs(chosen))))
            if (index + 1) % TOLD_EVERY == 0 or index + 1 == steps:
                name, mean = type(self).__name__.lower(), np.mean(told)
                print(f"{name}: {index + 1} of {steps}, {mean:.3f}", file=sys.stderr, flush=True)
                told.clear()

    def batches(self) -> Iterator[np.ndarray]:
        while True:
            order = self.rng.permutation(len(self.examples.sharp))
            for start in range(0, len(order) - self.batch + 1, self.batch):
                yield np.sort(order[start : start + self.batch])

    def inputs(self, chosen: np.ndarray) -> list[np.ndarray]:
        raise NotImplementedError

    def loss(self, *inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raise NotImplementedError


class Kernels(_Phase):
    """The estimate learns the kernels."""

    def inputs(self, chosen: np.ndarray) -> list[np.ndarray]:
        examples = self.examples
        turn = int(self.rng.integers(8))
        maps, true = turned(examples.maps[chosen], examples.kernels[chosen], turn)
        return [maps, examples.levels[chosen], true]

    def loss(self, *inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        maps, levels, true = inputs
        kernel, _ = self.estimate([maps, levels], training=True)
        loss = tf.reduce_mean(kernel_error(kernel, true))
        return loss, loss


class Joint(_Phase):
    """All that is new learns to restore; what is told is the gain in dB."""

    batch, rate, warmup = JOINT_BATCH, JOINT_RATE, JOINT_WARMUP

    def inputs(self, chosen: np.ndarray) -> list[np.ndarray]:
        examples = self.examples
        pictures = (examples.blurred, examples.restored, examples.sharp)
        units = [each[chosen].astype(np.float32) / 255 for each in pictures]
        levels = examples.levels[chosen]
        return [examples.maps[chosen], levels, examples.kernels[chosen], *units]

    def loss(self, *inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        maps, levels, true, blurred, restored, sharp = inputs
        kernel, caution = self.estimate([maps, levels], training=True)
        corrected = self.put_right([blurred, restored, kernel, caution], training=True)
        now, before = (
            tf.math.log(tf.reduce_mean((each - sharp) ** 2, (1, 2, 3)) + 1e-6)
            for each in (corrected, restored)
        )
        change = tf.reduce_mean(now - before)
        aside = tf.reduce_mean(kernel_error(kernel, true))
        return change + KERNEL_WEIGHT * aside, change * (-10 / np.log(10))


if __name__ == "__main__":
    main()
