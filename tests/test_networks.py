from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from deblur import tiles
from deblur.errors import UsageError
from deblur.networks import NETWORKS, network, pix2pix, wiener, wiener_unet

POLICIES = ["float32", "mixed_bfloat16"]
# One of each module, for what holds for all.
ONE_EACH = ["pix2pix-small", "wiener-box14"]


# TensorFlow's tutorial, layer for layer: filters, normalised, dropout.
DOWN = [
    (64, False),
    (128, True),
    (256, True),
    (512, True),
    (512, True),
    (512, True),
    (512, True),
    (512, True),
]
UP = [
    (512, 0.5),
    (512, 0.5),
    (512, 0.5),
    (512, None),
    (256, None),
    (128, None),
    (64, None),
]
PATCH_DOWN = [(64, False), (128, True), (256, True)]


@cache
def built(name: str, part: str, policy: str = "float32") -> Any:
    keras.utils.set_random_seed(0)
    return getattr(network(name), part)(policy)


@cache
def stirred(name: str, policy: str = "float32") -> Any:
    """A generator without zero weights, as after training; the same weights in both policies."""
    rng = np.random.default_rng(0)
    generator = built(name, "generator", policy)
    generator.set_weights(
        [
            weight + 0.004 * rng.standard_normal(weight.shape, np.float32)
            for weight in built(name, "generator").get_weights()
        ]
    )
    return generator


@cache
def compiled(name: str, policy: str) -> Any:
    generator = stirred(name, policy)
    return tf.function(lambda batch: generator(batch, training=False))


@pytest.fixture(scope="module")
def blurred() -> np.ndarray:
    small = np.random.default_rng(0).random((8, 16, 16, 3), dtype=np.float32)
    return np.asarray(keras.ops.image.resize(small, (256, 256)))


def names_of(model: Any, stem: str) -> list[str]:
    return [layer.name for layer in model.layers if layer.name.startswith(stem + "_")]


def check_conv(layer: Any, filters: int, *, strides: int, padding: str, bias: bool) -> None:
    assert (layer.filters, layer.kernel_size) == (filters, (4, 4))
    assert (layer.strides, layer.padding) == ((strides, strides), padding)
    assert layer.use_bias is bias
    assert layer.kernel_initializer.get_config()["stddev"] == 0.02


# === The report's network ===


def test_the_report_s_parameters() -> None:
    generator, discriminator = (built("pix2pix", part) for part in ("generator", "discriminator"))
    assert [model.count_params() for model in (generator, discriminator)] == [54_414_979, 2_768_641]
    trained = [*generator.trainable_variables, *discriminator.trainable_variables]
    assert sum(np.prod(weight.shape) for weight in trained) == 57_183_620


def test_the_generator_s_way_down_is_the_tutorial_s() -> None:
    generator = built("pix2pix", "generator")
    for level, (filters, normalised) in enumerate(DOWN):
        stem = f"down{level}"
        assert names_of(generator, stem) == [
            f"{stem}_{kind}" for kind in ("conv", *(["norm"] if normalised else []), "act")
        ]
        conv = generator.get_layer(f"{stem}_conv")
        assert isinstance(conv, layers.Conv2D)
        check_conv(conv, filters, strides=2, padding="same", bias=False)
        side = 128 >> level
        assert generator.get_layer(f"{stem}_act").output.shape == (None, side, side, filters)
        assert generator.get_layer(f"{stem}_act").negative_slope == pytest.approx(0.3)


def test_the_generator_s_way_up_is_the_tutorial_s() -> None:
    generator = built("pix2pix", "generator")
    for level, (filters, dropout) in enumerate(UP):
        stem = f"up{level}"
        kinds = ("conv", "norm", *(["dropout"] if dropout else []), "act", "skip")
        assert names_of(generator, stem) == [f"{stem}_{kind}" for kind in kinds]
        conv = generator.get_layer(f"{stem}_conv")
        assert isinstance(conv, layers.Conv2DTranspose)
        check_conv(conv, filters, strides=2, padding="same", bias=False)
        assert isinstance(generator.get_layer(f"{stem}_act"), layers.ReLU)
        if dropout:
            assert generator.get_layer(f"{stem}_dropout").rate == dropout
        skip, side = generator.get_layer(f"{stem}_skip"), 2 << level
        mirrored = DOWN[6 - level][0]
        assert skip.output.shape == (None, side, side, filters + mirrored)
        assert skip.input[1] is generator.get_layer(f"down{6 - level}_act").output
    last = generator.get_layer("out_conv")
    check_conv(last, 3, strides=2, padding="same", bias=True)
    assert generator.get_layer("out_tanh").activation is keras.activations.tanh


def test_the_discriminator_is_the_tutorial_s() -> None:
    discriminator = built("pix2pix", "discriminator")
    for level, (filters, normalised) in enumerate(PATCH_DOWN):
        stem = f"down{level}"
        assert names_of(discriminator, stem) == [
            f"{stem}_{kind}" for kind in ("conv", *(["norm"] if normalised else []), "act")
        ]
        conv = discriminator.get_layer(f"{stem}_conv")
        check_conv(conv, filters, strides=2, padding="same", bias=False)
    tail = [layer.name for layer in discriminator.layers][-7:]
    assert tail == [
        "pad0", "patch_conv", "patch_norm", "patch_act", "pad1", "logits_conv", "logits",
    ]  # fmt: skip
    patch, logits = (discriminator.get_layer(name) for name in ("patch_conv", "logits_conv"))
    check_conv(patch, 512, strides=1, padding="valid", bias=False)
    check_conv(logits, 1, strides=1, padding="valid", bias=True)
    assert discriminator.output.shape == (None, 30, 30, 1)


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_at_batch_size_one_it_is_the_tutorial_s_batch_normalisation(
    part: str, blurred: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"width": 8, **({"dropout": 0.0} if part == "generator" else {})}
    ours = getattr(pix2pix, part)(**arguments)
    monkeypatch.setattr(
        pix2pix,
        "_norm",
        lambda dtype, name: layers.BatchNormalization(epsilon=1e-3, dtype=dtype, name=name),
    )
    tutorial = getattr(pix2pix, part)(**arguments)
    for theirs, mine in zip(tutorial.trainable_weights, ours.trainable_weights, strict=True):
        mine.assign(theirs + 0.1)  # so that no scale is one and no offset zero
        theirs.assign(mine)
    given = blurred[:1] if part == "generator" else [blurred[:1], blurred[1:2]]
    expected = np.asarray(tutorial(given, training=True))
    np.testing.assert_allclose(ours(given, training=False), expected, rtol=1e-4, atol=1e-5)


# === Every network ===


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_types(name: str, policy: str, blurred: np.ndarray) -> None:
    generator, discriminator = (
        built(name, part, policy) for part in ("generator", "discriminator")
    )
    restored = np.asarray(generator(blurred[:1], training=False))
    assert (restored.shape, restored.dtype) == ((1, 256, 256, 3), np.float32)
    assert restored.min() >= 0
    assert restored.max() <= 1
    logits = np.asarray(discriminator([blurred[:1], restored], training=False))
    side = 30 if name.startswith("pix2pix") else 32
    assert (logits.shape, logits.dtype) == ((1, side, side, 1), np.float32)
    assert {weight.dtype for weight in generator.weights} == {"float32"}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_range_holds_for_any_weights(policy: str, blurred: np.ndarray) -> None:
    generator = pix2pix.generator(policy, width=4)
    generator.set_weights([40 * weight for weight in generator.get_weights()])
    restored = np.asarray(generator(blurred[:1], training=False))
    assert (restored.min(), restored.max()) == (0, 1)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ONE_EACH)
def test_a_result_is_independent_of_its_batch_mates(
    name: str, policy: str, blurred: np.ndarray
) -> None:
    """To the bit in batches of one size: the restorer has one size always."""
    restore = compiled(name, policy)
    together = restore(blurred).numpy()
    order = np.random.default_rng(1).permutation(len(blurred))
    np.testing.assert_array_equal(restore(blurred[order]).numpy(), together[order])
    among_black = np.zeros_like(blurred)
    among_black[3] = blurred[5]
    np.testing.assert_array_equal(restore(among_black).numpy()[3], together[5])


@pytest.mark.parametrize(("policy", "levels"), [("float32", 0.01), ("mixed_bfloat16", 2)])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ONE_EACH)
def test_another_batch_size_changes_roundings_alone(
    name: str, size: int, policy: str, levels: float, blurred: np.ndarray
) -> None:
    """A convolution may add in another order: seen are 0 in float32 and 0.4 level in bfloat16."""
    restore = compiled(name, policy)
    apart = np.abs(restore(blurred[:size]).numpy() - restore(blurred).numpy()[:size])
    assert apart.max() * 255 < levels


@pytest.mark.parametrize("policy", POLICIES)
def test_dropout_is_for_training(policy: str, blurred: np.ndarray) -> None:
    restore, generator = (make("pix2pix-small", policy) for make in (compiled, stirred))
    np.testing.assert_array_equal(restore(blurred), restore(blurred))
    twice = [np.asarray(generator(blurred[:1], training=True)) for _ in range(2)]
    assert (twice[0] != twice[1]).any()


@pytest.mark.parametrize("name", ONE_EACH)
def test_bfloat16_is_close_to_float32(name: str, blurred: np.ndarray) -> None:
    coarse, fine = (compiled(name, policy)(blurred[:2]).numpy() for policy in POLICIES[::-1])
    assert np.abs(coarse - fine).mean() * 255 < 0.5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("part", ["generator", "discriminator"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_round_trips(
    name: str, part: str, policy: str, blurred: np.ndarray, tmp_path: Path
) -> None:
    model = stirred(name, policy) if part == "generator" else built(name, part, policy)
    again = model.__class__.from_config(model.get_config())
    again.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    given = blurred[:1] if part == "generator" else [blurred[:1], blurred[1:2]]
    for other in (again, loaded):
        np.testing.assert_array_equal(other(given, training=False), model(given, training=False))
        assert [layer.name for layer in other.layers] == [layer.name for layer in model.layers]


# === The Wiener U-Net ===


def cosines(height: int, width: int) -> np.ndarray:
    """Three channels of low frequencies, such that mirroring at the borders continues them."""
    y = np.cos(np.pi * np.outer([2, 3, 5], np.arange(height)) / (height - 1))
    x = np.cos(np.pi * np.outer([4, 1, 7], np.arange(width)) / (width - 1))
    channels = 0.5 + 0.4 * y[:, :, None] * x[:, None]
    return np.ascontiguousarray(np.moveaxis(channels, 0, 2).astype(np.float32))


@pytest.mark.parametrize("size", [(96, 96), (64, 112)])
@pytest.mark.parametrize("kind", ["box", "gaussian"])
def test_the_filter_undoes_its_blur_up_to_the_border(kind: str, size: tuple[int, int]) -> None:
    sharp = cosines(*size)
    if kind == "box":
        guess, shift = ("box", 14, 1e-6), 1
        blurred = cv2.blur(sharp, (14, 14), borderType=cv2.BORDER_REFLECT_101)
    else:
        guess, shift = ("gaussian", 2, 1e-3), 0
        blurred = cv2.GaussianBlur(sharp, (23, 23), 2, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(blurred - sharp).max() > 0.02
    detail = wiener.WienerDetail([guess], mirror_shift=shift, dtype="float32")
    np.testing.assert_allclose(blurred + detail(blurred[None])[0], sharp, atol=1e-3)


def test_a_filter_for_no_blur_adds_nothing(blurred: np.ndarray) -> None:
    detail = wiener.WienerDetail([("box", 1, 0)], dtype="float32")
    np.testing.assert_allclose(detail(cosines(64, 256)[None]), 0, atol=1e-5)
    grey = np.repeat(blurred[:1, :64, :, :1], 3, axis=-1)
    np.testing.assert_allclose(detail(grey), 0, atol=1e-5)


def test_a_filter_keeps_no_fine_colours() -> None:
    """Stripes of two pixels in red against blue have no place; in grey they have."""
    stripes = np.zeros((1, 32, 64, 3), np.float32)
    stripes[:, :, ::2, 0] = 1
    stripes[:, :, 1::2, 2] = 1
    detail = wiener.WienerDetail([("box", 1, 0)], dtype="float32")
    restored = stripes + np.asarray(detail(stripes))
    assert np.ptp(restored[0, :, 8:-8], axis=1).max() < 0.05
    grey = np.repeat(stripes[..., :1], 3, axis=-1)
    np.testing.assert_allclose(detail(grey), 0, atol=1e-5)


@pytest.mark.parametrize(("recipe", "shift"), [("box14", 1), ("photo", 0)])
def test_filters_turn_with_the_picture(recipe: str, shift: int, blurred: np.ndarray) -> None:
    layer = wiener.WienerDetail(wiener_unet.GUESSES[recipe], mirror_shift=shift, dtype="float32")
    given = blurred[:1, :128]
    expected = np.asarray(layer(given)).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(layer(given.transpose(0, 2, 1, 3)), expected, atol=1e-3)
    if not shift:
        mirrored = np.asarray(layer(given[:, :, ::-1]))[:, :, ::-1]
        np.testing.assert_allclose(mirrored, layer(given), atol=1e-3)


@pytest.mark.parametrize(("recipe", "start"), [("photo", 0), ("box14", 1)])
def test_untrained_it_mostly_returns_its_input_or_the_known_blur_s_filter(
    recipe: str, start: int, blurred: np.ndarray
) -> None:
    network = built(f"wiener-{recipe}", "generator")
    details = np.split(np.asarray(network.get_layer("wiener")(blurred[:1])), [3, 6, 9], axis=-1)
    choices = np.stack([0 * blurred[:1], *(one for one in details if one.size)])
    weights = np.exp(3.0 * (np.arange(len(choices)) == start))
    expected = blurred[:1] + np.tensordot(weights / weights.sum(), choices, axes=1)
    given = network(blurred[:1], training=False)
    np.testing.assert_allclose(given, np.clip(expected, 0, 1), atol=1e-5)


def test_weights_are_shares_of_one() -> None:
    """However sure the head is, what comes out lies between the picture and its filters."""
    rng = np.random.default_rng(0)
    picture, head = rng.random((1, 4, 4, 3), np.float32), 100 * rng.standard_normal((1, 4, 4, 5))
    head[..., :3] = 0
    details = rng.standard_normal((1, 4, 4, 6)).astype(np.float32)
    blend = wiener_unet.Blend(start=0)([picture, details, head.astype(np.float32)], training=True)
    choices = np.stack([0 * picture, details[..., :3], details[..., 3:]]) + picture
    assert (np.asarray(blend) <= choices.max(axis=0) + 1e-5).all()
    assert (np.asarray(blend) >= choices.min(axis=0) - 1e-5).all()


def test_a_context_says_nothing_at_first_and_then_the_same_everywhere(blurred: np.ndarray) -> None:
    shape = {"recipe": "photo", "widths": (8, 8, 8, 8), "blocks": (1, 1, 1, 1)}
    plain, told = wiener_unet.generator(**shape), wiener_unet.generator(**shape, context=4)
    rng = np.random.default_rng(0)
    for layer in plain.layers:
        weights = [0.2 * rng.standard_normal(one.shape) for one in layer.get_weights()]
        layer.set_weights(weights)
        told.get_layer(layer.name).set_weights(weights)
    given = np.ascontiguousarray(blurred[:2, :64, :128])
    np.testing.assert_allclose(told(given), plain(given), atol=1e-5)

    context = keras.Model(told.input, told.get_layer("context").output)
    assert context(given).shape == (2, 1, 1, 4)
    for layer in told.layers:
        if layer.name.endswith("_scale"):
            layer.set_weights([rng.standard_normal(one.shape) for one in layer.get_weights()])
    assert np.abs(np.asarray(told(given) - plain(given))).max() > 1e-3


@pytest.mark.parametrize("name", ["wiener-box14-lean", "wiener-photo", "wiener-photo-lean"])
@pytest.mark.parametrize("size", [(16, 16), (48, 80), (272, 32)])
def test_any_multiple_of_the_stride(name: str, size: tuple[int, int]) -> None:
    given = np.random.default_rng(0).random((2, *size, 3), dtype=np.float32)
    assert network(name).stride == 16
    assert compiled(name, "float32")(given).shape == given.shape


def test_one_trace_serves_all_sizes(blurred: np.ndarray) -> None:
    generator = stirred("wiener-box14")
    shape = tf.TensorSpec((None, None, None, 3))
    graph = tf.function(lambda batch: generator(batch, training=False), input_signature=[shape])
    for given in (blurred[:1, :64, :128], blurred[:2, :128, :64]):
        np.testing.assert_allclose(graph(given), generator(given, training=False), atol=1e-4)


def test_it_is_clipped_outside_training_alone(blurred: np.ndarray) -> None:
    generator = stirred("wiener-box14")
    free = np.asarray(generator(blurred[:2], training=True))
    assert free.max() > 1
    np.testing.assert_allclose(
        generator(blurred[:2], training=False), np.clip(free, 0, 1), atol=1e-5
    )


def test_the_discriminator_judges_fine_detail_alone(blurred: np.ndarray) -> None:
    discriminator = built("wiener-box14", "discriminator")
    picture = 0.25 + 0.5 * blurred[:1, :64, :64]
    logits = np.asarray(discriminator([picture, picture], training=False))
    inside = np.s_[:, 3:-3, 3:-3]  # at the border the mean is of fewer pixels
    ramp = 0.2 * np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    np.testing.assert_allclose(
        discriminator([picture, picture + ramp], training=False)[inside], logits[inside], atol=1e-4
    )
    rough = picture + 0.1 * np.indices((64, 64)).sum(axis=0)[..., None].astype(np.float32) % 0.2
    assert np.abs(discriminator([picture, rough], training=False) - logits).max() > 1e-2


def test_both_fit_the_package() -> None:
    """Two models in 16 bits a weight, in 32 MB."""
    names = ("wiener-box14-lean", "wiener-photo-lean")
    assert sum(2 * built(name, "generator").count_params() for name in names) < 32e6


# === All networks again ===


def test_tiles_suit_the_network() -> None:
    for each in NETWORKS.values():
        assert len(tiles.plan(1000, 1000, each.tiling)) > 1
        assert each.tile_px % each.stride == 0
        assert each.tiling.overlap_px <= each.tile_px // 2


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no network 'unet'; there are pix2pix, pix2pix-small"):
        network("unet")


def test_facts_do_not_import_keras() -> None:
    code = (
        "import sys, deblur.networks as n; n.network('pix2pix'); sys.exit('keras' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
