"""Images a second of `deblur train` against TensorFlow's pix2pix tutorial, and against its own step.

    python tests/benchmarks/training.py PAIRS [--batch-sizes 1 4] [--steps 60] [--rounds 3]

The tutorial's loop is written as it stands there: float32, batch normalisation, two tapes, Keras's
Adam, one `tf.function`. The bare step is ours without the job, in the precision that `auto` is
here. Both run on one constant batch, in a process of their own, after three steps of warm-up; the
median step counts. The job's rate is read from its TensorBoard events, so that Ray's start, tracing,
validation and checkpoints are not in it; waiting for data, drawing it, and Ray are.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def tutorial(batch: int, steps: int) -> float:
    """Return the median seconds of a step of the tutorial's loop."""
    import keras
    import tensorflow as tf
    from keras import layers

    start = keras.initializers.RandomNormal(0.0, 0.02)

    def down(filters: int, norm: bool = True) -> keras.Sequential:
        block = keras.Sequential()
        block.add(layers.Conv2D(filters, 4, strides=2, padding="same",
                                kernel_initializer=start, use_bias=False))  # fmt: skip
        if norm:
            block.add(layers.BatchNormalization())
        block.add(layers.LeakyReLU())
        return block

    def up(filters: int, dropout: bool = False) -> keras.Sequential:
        block = keras.Sequential()
        block.add(layers.Conv2DTranspose(filters, 4, strides=2, padding="same",
                                         kernel_initializer=start, use_bias=False))  # fmt: skip
        block.add(layers.BatchNormalization())
        if dropout:
            block.add(layers.Dropout(0.5))
        block.add(layers.ReLU())
        return block

    def make_generator() -> keras.Model:
        inputs = x = layers.Input((256, 256, 3))
        skips = []
        for block in [down(64, False), down(128), down(256), *(down(512) for _ in range(5))]:
            x = block(x)
            skips.append(x)
        ups = [*(up(512, True) for _ in range(3)), up(512), up(256), up(128), up(64)]
        for block, skip in zip(ups, reversed(skips[:-1]), strict=True):
            x = layers.Concatenate()([block(x), skip])
        last = layers.Conv2DTranspose(3, 4, strides=2, padding="same",
                                      kernel_initializer=start, activation="tanh")  # fmt: skip
        return keras.Model(inputs, last(x))

    def make_discriminator() -> keras.Model:
        first, second = layers.Input((256, 256, 3)), layers.Input((256, 256, 3))
        x = layers.Concatenate()([first, second])
        for block in (down(64, False), down(128), down(256)):
            x = block(x)
        x = layers.ZeroPadding2D()(x)
        x = layers.Conv2D(512, 4, kernel_initializer=start, use_bias=False)(x)
        x = layers.LeakyReLU()(layers.BatchNormalization()(x))
        x = layers.ZeroPadding2D()(x)
        return keras.Model([first, second], layers.Conv2D(1, 4, kernel_initializer=start)(x))

    generator, discriminator = make_generator(), make_discriminator()
    assert generator.count_params() + discriminator.count_params() > 57_183_620
    entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    generator_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
    discriminator_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
    generator_optimizer.build(generator.trainable_variables)
    discriminator_optimizer.build(discriminator.trainable_variables)

    @tf.function
    def step(blurred: Any, sharp: Any) -> Any:
        with tf.GradientTape() as gen_tape, tf.GradientTape() as disc_tape:
            restored = generator(blurred, training=True)
            real = discriminator([blurred, sharp], training=True)
            fake = discriminator([blurred, restored], training=True)
            gan = entropy(tf.ones_like(fake), fake)
            total = gan + 100 * tf.reduce_mean(tf.abs(sharp - restored))
            judge = entropy(tf.ones_like(real), real) + entropy(tf.zeros_like(fake), fake)
        one = gen_tape.gradient(total, generator.trainable_variables)
        other = disc_tape.gradient(judge, discriminator.trainable_variables)
        generator_optimizer.apply_gradients(zip(one, generator.trainable_variables, strict=True))
        discriminator_optimizer.apply_gradients(
            zip(other, discriminator.trainable_variables, strict=True)
        )
        return total

    photos = tf.random.uniform((batch, 256, 256, 3), -1, 1)
    return _median(lambda: float(step(photos, photos)), steps)


def bare(batch: int, steps: int) -> float:
    """Return the median seconds of our step."""
    import numpy as np

    from deblur.precision import policy
    from deblur.recipes import REPORT
    from deblur.training import Training

    training = Training(REPORT, policy=policy("auto"))
    photos = np.random.default_rng(0).integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8)
    weights = np.full(batch, 1 / batch, np.float32)
    return _median(lambda: float(training.step(photos, photos, weights, 2e-4)["error"]), steps)


def _median(step: Callable[[], float], steps: int) -> float:
    for _ in range(3):
        step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def job(pairs: str, batch: int, steps: int) -> tuple[float, float]:
    """Return the median seconds of the job's step, and the share of it spent waiting for data."""
    from jobs import train

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        options = train.Options(
            pairs, folder, batch_size=batch, max_steps=steps, checkpoint_steps=10**6,
            validation_photos=1, validate_every=10**4, epochs=10**4,
        )  # fmt: skip
        train.run(options)
        rate, waits = rates(folder)
    return batch / rate, waits


def rates(folder: str) -> tuple[float, float]:
    """Return a run's median images a second, and share of the time spent waiting for data."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(Path(folder) / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    # The first three entries hold tracing.
    rate, waits = (
        statistics.median(
            [float(make_ndarray(item.tensor_proto)) for item in events.Tensors(name)][3:]
        )
        for name in ("speed/images_per_second", "speed/share_waiting_for_data")
    )
    return rate, waits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for batch in arguments.batch_sizes:
        ratios: dict[str, list[float]] = {"bare": [], "job": [], "overhead": []}
        for _ in range(arguments.rounds):
            seconds = []
            for loop in (tutorial, bare):
                with spawn.Pool(1) as process:
                    seconds.append(process.apply(loop, (batch, arguments.steps // 2)))
            ours, wait = job(arguments.pairs, batch, arguments.steps)
            ratios["bare"].append(seconds[0] / seconds[1])
            ratios["job"].append(seconds[0] / ours)
            ratios["overhead"].append(ours / seconds[1])
            print(
                f"batch {batch}: tutorial {seconds[0]:.3f} s, bare step {seconds[1]:.3f} s, job "
                f"{ours:.3f} s a step, waiting for data {wait:.1%}", flush=True,
            )  # fmt: skip
        medians = {name: statistics.median(values) for name, values in ratios.items()}
        print(
            f"batch {batch}, medians: bare step {medians['bare']:.2f} and job {medians['job']:.2f} times the "
            f"tutorial's images a second; job {medians['overhead']:.2f} of the bare step's seconds"
        )


if __name__ == "__main__":
    main()
