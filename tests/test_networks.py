from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from deblur.errors import UsageError
from deblur.networks import NETWORKS, network, pix2pix

POLICIES = ["float32", "mixed_bfloat16"]

# Keras saves its variables through an `__array__` that is older than NumPy 2.
keras_copies = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

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
def compiled(policy: str) -> Any:
    """The small generator with the same weights in both policies."""
    generator = built("pix2pix-small", "generator", policy)
    generator.set_weights(built("pix2pix-small", "generator").get_weights())
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
    assert (logits.shape, logits.dtype) == ((1, 30, 30, 1), np.float32)
    assert {weight.dtype for weight in generator.weights} == {"float32"}


@pytest.mark.parametrize("policy", POLICIES)
def test_the_range_holds_for_any_weights(policy: str, blurred: np.ndarray) -> None:
    generator = pix2pix.generator(policy, width=4)
    generator.set_weights([40 * weight for weight in generator.get_weights()])
    restored = np.asarray(generator(blurred[:1], training=False))
    assert (restored.min(), restored.max()) == (0, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_result_is_independent_of_its_batch_mates(policy: str, blurred: np.ndarray) -> None:
    """To the bit in batches of one size: the restorer has one size always."""
    restore = compiled(policy)
    together = restore(blurred).numpy()
    order = np.random.default_rng(1).permutation(len(blurred))
    np.testing.assert_array_equal(restore(blurred[order]).numpy(), together[order])
    among_black = np.zeros_like(blurred)
    among_black[3] = blurred[5]
    np.testing.assert_array_equal(restore(among_black).numpy()[3], together[5])


@pytest.mark.parametrize(("policy", "levels"), [("float32", 0.01), ("mixed_bfloat16", 2)])
@pytest.mark.parametrize("size", [1, 3])
def test_another_batch_size_changes_roundings_alone(
    size: int, policy: str, levels: float, blurred: np.ndarray
) -> None:
    """A convolution may add in another order: seen are 0 in float32 and 0.4 level in bfloat16."""
    restore = compiled(policy)
    apart = np.abs(restore(blurred[:size]).numpy() - restore(blurred).numpy()[:size])
    assert apart.max() * 255 < levels


@pytest.mark.parametrize("policy", POLICIES)
def test_dropout_is_for_training(policy: str, blurred: np.ndarray) -> None:
    restore, generator = compiled(policy), built("pix2pix-small", "generator", policy)
    np.testing.assert_array_equal(restore(blurred), restore(blurred))
    twice = [np.asarray(generator(blurred[:1], training=True)) for _ in range(2)]
    assert (twice[0] != twice[1]).any()


def test_bfloat16_is_close_to_float32(blurred: np.ndarray) -> None:
    apart = np.abs(
        compiled("mixed_bfloat16")(blurred).numpy() - compiled("float32")(blurred).numpy()
    )
    assert apart.mean() * 255 < 0.5


@keras_copies
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_round_trips(part: str, policy: str, blurred: np.ndarray, tmp_path: Path) -> None:
    model = built("pix2pix-small", part, policy)
    again = model.__class__.from_config(model.get_config())
    again.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    given = blurred[:1] if part == "generator" else [blurred[:1], blurred[1:2]]
    for other in (again, loaded):
        np.testing.assert_array_equal(other(given, training=False), model(given, training=False))
        assert [layer.name for layer in other.layers] == [layer.name for layer in model.layers]


def test_tiles_suit_the_network() -> None:
    for each in NETWORKS.values():
        assert each.tile_px % each.stride == 0
        assert each.overlap_px <= each.tile_px // 2


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no network 'unet'; there are pix2pix, pix2pix-small"):
        network("unet")


def test_facts_do_not_import_keras() -> None:
    code = (
        "import sys, deblur.networks as n; n.network('pix2pix'); sys.exit('keras' in sys.modules)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
