from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from deblur import blur, classical, metrics, models, photo, pictures
from deblur.errors import DeblurError, UsageError
from deblur.models import Card
from deblur.networks import network
from deblur.restorer import Restorer
from deblur.storage import open_store

NETWORK = "pix2pix-small"


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
    with pytest.raises(DeblurError, match=f"does not fit the network '{NETWORK}'") as caught:
        models.load(open_store(saved), "float32")
    assert len(str(caught.value)) < 400


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


# === The shipped ones ===

SAMPLES = Path(models.__file__).parent / "samples"


def sample(name: str) -> np.ndarray:
    return photo.decode((SAMPLES / name).read_bytes()).pixels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return metrics.psnr(a, b, data_range=255)


@pytest.mark.parametrize("name", models.shipped())
def test_a_shipped_model_says_all_about_itself(name: str) -> None:
    card = models.read_card(models.open_model(name))
    assert card.name == name
    assert card.licence == "Apache-2.0"
    assert card.command.startswith(("deblur train ", "python -m tests.benchmarks.kernel "))
    assert card.data["fingerprint"]
    # `box14` is the model of a longer run with fewer units, which took one step.
    assert card.steps > 1000 or "--start-from" in card.command
    assert card.figures["restored"]["psnr"] > card.figures["blurred"]["psnr"]
    assert not re.search(r"/(work|tmp|home|root)\b", json.dumps(asdict(card)))
    model = models.load(models.open_model(name), "mixed_bfloat16")
    assert models.halved(model).card == card  # as stored, and nothing lost by storing it


def test_together_they_are_small() -> None:
    sizes = [models.size_bytes(models.open_model(name)) for name in models.shipped()]
    assert sizes
    assert sum(sizes) < 32e6


def test_a_name_stands_for_a_shipped_model_and_a_path_for_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = models.shipped()[0]
    monkeypatch.chdir(tmp_path)
    assert models.read_card(models.open_model(name)).name == name
    with pytest.raises(UsageError, match=rf"holds no model.* or one of .*{name}"):
        models.read_card(models.open_model(f"./{name}"))
    # On another machine the package lies elsewhere.
    pickled = pickle.dumps(models.open_model(name))
    assert b"weights" not in pickled
    monkeypatch.setattr(models, "_SHIPPED", tmp_path)
    assert pickle.loads(pickled).uri == str(tmp_path / name)


def test_box14_undoes_its_blur() -> None:
    """Better than the filter that knows the kernel, on crops of photos of 1024 pixels made smaller."""
    restorer = Restorer(models.load(models.open_model("box14"), "float32"), "float32")
    kernel = blur.separable(blur.Degradation("box14"))
    assert kernel is not None
    sharps = [
        np.ascontiguousarray(sample(name)[:256, :256])
        for name in ("city/taipei-city.jpg", "animal/kitten-on-lawn.jpg", "landscape/serene.jpg")
    ]
    wiener = classical.SeparableWiener.fit(kernel, sharps, 1 / 12 / 255**2)
    for sharp in sharps:
        blurred = blur.degrade(sharp, blur.Degradation("box14"))
        (restored,) = restorer.restore([blurred])
        filtered = pictures.of_unit(wiener(blurred * np.float32(1 / 255)))
        assert psnr(restored, sharp) > psnr(filtered, sharp) + 0.5
        assert psnr(restored, sharp) > psnr(blurred, sharp) + 5


def test_photo_sharpens_what_is_blurred_and_leaves_what_is_sharp() -> None:
    restorer = Restorer(models.load(models.open_model("photo"), "float32"), "float32")
    sharp = np.ascontiguousarray(sample("city/taipei-city.jpg")[:256, :256])
    (same,) = restorer.restore([sharp])
    assert psnr(same, sharp) > 35
    shift = same.astype(float).mean(axis=(0, 1)) - sharp.mean(axis=(0, 1))
    assert np.abs(shift).max() < 0.5
    blurred = blur.degrade(sharp, blur.Degradation("defocus", {"radius_px": 3.0}))
    (restored,) = restorer.restore([blurred])
    assert psnr(restored, sharp) > psnr(blurred, sharp) + 0.7


@pytest.mark.parametrize("name", models.shipped())
def test_no_grid_and_no_tint(name: str) -> None:
    """Errors that recur every 2, 4, 8 or 16 pixels in all photos are the network's strides, not photos."""
    model = models.load(models.open_model(name), "mixed_bfloat16")
    files = sorted(path.relative_to(SAMPLES).as_posix() for path in SAMPLES.rglob("*.jpg"))
    sharps = [np.ascontiguousarray(sample(file)[:256, :256]) for file in files]
    recipe = model.card.recipe.removesuffix("-jpeg")
    blurred = [
        blur.degrade(sharp, blur.draw(recipe, seed=0, key=file))
        for sharp, file in zip(sharps, files, strict=True)
    ]
    restored = list(Restorer(model, "mixed_bfloat16").restore(blurred))
    errors = [one.astype(np.float32) - sharp for one, sharp in zip(restored, sharps, strict=True)]

    def grid(pictures: list[np.ndarray]) -> float:  # the strongest wave's amplitude, in levels
        waves = np.mean([np.fft.fft2(picture.mean(axis=2)) for picture in pictures], axis=0)
        waves[0, 0] = 0
        return float(np.abs(waves[::16, ::16]).max()) / 256**2

    checks = np.indices((256, 256)).sum(axis=0)[..., None] % 2 - 0.5
    assert grid([error + checks for error in errors]) > 0.45
    assert grid(errors) < 0.2

    tint = np.mean([error.mean(axis=(0, 1)) for error in errors], axis=0)
    # Of `photo`, whose light is blurred, which makes display values brighter by 2.4 levels here.
    before = np.mean(
        [np.subtract(*pair, dtype=float) for pair in zip(blurred, sharps, strict=True)]
    )
    assert np.abs(tint).max() < max(0.5, 0.75 * before)
