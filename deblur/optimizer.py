"""Adam as a step of training needs it: fused, clipped over all workers, with averaged weights.

Keras's own updates each weight by a dozen operations and clips what one worker sees before all
have added up; at batch 1 its update is a fifth of pix2pix's step (tests/benchmarks/training.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

# Keras's, and so the tutorial's.
_BETA_2 = 0.999
_EPSILON = 1e-7


class Adam:
    """Adam for `tf.Variable`s of any `tf.distribute` strategy.

    Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        *,
        beta_1: float = 0.9,
        clip_norm: float | None = None,
        rates: Sequence[float] = (),
        average: float = 0.0,
        averages: Sequence[Any] = (),
    ) -> None:
        """Make the moments, in the strategy's scope.

        Args:
            variables: what is trained.
            beta_1: decay of the first moments.
            clip_norm: the largest norm of all gradients together.
            rates: the share of the learning rate that each variable has, else all of it.
            average: decay of the moving average, less in the first steps.
            averages: the variables that hold it, in the order of the others.
        """
        self._variables = list(variables)
        self._averages = list(averages) or [None] * len(self._variables)
        self._beta_1, self._clip_norm, self._average = beta_1, clip_norm, average
        self._rates = list(rates) or [1.0] * len(self._variables)
        self._moments = [
            (_zeros_like(variable, "m"), _zeros_like(variable, "v")) for variable in self._variables
        ]
        self.iterations = tf.Variable(
            0,
            dtype=tf.int64,
            trainable=False,
            name="iterations",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )

    @property
    def variables(self) -> Iterator[Any]:
        """Yield everything that an update depends on, besides the weights and their average."""
        yield self.iterations
        for pair in self._moments:
            yield from pair

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor) -> tf.Tensor:
        """Update the variables, in a replica's context, and return the norm of the gradients.

        Args:
            gradients: the same in all replicas: summed over them.
            learning_rate: scalar float32.
        """
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm is not None:
            scale = tf.minimum(1.0, self._clip_norm / (norm + _EPSILON))
            gradients = [gradient * scale for gradient in gradients]
        done = tf.cast(self.iterations.assign_add(1), tf.float32)
        tf.distribute.get_replica_context().merge_call(
            self._update, args=(list(gradients), learning_rate, done)
        )
        return norm

    def _update(self, strategy: Any, gradients: Any, learning_rate: Any, done: Any) -> None:
        parts = (self._variables, gradients, self._moments, self._averages, self._rates)
        for variable, gradient, moments, average, factor in zip(*parts, strict=True):
            strategy.extended.update(
                variable,
                self._update_one,
                args=(gradient, *moments, average, learning_rate * factor, done),
                group=False,
            )

    def _update_one(
        self, variable: Any, gradient: Any, m: Any, v: Any, average: Any, rate: Any, done: Any
    ) -> None:
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=m.handle,
            v=v.handle,
            beta1_power=tf.pow(self._beta_1, done),
            beta2_power=tf.pow(_BETA_2, done),
            lr=rate,
            beta1=self._beta_1,
            beta2=_BETA_2,
            epsilon=_EPSILON,
            grad=gradient,
        )
        if average is not None:
            decay = tf.minimum(self._average, (1 + done) / (10 + done))
            average.assign_add((1 - decay) * (variable - average))


def rates(model: Any, full_rate_inputs: int) -> list[float]:
    """Return the share of the learning rate of each of a model's trained weights.

    Adam moves each weight alike, so what they add up to moves with their number: those that add up more
    than `full_rate_inputs` have a rate that is lower in proportion. Yang et al., "Tensor Programs V", 2022.
    """
    transposed = {
        id(layer.kernel): _transposed_inputs(layer)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2DTranspose)
    }
    inputs = (transposed.get(id(weight)) or _inputs(weight) for weight in model.trainable_variables)
    return [min(1.0, full_rate_inputs / count) for count in inputs]


def _inputs(weight: Any) -> int:
    """Return how many inputs each output adds up: of a kernel, (..., inputs, outputs); of a bias, one."""
    shape = weight.shape
    return math.prod(shape[:-1]) if len(shape) > 1 else 1


def _transposed_inputs(layer: Any) -> int:
    """Return the same of a kernel that is (height, width, outputs, inputs), of which the strides skip most."""
    height, width, _, inputs = layer.kernel.shape
    places: int = math.ceil(height * width / math.prod(layer.strides))
    return places * int(inputs)


def _zeros_like(variable: Any, name: str) -> Any:
    return tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False, name=name)
