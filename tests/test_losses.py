from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from deblur import losses, metrics


@pytest.fixture(scope="module")
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 4, (2, 30, 30, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    sharp, restored = rng.random((2, 3, 16, 16, 3), np.float32)
    return restored, sharp


def test_cross_entropy_by_hand() -> None:
    logits = np.array([0.0, math.log(3)], np.float32).reshape(1, 2, 1, 1)  # 1/2 and 3/4
    real = (math.log(2) + math.log(4 / 3)) / 2
    fake = (math.log(2) + math.log(4)) / 2
    assert float(losses.cross_entropy(logits, real=True)[0]) == pytest.approx(real, rel=1e-6)
    assert float(losses.cross_entropy(logits, real=False)[0]) == pytest.approx(fake, rel=1e-6)


@pytest.mark.parametrize("real", [True, False])
def test_cross_entropy_is_keras_s(real: bool, logits: np.ndarray) -> None:
    keras_s = keras.losses.BinaryCrossentropy(from_logits=True)
    for photo, found in zip(logits, losses.cross_entropy(logits, real=real), strict=True):
        expected = float(keras_s(np.full_like(photo, real), photo))
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_sure_logits_neither_overflow_nor_vanish() -> None:
    sure = np.full((1, 1, 1, 1), 1000.0, np.float32)
    assert float(losses.cross_entropy(sure, real=True)[0]) == 0
    assert float(losses.cross_entropy(sure, real=False)[0]) == 1000


def test_l1_is_on_the_paper_s_scale() -> None:
    sharp = np.zeros((2, 4, 4, 3), np.float32)
    restored = sharp.copy()
    restored[0, :2] = 1  # in [-1, 1] a difference of 2, in half of the pixels
    assert np.asarray(losses.l1(restored, sharp)).tolist() == [1, 0]
    paper_s = np.abs((2 * restored - 1) - (2 * sharp - 1)).mean()
    assert np.asarray(losses.l1(restored, sharp)).mean() == paper_s


def test_psnr_is_the_metric(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    for restored, sharp, loss in zip(*pictures, losses.psnr(*pictures), strict=True):
        assert -float(loss) == pytest.approx(metrics.psnr(restored, sharp, data_range=1), abs=1e-4)


@pytest.mark.parametrize("name", losses.PIXEL)
def test_pixel_losses_have_gradients_at_equal_pictures(name: str) -> None:
    import tensorflow as tf

    sharp = tf.fill((1, 4, 4, 3), 0.5)
    restored = tf.Variable(sharp)
    with tf.GradientTape() as tape:
        loss = losses.PIXEL[name](restored, sharp)
    assert np.isfinite(tape.gradient(loss, restored).numpy()).all()
    assert float(losses.PIXEL[name](sharp + 0.1, sharp)[0]) > float(loss[0])


def test_the_discriminator_s_loss_is_the_sum_of_both_sides(logits: np.ndarray) -> None:
    undecided = np.asarray(losses.discriminator_loss(np.zeros_like(logits), np.zeros_like(logits)))
    np.testing.assert_allclose(undecided, 2 * math.log(2), rtol=1e-6)
    right = np.asarray(losses.discriminator_loss(np.abs(logits), -np.abs(logits)))
    wrong = np.asarray(losses.discriminator_loss(-np.abs(logits), np.abs(logits)))
    assert (right < undecided).all()
    assert (undecided < wrong).all()


def test_accuracy_counts_patches() -> None:
    logits = np.array([1.0, 2.0, 3.0, -1.0], np.float32).reshape(1, 2, 2, 1)
    assert float(losses.accuracy(logits, real=True)[0]) == 0.75
    assert float(losses.accuracy(logits, real=False)[0]) == 0.25


def test_a_photo_s_loss_does_not_depend_on_its_company(
    logits: np.ndarray, pictures: tuple[np.ndarray, np.ndarray]
) -> None:
    for loss, arguments in (
        *((loss, pictures) for loss in losses.PIXEL.values()),
        (losses.discriminator_loss, (logits, logits[::-1].copy())),
    ):
        whole = np.asarray(loss(*arguments))
        alone = [
            float(loss(*(each[i : i + 1] for each in arguments))[0]) for i in range(len(whole))
        ]
        np.testing.assert_allclose(whole, alone, rtol=1e-6)
