"""The kernel that is estimated from a restored picture, and what it puts right."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from deblur import blur, metrics
from deblur.networks import kernel, network
from tests.benchmarks.kernel import convolving

SAMPLES = sorted((Path(__file__).parents[1] / "deblur" / "samples").rglob("*.jpg"))
SHIFTS = 2 * kernel.REACH


def _sharp(index: int = 0, side: int = 256) -> np.ndarray:
    picture = cv2.imread(str(SAMPLES[index]))[..., ::-1]
    scale = 2 * side / min(picture.shape[:2])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[side // 2 :, side // 2 :][:side, :side])


def _shake(seed: int) -> blur.Degradation:
    return blur.Degradation("motion", {"exposure": 0.4, "anxiety": 0.004, "path_seed": seed})


def _unit(picture: np.ndarray) -> np.ndarray:
    return (picture.astype(np.float32) / 255)[None]


def test_light_and_display_values_are_inverse_and_those_of_blur() -> None:
    levels = np.arange(256, dtype=np.float32) / 255
    light = np.asarray(kernel.to_light(levels))
    np.testing.assert_allclose(light, blur._LIGHT, atol=1e-6)
    np.testing.assert_allclose(kernel.to_display(light), levels, atol=2e-5)
    assert float(kernel.to_display(np.float32(7))) == pytest.approx(1)
    assert float(kernel.to_light(np.float32(-7))) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_picture_and_its_blur_are_evidence_of_the_kernel(seed: int) -> None:
    drawn, sharp = _shake(seed), _sharp(seed)
    maps, levels = kernel.Evidence()([_unit(blur.degrade(sharp, drawn)), _unit(sharp)])
    assert maps.shape == (1, SHIFTS, SHIFTS, 9)
    assert levels.shape == (1, 4)
    true = convolving(blur.psf(drawn))
    seen = np.asarray(maps)[0, :, :, 1]
    assert np.sum(seen * true) > 0.85 * np.linalg.norm(seen) * np.linalg.norm(true)


def test_of_a_picture_with_itself_nothing_has_moved() -> None:
    sharp = _unit(_sharp())
    maps = np.asarray(kernel.Evidence()([sharp, sharp])[0])[0]
    for index in range(6):
        assert np.unravel_index(maps[..., index].argmax(), maps.shape[:2]) == (24, 24)
    np.testing.assert_allclose(maps[..., 6] * 9, maps[..., 8] * 7.7, rtol=0, atol=1e-3)


def test_black_pictures_are_no_evidence_and_no_harm() -> None:
    black = np.zeros((1, 64, 64, 3), np.float32)
    for each in kernel.Evidence()([black, black]):
        assert np.isfinite(each).all()


def test_a_kernel_is_one() -> None:
    logits = np.random.default_rng(0).normal(size=(2, SHIFTS, SHIFTS, 1)).astype(np.float32)
    kernels = np.asarray(kernel.Kernel()(30 * logits))
    assert kernels.min() >= 0
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_true_kernel_puts_right_what_is_still_blurred(seed: int) -> None:
    sharp = _sharp(seed)
    drawn = blur.Degradation(
        "photo",
        {
            "blur": {"kind": "motion", **_shake(seed).parameters},
            "highlight": 0, "shot": 0, "read": 0, "noise_seed": 0, "jpeg_quality": None,
        },
    )  # fmt: skip
    blurred = blur.degrade(sharp, drawn)
    true = convolving(blur.psf(drawn))[None]
    seen, halfway = _unit(blurred), (_unit(blurred) + _unit(sharp)) / 2

    def psnr(caution: float) -> float:
        level = np.full((1, 8), caution, np.float32)
        restored = np.asarray(kernel.Deconvolution()([seen, halfway, true, level]))[0]
        return metrics.psnr_8bit(np.rint(255 * restored).astype(np.uint8), sharp)

    before = metrics.psnr_8bit(np.rint(255 * halfway[0]).astype(np.uint8), sharp)
    assert psnr(-3.5) > before + 1.5
    assert psnr(20) == pytest.approx(before, abs=0.2)


def test_what_needs_no_putting_right_is_left() -> None:
    sharp = _unit(_sharp())
    still = np.zeros((1, SHIFTS, SHIFTS), np.float32)
    still[0, kernel.REACH, kernel.REACH] = 1
    level = np.full((1, 8), -3, np.float32)
    restored = np.asarray(kernel.Deconvolution()([sharp, sharp, still, level]))
    np.testing.assert_allclose(restored, sharp, atol=1e-4)


def test_a_kernel_that_explains_nothing_has_no_say() -> None:
    """Nor do wrong ones do harm to what is sharp, or restored already."""
    sharp, wrong = _unit(_sharp()), convolving(blur.psf(_shake(1)))[None]
    level, noise = (
        np.full((1, 8), -3, np.float32),
        np.random.default_rng(0).normal(0, 0.01, sharp.shape),
    )
    for seen in (sharp, (sharp + noise).clip(0, 1).astype(np.float32)):
        restored = np.asarray(kernel.Deconvolution()([seen, sharp, wrong, level]))
        np.testing.assert_allclose(restored, sharp, atol=1e-5)


def test_gradients_are_finite_and_reach_the_first_layer() -> None:
    import tensorflow as tf

    generator = network("wiener-photo-kernel").generator()
    rng = np.random.default_rng(0)
    for weight in generator.weights:
        weight.assign(weight + rng.normal(0, 0.01, weight.shape))
    generator.get_layer("kernel_caution").bias.assign(np.full(8, -2.0))
    sharp = _unit(_sharp(side=128))
    blurred = _unit(blur.degrade(_sharp(side=128), _shake(1)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((generator(blurred, training=True) - sharp) ** 2)
    weights = [weight.value for weight in generator.trainable_weights]
    gradients = tape.gradient(loss, weights)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    moved = {
        weight.path.split("/")[0]
        for weight, gradient in zip(generator.trainable_weights, gradients, strict=True)
        if np.abs(gradient).max() > 0
    }
    assert {"stem", "head"} <= moved
