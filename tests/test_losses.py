from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from deblur import losses


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (2, 30, 30, 1)).astype(np.float32)


def test_cross_entropy_by_hand() -> None:
    logits = np.array([0.0, math.log(3)], np.float32)  # probabilities 1/2 and 3/4
    real = (math.log(2) + math.log(4 / 3)) / 2
    fake = (math.log(2) + math.log(4)) / 2
    assert float(losses.cross_entropy(logits, real=True)) == pytest.approx(real, rel=1e-6)
    assert float(losses.cross_entropy(logits, real=False)) == pytest.approx(fake, rel=1e-6)


@pytest.mark.parametrize("real", [True, False])
def test_cross_entropy_is_keras_s(real: bool, logits: np.ndarray) -> None:
    keras_s = keras.losses.BinaryCrossentropy(from_logits=True)
    expected = float(keras_s(np.full_like(logits, real), logits))
    assert float(losses.cross_entropy(logits, real=real)) == pytest.approx(expected, rel=1e-5)


def test_sure_logits_neither_overflow_nor_vanish() -> None:
    sure = np.array([1000.0], np.float32)
    assert float(losses.cross_entropy(sure, real=True)) == 0
    assert float(losses.cross_entropy(sure, real=False)) == 1000


def test_l1_is_on_the_paper_s_scale() -> None:
    sharp = np.zeros((2, 4, 4, 3), np.float32)
    restored = sharp.copy()
    restored[0] = 1  # in [-1, 1] a difference of 2, in half of the pixels
    assert float(losses.l1(restored, sharp)) == 1
    paper_s = np.abs((2 * restored - 1) - (2 * sharp - 1)).mean()
    assert float(losses.l1(restored, sharp)) == paper_s


def test_the_generator_s_loss_is_gan_and_100_l1(logits: np.ndarray) -> None:
    sharp = np.full((2, 4, 4, 3), 0.5, np.float32)
    loss = losses.generator_loss(logits, sharp + 0.25, sharp)
    assert float(loss.l1) == 0.5
    assert float(loss.gan) == float(losses.cross_entropy(logits, real=True))
    assert float(loss.total) == pytest.approx(float(loss.gan) + 50, rel=1e-6)


def test_the_discriminator_s_loss_is_the_sum_of_both_sides(logits: np.ndarray) -> None:
    undecided = float(losses.discriminator_loss(np.zeros_like(logits), np.zeros_like(logits)))
    assert undecided == pytest.approx(2 * math.log(2), rel=1e-6)
    right = float(losses.discriminator_loss(np.abs(logits), -np.abs(logits)))
    wrong = float(losses.discriminator_loss(-np.abs(logits), np.abs(logits)))
    assert right < undecided < wrong


def test_a_batch_s_loss_is_the_mean_of_its_parts(logits: np.ndarray) -> None:
    whole = float(losses.cross_entropy(logits, real=True))
    parts = [float(losses.cross_entropy(part[None], real=True)) for part in logits]
    assert whole == pytest.approx(np.mean(parts), rel=1e-6)
