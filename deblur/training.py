"""The state of a GAN in training, and one step. It runs under any `tf.distribute` strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deblur import losses
from deblur.networks import Network

# The report's and the tutorial's optimiser, for both sides.
LEARNING_RATE = 2e-4
BETA_1 = 0.5

LOSSES = ("generator", "gan", "l1", "discriminator")

_FILE = "state.npz"


class Training:
    """Generator, discriminator and both optimisers, and the step that moves them.

    A replica's losses are means over its share of the batch, divided by the number of replicas, and
    the optimisers sum the gradients of all replicas: N replicas with batch b take the step of one
    with batch N b. Only dropout differs: all replicas draw the same masks.
    """

    def __init__(
        self,
        network: Network,
        *,
        policy: str = "float32",
        seed: int = 0,
        learning_rate: float = LEARNING_RATE,
        strategy: Any = None,
    ) -> None:
        """Build everything in the strategy's scope.

        Args:
            network: what to train.
            policy: Keras dtype policy of both networks.
            seed: of the initial weights and of dropout; the first worker's counts.
            learning_rate: Adam's, for both sides.
            strategy: one replica a worker. Defaults to TensorFlow's current one.

        Raises:
            ValueError: if the strategy has several replicas in this process.
        """
        self.strategy = strategy or tf.distribute.get_strategy()
        here = self.strategy.experimental_local_results(self.strategy.run(lambda: tf.constant(0)))
        if len(here) != 1:  # each would see this worker's whole batch
            raise ValueError(f"{len(here)} replicas in this process; expected one a worker")
        with self.strategy.scope():
            keras.utils.set_random_seed(seed)
            self.generator = network.generator(policy)
            self.discriminator = network.discriminator(policy)
            self.generator_optimizer = keras.optimizers.Adam(learning_rate, beta_1=BETA_1)
            self.discriminator_optimizer = keras.optimizers.Adam(learning_rate, beta_1=BETA_1)
            self.generator_optimizer.build(self.generator.trainable_variables)
            self.discriminator_optimizer.build(self.discriminator.trainable_variables)
        # Without XLA, which is slower on CPU: 1.76 s a step against 0.77 s.
        self._step = tf.function(self._replicated, jit_compile=False)
        self._restore = tf.function(lambda blurred: self.generator(blurred, training=False))

    def step(self, blurred: np.ndarray, sharp: np.ndarray) -> dict[str, tf.Tensor]:
        """Take one step on this worker's share of the batch; return the global batch's losses.

        Args:
            blurred: (B, H, W, 3) uint8.
            sharp: the same photos before the blur, (B, H, W, 3) uint8.
        """
        return dict(zip(LOSSES, self._step(tf.constant(blurred), tf.constant(sharp)), strict=True))

    def restore(self, blurred: np.ndarray) -> np.ndarray:
        """Return (B, H, W, 3) float32 in [0, 1] for uint8, without dropout, on this worker alone.

        Args:
            blurred: (B, H, W, 3) uint8.
        """
        restored: np.ndarray = self._restore(_to_unit(tf.constant(blurred))).numpy()
        return restored

    def _replicated(self, blurred: tf.Tensor, sharp: tf.Tensor) -> tf.Tensor:
        values = self.strategy.run(self._replica_step, args=(blurred, sharp))
        return tf.unstack(self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None))

    def _replica_step(self, blurred: tf.Tensor, sharp: tf.Tensor) -> tf.Tensor:
        blurred, sharp = _to_unit(blurred), _to_unit(sharp)
        share = 1.0 / self.strategy.num_replicas_in_sync
        # Both gradients come from the same forward pass, as in the tutorial: neither side sees the
        # other's update.
        with tf.GradientTape(persistent=True) as tape:
            restored = self.generator(blurred, training=True)
            real_logits = self.discriminator([blurred, sharp], training=True)
            fake_logits = self.discriminator([blurred, restored], training=True)
            loss = losses.generator_loss(fake_logits, restored, sharp)
            judge = losses.discriminator_loss(real_logits, fake_logits)
            generator_target, discriminator_target = loss.total * share, judge * share
        for target, model, optimizer in (
            (generator_target, self.generator, self.generator_optimizer),
            (discriminator_target, self.discriminator, self.discriminator_optimizer),
        ):
            gradients = tape.gradient(target, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return tf.stack([*loss, judge]) * share

    # === State ===

    def variables(self) -> Iterator[tuple[str, Any]]:
        """Yield everything that a step depends on: weights, dropout's seeds, optimisers' moments.

        Each has a unique name, the same in every process, which tells its part, place and shape.
        """
        parts: Mapping[str, Any] = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "generator_optimizer": self.generator_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        for part, owner in parts.items():
            for index, variable in enumerate(owner.variables):
                # Not its path: Keras numbers the scopes of what is built again in one process.
                shape = "x".join(map(str, variable.shape))
                yield f"{part}/{index:04d}/{variable.name}/{shape}", variable

    def save(self, folder: Path) -> None:
        """Write the whole state into a folder."""
        np.savez(folder / _FILE, **{name: variable.numpy() for name, variable in self.variables()})

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, for the same network.

        Raises:
            ValueError: if the state is another network's. Nothing is changed then.
        """
        mine = dict(self.variables())
        with np.load(folder / _FILE) as state:
            if odd := sorted(mine.keys() ^ set(state.files)):
                raise ValueError(
                    f"{folder / _FILE} is another network's state: {len(state.files)} variables, "
                    f"expected {len(mine)}; {odd[0]} is on one side alone"
                )
            for name, variable in mine.items():
                variable.assign(state[name])


def _to_unit(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(pixels, tf.float32) * (1.0 / 255.0)
