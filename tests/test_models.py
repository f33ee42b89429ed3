from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from deblur import models
from deblur.errors import DeblurError, UsageError
from deblur.models import Card
from deblur.networks import network
from deblur.storage import open_store

NETWORK = "pix2pix-small"

# Keras saves its variables through an `__array__` that is older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@cache
def built(policy: str = "float32", seed: int = 0) -> Any:
    keras.utils.set_random_seed(seed)
    return network(NETWORK).generator(policy)


def card_of(generator: Any, **changes: Any) -> Card:
    card = Card(
        name="mine",
        network=NETWORK,
        model_id=models.model_id(generator, NETWORK),
        recipe="box14",
        precision="float32",
        data={"pairs": "pairs/", "count": 8, "fingerprint": "f"},
        command="deblur train pairs/ run/",
        steps=10,
        seconds=1.5,
        seed=0,
        figures={"blurred": {"psnr": 20.0, "ssim": 0.5}},
    )
    return replace(card, **changes)


@pytest.fixture(scope="module")
def blurred() -> np.ndarray:
    return np.random.default_rng(0).random((2, 256, 256, 3), dtype=np.float32)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    models.save(open_store(folder), built(), card_of(built()))
    return folder


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Iterator[Path]:
    """A model that a test may spoil."""
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


# === Save and load ===


def test_a_loaded_model_is_the_saved_one(original: Path, blurred: np.ndarray) -> None:
    model = models.load(open_store(original), "float32")
    assert model.card == card_of(built()) == models.read_card(open_store(original))
    np.testing.assert_array_equal(
        model.generator(blurred, training=False), built()(blurred, training=False)
    )


def test_the_folder_holds_two_files(original: Path) -> None:
    assert sorted(file.name for file in original.iterdir()) == ["card.json", "model.keras"]
    assert json.loads((original / "card.json").read_text()) == asdict(card_of(built()))
    loaded = keras.models.load_model(original / "model.keras", safe_mode=True)
    for mine, theirs in zip(loaded.get_weights(), built().get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("trained_in", "loaded_in"),
    [("mixed_bfloat16", "float32"), ("float32", "mixed_bfloat16")],
)
def test_a_model_computes_in_any_policy(
    trained_in: str, loaded_in: str, blurred: np.ndarray, tmp_path: Path
) -> None:
    trained = built(trained_in)
    models.save(open_store(tmp_path), trained, card_of(trained))
    model = models.load(open_store(tmp_path), loaded_in)
    assert model.generator.get_layer("down1_conv").dtype_policy.name == loaded_in
    expected = built(loaded_in)
    expected.set_weights(trained.get_weights())
    np.testing.assert_array_equal(
        model.generator(blurred, training=False), expected(blurred, training=False)
    )


def test_a_model_lives_in_a_bucket(bucket: Any) -> None:
    uri = f"{bucket()}/models/mine"
    models.save(open_store(uri), built(), card_of(built()))
    assert models.load(open_store(uri), "float32").card == card_of(built())


def test_a_card_of_a_later_version_is_read(saved: Path) -> None:
    values = json.loads((saved / "card.json").read_text()) | {"colour": "blue"}
    (saved / "card.json").write_text(json.dumps(values))
    assert models.load(open_store(saved), "float32").card == card_of(built())


# === The id ===


def test_the_id_depends_on_weights_and_network_alone(original: Path) -> None:
    expected = models.model_id(built(), NETWORK)
    assert re.fullmatch("[0-9a-f]{16}", expected)
    for policy in ("float32", "mixed_bfloat16"):
        assert (
            models.model_id(models.load(open_store(original), policy).generator, NETWORK)
            == expected
        )
    assert models.model_id(built(), "pix2pix") != expected


def test_the_id_changes_with_the_last_bit_of_a_weight() -> None:
    other = network(NETWORK).generator()
    other.set_weights(built().get_weights())
    assert models.model_id(other, NETWORK) == models.model_id(built(), NETWORK)
    weights = other.get_weights()
    weights[3].flat[7] = np.nextafter(weights[3].flat[7], np.float32(np.inf))
    other.set_weights(weights)
    assert models.model_id(other, NETWORK) != models.model_id(built(), NETWORK)


# === What can be wrong ===


def test_no_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageError, match=r"holds no model \(no card.json\); expected a folder"):
            models.load(open_store(folder), "float32")


def test_a_file_is_no_model(saved: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.keras holds no model"):
        models.load(open_store(saved / "model.keras"), "float32")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ("[]", r"expected an object, received \[\]"),
        ('{"name": "mine"}', "missing 9 required positional arguments: 'network'"),
        ("\udcff", "can't decode byte 0xff"),
    ],
)
def test_a_damaged_card(saved: Path, text: str, reason: str) -> None:
    (saved / "card.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=f"card.json is not a model's card: .*{reason}"):
        models.load(open_store(saved), "float32")


def test_a_network_of_a_later_version(saved: Path) -> None:
    card = card_of(built(), network="nova")
    (saved / "card.json").write_text(json.dumps(asdict(card)))
    with pytest.raises(UsageError, match=r"card.json: there is no network 'nova'; there are pix2"):
        models.load(open_store(saved), "float32")


def test_missing_weights(saved: Path) -> None:
    (saved / "model.keras").unlink()
    with pytest.raises(UsageError, match=r"has a card, but no model.keras"):
        models.load(open_store(saved), "float32")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "torn", "flipped"])
def test_damaged_weights(saved: Path, damage: str) -> None:
    whole = (saved / "model.keras").read_bytes()
    middle = len(whole) // 2
    damaged = {
        "empty": b"",
        "cut": whole[:middle],
        "text": b"<html>not found</html>",
        "torn": whole[:middle] + whole[middle + 1000 :],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }[damage]
    (saved / "model.keras").write_bytes(damaged)
    with pytest.raises(DeblurError, match=r"model\.keras does not fit the network") as caught:
        models.load(open_store(saved), "float32")
    assert not isinstance(caught.value, UsageError)


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
def test_another_network_s_weights(saved: Path) -> None:
    from deblur.networks import pix2pix

    pix2pix.generator(width=8).save(saved / "model.keras")
    with pytest.raises(DeblurError, match=f"does not fit the network '{NETWORK}'"):
        models.load(open_store(saved), "float32")


def test_another_model_s_weights(saved: Path) -> None:
    other = built(seed=1)
    other.save(saved / "model.keras")
    found, expected = (models.model_id(each, NETWORK) for each in (other, built()))
    with pytest.raises(DeblurError, match=f"is model {found}, its card is model {expected}'s"):
        models.load(open_store(saved), "float32")


@pytest.mark.parametrize("name", ["card.json", "model.keras"])
def test_an_unreadable_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).mkdir()
    with pytest.raises(UsageError, match=f"cannot read .*{name}: Is a directory"):
        models.load(open_store(saved), "float32")
