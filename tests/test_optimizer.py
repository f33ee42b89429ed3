from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from deblur import optimizer
from deblur.optimizer import Adam

STEPS = 12


def gradients(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(step)
    return [rng.normal(0, 3, (4, 3)).astype(np.float32), rng.normal(0, 1, 5).astype(np.float32)]


def variables() -> list[Any]:
    rng = np.random.default_rng(99)
    return [tf.Variable(rng.normal(size=shape).astype(np.float32)) for shape in ((4, 3), (5,))]


def taken(adam: Adam, rates: Sequence[float]) -> list[float]:
    @tf.function
    def step(one: tf.Tensor, two: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        return adam.apply([one, two], rate)

    return [float(step(*gradients(i), tf.constant(rate))) for i, rate in enumerate(rates)]


def test_it_is_keras_s(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 1 - 0.999 float32 leaves Keras four digits.
    monkeypatch.setattr(optimizer, "_BETA_2", 0.99)
    mine, theirs = variables(), variables()
    rates = [1e-3 * (1 + step) for step in range(STEPS)]
    taken(Adam(mine, beta_1=0.5), rates)
    keras_s = keras.optimizers.Adam(beta_1=0.5, beta_2=0.99)
    keras_s.build(theirs)
    for step, rate in enumerate(rates):
        keras_s.learning_rate = rate
        keras_s.apply_gradients(zip(map(tf.constant, gradients(step)), theirs, strict=True))
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-6)


def test_gradients_are_clipped_all_together() -> None:
    clipped, scaled = variables(), variables()
    norms = taken(Adam(clipped, clip_norm=1.0), [0.1])
    whole = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients(0)))
    assert norms == [pytest.approx(whole, rel=1e-6)]  # as they were before
    by_hand = Adam(scaled)
    by_hand.apply([tf.constant(gradient / whole) for gradient in gradients(0)], tf.constant(0.1))
    moments = zip(by_hand.variables, Adam(variables()).variables, strict=True)
    assert any((one.numpy() != other.numpy()).any() for one, other in moments)
    for one, other in zip(clipped, scaled, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5)
    small = variables()
    taken(Adam(small, clip_norm=1e6), [0.1])
    free = variables()
    taken(Adam(free), [0.1])
    for one, other in zip(small, free, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_the_average_follows_the_weights() -> None:
    weights, averages = variables(), variables()
    averaging = Adam(weights, average=0.9, averages=averages)
    expected = [average.numpy().astype(np.float64) for average in averages]
    for step in range(STEPS):
        taken_once = tf.constant(0.1)
        averaging.apply([tf.constant(gradient) for gradient in gradients(step)], taken_once)
        decay = min(0.9, (2 + step) / (11 + step))
        for index, weight in enumerate(weights):
            expected[index] = decay * expected[index] + (1 - decay) * weight.numpy()
    for average, value in zip(averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, rtol=1e-5)


def test_its_variables_are_all_it_needs_to_go_on() -> None:
    undisturbed, resumed = variables(), variables()
    one, other = Adam(undisturbed), Adam(resumed)
    taken(one, [0.1] * 3)
    for source, target in zip(one.variables, other.variables, strict=True):
        target.assign(source)
    for source, target in zip(undisturbed, resumed, strict=True):
        target.assign(source)
    taken(one, [0.1])
    taken(other, [0.1])
    for source, target in zip(undisturbed, resumed, strict=True):
        np.testing.assert_array_equal(source.numpy(), target.numpy())


def test_weights_that_add_up_many_inputs_move_less() -> None:
    one_rate, by_inputs = variables(), variables()
    before = [variable.numpy() for variable in variables()]
    taken(Adam(one_rate), [0.1, 0.1])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    shares = optimizer.rates(model, full_rate_inputs=1)
    taken(Adam(by_inputs, rates=shares), [0.1, 0.1])
    # A kernel of four inputs, and a bias.
    for mine, plain, start, share in zip(by_inputs, one_rate, before, (0.25, 1), strict=True):
        np.testing.assert_allclose(mine.numpy() - start, share * (plain - start), rtol=1e-4)


def test_a_transposed_convolution_s_outputs_add_up_what_its_strides_leave() -> None:
    picture = keras.Input((8, 8, 5))
    options = {"strides": 2, "padding": "same", "use_bias": False, "name": "up"}
    x = keras.layers.Conv2DTranspose(3, 4, **options)(picture)
    x = keras.layers.Conv2D(7, 3, padding="same")(x)
    model = keras.Model(picture, x)
    assert model.get_layer("up").kernel.shape == (4, 4, 3, 5)
    # Of its 16 places a pixel is under four, with five inputs each.
    assert optimizer.rates(model, full_rate_inputs=1) == [1 / 20, 1 / 27, 1]
    assert optimizer.rates(model, full_rate_inputs=24) == [1, 24 / 27, 1]
