"""The state of a model in training, and one step. It runs under any `tf.distribute` strategy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deblur import losses
from deblur.networks import dormant, network
from deblur.networks.transfer import transfer
from deblur.optimizer import Adam, rates
from deblur.recipes import Recipe

FIGURES = (
    "generator", "pixel", "error", "gan", "discriminator", "accuracy_real", "accuracy_fake",
    "gradient_norm_generator", "gradient_norm_discriminator",
)  # fmt: skip
"""What a step returns: losses (the generator's is the weighted sum of pixel and gan), the mean
absolute error in [0, 1], the shares of patches that the discriminator judges right, and norms before
clipping. What is about the discriminator is 0 without one."""

_FILE = "state.npz"


class Training:
    """Generator, discriminator and both optimisers, and the step that moves them.

    Photos carry weights that sum to one over all replicas, and the gradients of all replicas are
    added up before they are clipped: however a batch is shared, the step is the same. Only dropout
    differs: all replicas draw the same masks.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        policy: str = "float32",
        seed: int = 0,
        strategy: Any = None,
        parts: int = 1,
    ) -> None:
        """Build everything in the strategy's scope.

        Args:
            recipe: how to train what.
            policy: Keras dtype policy of both networks.
            seed: of the initial weights and of dropout; the first worker's counts.
            strategy: Defaults to TensorFlow's current one.
            parts: in how many parts each replica takes its photos, one after the other, where all
                at once need too much memory. The step is the same, roundings and dropout aside.
        """
        self.strategy = strategy or tf.distribute.get_strategy()
        self._recipe, self._parts = recipe, parts
        built = network(recipe.network)
        here = self.strategy.run(lambda: tf.constant(0))
        self.replicas_here = len(self.strategy.experimental_local_results(here))
        adam: dict[str, Any] = {"beta_1": recipe.beta_1, "clip_norm": recipe.clip_norm}
        with self.strategy.scope():
            keras.utils.set_random_seed(seed)
            self.generator = built.generator(policy)
            self.averaged = built.generator(policy) if recipe.average else self.generator
            if recipe.average:
                _copy(self.generator, self.averaged)
            self.generator_optimizer = Adam(
                _tensors(self.generator),
                **adam,
                rates=rates(self.generator, recipe.full_rate_inputs)
                if recipe.full_rate_inputs
                else (),
                average=recipe.average,
                averages=_tensors(self.averaged) if recipe.average else (),
            )
            self.discriminator, self.discriminator_optimizer = None, None
            if recipe.adversarial_weight:
                self.discriminator = built.discriminator(policy)
                self.discriminator_optimizer = Adam(_tensors(self.discriminator), **adam)
        # Without XLA, which is slower on CPU: 1.76 s a step against 0.77 s; and without AutoGraph, as all
        # branches are Python's: tracing takes 3.4 s for 5.2, of wiener-photo-deep 2.8 for 5.2.
        self._step = tf.function(self._replicated, jit_compile=False, autograph=False)
        self._restore = tf.function(
            lambda blurred: self.averaged(blurred, training=False), autograph=False
        )

    def start_from(self, generator: Any, blurred: Iterable[np.ndarray], *, seed: int) -> int:
        """Take another model's weights to begin with, and begin its dormant units anew; return how many.

        Args:
            generator: of the same network, or of one that `networks.transfer` can fit to it.
            blurred: (H, W, 3) uint8 each, as it is trained on.
            seed: of the new weights.

        Raises:
            ValueError: if it cannot be fitted. Nothing is changed then.
        """
        pictures = [picture.astype(np.float32) / 255 for picture in blurred]
        transfer(generator, self.generator, pictures)
        count = dormant.revive(self.generator, pictures, seed=seed)
        if self.strategy.num_replicas_in_sync > 1:
            self._take_the_first_s_weights()
        if self.averaged is not self.generator:
            _copy(self.generator, self.averaged)
        return count

    def _take_the_first_s_weights(self) -> None:
        # Workers on unlike CPUs may round otherwise what they choose units by, and would then train
        # different networks.
        def replica() -> Any:
            context = tf.distribute.get_replica_context()
            first = tf.equal(context.replica_id_in_sync_group, 0)
            mine = [tf.where(first, weight, 0) for weight in _tensors(self.generator)]
            return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        shared = tf.function(lambda: self.strategy.run(replica), autograph=False)()
        for weight, first in zip(self.generator.trainable_variables, shared, strict=True):
            weight.assign(self.strategy.experimental_local_results(first)[0])

    def step(
        self, blurred: np.ndarray, sharp: np.ndarray, weights: np.ndarray, learning_rate: float
    ) -> dict[str, tf.Tensor]:
        """Take one step on this worker's share of the batch; return the global batch's figures.

        Args:
            blurred: (B, H, W, 3) uint8, the shares of this worker's replicas one after the other.
            sharp: the same photos before the blur, (B, H, W, 3) uint8.
            weights: (B,) float32, which sum to 1 over all workers.
            learning_rate: of this step, for both sides.
        """
        inputs = map(self._distributed, (blurred, sharp, weights))
        values = self._step(*inputs, tf.constant(learning_rate, tf.float32))
        return dict(zip(FIGURES, values, strict=True))

    def restore(self, blurred: np.ndarray) -> np.ndarray:
        """Return (B, H, W, 3) float32 in [0, 1] for uint8, without dropout, on this worker alone.

        Args:
            blurred: (B, H, W, 3) uint8.
        """
        restored: np.ndarray = self._restore(_to_unit(tf.constant(blurred))).numpy()
        return restored

    def _distributed(self, values: np.ndarray) -> Any:
        if self.replicas_here == 1:
            return tf.constant(values)
        shares = np.split(values, self.replicas_here)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                shares[context.replica_id_in_sync_group % self.replicas_here]
            )
        )

    def _replicated(self, blurred: Any, sharp: Any, weights: Any, rate: tf.Tensor) -> Any:
        values = self.strategy.run(self._replica_step, args=(blurred, sharp, weights, rate))
        return tf.unstack(self.strategy.experimental_local_results(values)[0])

    def _replica_step(self, blurred: Any, sharp: Any, weights: Any, rate: tf.Tensor) -> tf.Tensor:
        gradients, values = self._in_parts(blurred, sharp, weights)
        *gradients, values = tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.SUM, [*gradients, values]
        )
        count = len(self.generator.trainable_variables)
        norms = [self.generator_optimizer.apply(gradients[:count], rate), tf.constant(0.0)]
        if self.discriminator_optimizer:
            norms[1] = self.discriminator_optimizer.apply(gradients[count:], rate)
        return tf.concat([values, norms], axis=0)

    def _in_parts(self, blurred: Any, sharp: Any, weights: Any) -> tuple[list[Any], Any]:
        """Return the sums of the gradients and figures over the parts."""
        if self._parts == 1:
            return self._gradients(blurred, sharp, weights)
        size = blurred.shape[0] // self._parts
        if size * self._parts != blurred.shape[0]:
            raise ValueError(f"{blurred.shape[0]} photos do not make {self._parts} equal parts")

        def part(index: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
            window = slice(index * size, (index + 1) * size)
            gradients, values = self._gradients(blurred[window], sharp[window], weights[window])
            added = zip(sums, [*gradients, values], strict=True)
            return [index + 1, *(total + more for total, more in added)]

        trained = [*_tensors(self.generator)]
        if self.discriminator:
            trained += _tensors(self.discriminator)
        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in trained]
        _, *gradients, values = tf.while_loop(
            lambda index, *_: index < self._parts,
            part,
            [tf.constant(0), *zeros, tf.zeros(len(FIGURES) - 2)],
            parallel_iterations=1,
        )
        return gradients, values

    def _gradients(self, blurred: Any, sharp: Any, weights: Any) -> tuple[list[Any], Any]:
        """Return this share's gradients, the generator's first, and its part of the figures."""
        blurred, sharp = _to_unit(blurred), _to_unit(sharp)
        recipe, zero = self._recipe, tf.zeros_like(weights)
        # Both gradients come from the same forward pass, as in the tutorial: neither side sees the
        # other's update.
        with tf.GradientTape(persistent=True) as tape:
            restored = self.generator(blurred, training=True)
            pixel = losses.PIXEL[recipe.pixel](restored, sharp)
            gan, judge, real_right, fake_right = zero, zero, zero, zero
            if self.discriminator:
                real_logits = self.discriminator([blurred, sharp], training=True)
                fake_logits = self.discriminator([blurred, restored], training=True)
                gan = losses.cross_entropy(fake_logits, real=True)
                judge = losses.discriminator_loss(real_logits, fake_logits)
                real_right = losses.accuracy(real_logits, real=True)
                fake_right = losses.accuracy(fake_logits, real=False)
            total = recipe.pixel_weight * pixel + recipe.adversarial_weight * gan
            total_sum, judge_sum = (tf.reduce_sum(weights * loss) for loss in (total, judge))
        gradients = tape.gradient(total_sum, _tensors(self.generator))
        if self.discriminator:
            gradients += tape.gradient(judge_sum, _tensors(self.discriminator))
        error = 0.5 * losses.l1(restored, sharp)
        figures = tf.stack([total, pixel, error, gan, judge, real_right, fake_right])
        return gradients, tf.linalg.matvec(figures, weights)

    # === State ===

    def variables(self) -> Iterator[tuple[str, Any]]:
        """Yield everything that a step depends on: weights, dropout's seeds, optimisers' moments.

        Each has a unique name, the same in every process, which tells its part, place and shape.
        """
        parts: dict[str, Any] = {
            "generator": self.generator,
            "generator_optimizer": self.generator_optimizer,
        }
        if self.averaged is not self.generator:
            parts["averaged"] = self.averaged
        if self.discriminator:
            parts["discriminator"] = self.discriminator
            parts["discriminator_optimizer"] = self.discriminator_optimizer
        for part, owner in parts.items():
            for index, variable in enumerate(owner.variables):
                # Not its path: Keras numbers the scopes of what is built again in one process.
                name = variable.name.partition(":")[0]
                shape = "x".join(map(str, variable.shape))
                yield f"{part}/{index:04d}/{name}/{shape}", variable

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


def _tensors(model: Any) -> list[Any]:
    """Return TensorFlow's variables of a Keras model's trained weights."""
    return [variable.value for variable in model.trainable_variables]


def _copy(source: Any, target: Any) -> None:
    for theirs, mine in zip(source.weights, target.weights, strict=True):
        mine.assign(theirs)


def _to_unit(pixels: tf.Tensor) -> tf.Tensor:
    return tf.cast(pixels, tf.float32) * (1.0 / 255.0)
