"""Seconds a step of `deblur train` against the bare step of the same network.

    python tests/benchmarks/training.py PAIRS [--batch-sizes 1 4] [--steps 60]

The bare loop is a `tf.function` of the same forward and backward passes and optimisers on one
constant batch, in a process of its own with the same threads. The job's seconds are read from its
TensorBoard events, so Ray's start, tracing, validation and checkpoints are not in them; waiting for
data, jitter, and Ray are.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path


def bare(network_name: str, batch: int, steps: int) -> float:
    """Return the median seconds of a bare step."""
    import keras
    import tensorflow as tf

    from deblur import losses
    from deblur.networks import network
    from deblur.precision import policy

    gan = network(network_name)
    models = gan.generator(policy("auto")), gan.discriminator(policy("auto"))
    optimizers = [keras.optimizers.Adam(2e-4, beta_1=0.5) for _ in models]
    for optimizer, model in zip(optimizers, models, strict=True):
        optimizer.build(model.trainable_variables)
    generator, discriminator = models

    @tf.function
    def step(blurred: tf.Tensor, sharp: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as left, tf.GradientTape() as right:
            restored = generator(blurred, training=True)
            real = discriminator([blurred, sharp], training=True)
            fake = discriminator([blurred, restored], training=True)
            total = losses.generator_loss(fake, restored, sharp)[0]
            judge = losses.discriminator_loss(real, fake)
        targets = zip(optimizers, models, (left, right), (total, judge), strict=True)
        for optimizer, model, tape, loss in targets:
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return total

    photos = tf.random.uniform((batch, 256, 256, 3))
    for _ in range(3):
        float(step(photos, photos))
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        float(step(photos, photos))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def job(pairs: str, network: str, batch: int, steps: int) -> tuple[float, float]:
    """Return the median seconds of the job's step, and the share of it that is spent waiting for data."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    from jobs import train

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        options = train.Options(
            pairs, folder, network=network, batch_size=batch, max_steps=steps, checkpoint_steps=10**6,
            validation_photos=1, epochs=10**4,
        )  # fmt: skip
        train.run(options)
        events = EventAccumulator(str(Path(folder) / "tensorboard"), size_guidance={"tensors": 0})
        events.Reload()
        rates = [
            float(make_ndarray(item.tensor_proto))
            for item in events.Tensors("speed/images_per_second")
        ]
        waits = [
            float(make_ndarray(item.tensor_proto))
            for item in events.Tensors("speed/share_waiting_for_data")
        ]
    # The first entries hold tracing.
    return batch / statistics.median(rates[3:]), statistics.median(waits[3:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs")
    parser.add_argument("--network", default="pix2pix")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for batch in arguments.batch_sizes:
        ratios = []
        for _ in range(arguments.rounds):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                plain = process.apply(bare, (arguments.network, batch, arguments.steps // 2))
            started = time.perf_counter()
            ours, wait = job(arguments.pairs, arguments.network, batch, arguments.steps)
            ratios.append(ours / plain)
            print(
                f"{arguments.network} batch {batch}: bare {plain:.3f} s, job {ours:.3f} s, ratio {ratios[-1]:.2f}, "
                f"waiting for data {wait:.1%} ({time.perf_counter() - started:.0f} s in all)", flush=True,
            )  # fmt: skip
        print(f"batch {batch}: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
