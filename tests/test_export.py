from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from deblur import models, photo
from deblur.errors import UsageError
from deblur.networks import network
from deblur.storage import open_store
from jobs import export
from tests.test_models import card_of

# tf2onnx has no other way to ask for the graph, and says so of itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tf2onnx")

SAMPLES = Path(models.__file__).parent / "samples"
NETWORK = "wiener-photo-lean"  # the default's, with all kinds of layers


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that filters, as untrained ones hardly do."""
    keras.utils.set_random_seed(1)
    generator = network(NETWORK).generator()
    rng = np.random.default_rng(0)
    for weight in generator.weights:
        weight.assign(weight + 0.01 * rng.standard_normal(weight.shape))
    folder = tmp_path_factory.mktemp("model")
    model_id = models.model_id(generator, NETWORK)
    card = replace(card_of(generator), network=NETWORK, model_id=model_id)
    models.save(open_store(folder), generator, card)
    return folder


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    """Real photos, of sizes that the export has to take as they come."""
    files = sorted(SAMPLES.rglob("*.jpg"))
    sizes = [(1, 256, 256), (2, 64, 160), (3, 16, 48)]
    pixels = [photo.decode(file.read_bytes()).pixels for file in files[:3]]
    return [
        np.repeat(one[None, :height, :width] / np.float32(255), count, axis=0)
        for one, (count, height, width) in zip(pixels, sizes, strict=True)
    ]


def exported(model: Path, out: Path, form: export.Format) -> dict[str, Any]:
    summary = export.run(export.Options(str(model), str(out), format=form))
    assert summary["files"] == {
        file.relative_to(out).as_posix(): file.stat().st_size
        for file in out.rglob("*") if file.is_file()
    }  # fmt: skip
    assert json.loads((out / "card.json").read_text())["model_id"] == summary["model_id"]
    return summary


def test_onnx_runtime_computes_the_same(
    model: Path, tmp_path: Path, crops: list[np.ndarray], capfd: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    exported(model, tmp_path, "onnx")
    assert capfd.readouterr().err == f"mine ({NETWORK}) is in {tmp_path}\n"
    generator = models.load(open_store(model), "float32").generator
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    for crop in crops:
        expected = np.asarray(generator(crop, training=False))
        (restored,) = session.run(["restored"], {"blurred": crop})
        assert np.abs(expected - crop).max() > 0.01
        np.testing.assert_allclose(restored, expected, atol=1e-4)  # a fortieth of a level


def test_the_saved_model_computes_the_same(
    model: Path, tmp_path: Path, crops: list[np.ndarray]
) -> None:
    import tensorflow as tf

    exported(model, tmp_path, "savedmodel")
    generator = models.load(open_store(model), "float32").generator
    restore = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    for crop in crops:
        restored = restore(blurred=tf.constant(crop))["restored"]
        np.testing.assert_allclose(restored, generator(crop, training=False), atol=1e-5)


def test_float16_is_half_as_large_and_a_model_like_any(
    tiny: Path, tmp_path: Path, crops: list[np.ndarray]
) -> None:
    summary = exported(tiny, tmp_path, "float16")
    whole = (tiny / models.WEIGHTS).stat().st_size
    assert (tmp_path / models.WEIGHTS).stat().st_size < 0.52 * whole
    half = models.load(open_store(tmp_path), "float32")
    assert half.card.model_id == summary["model_id"] != models.read_card(open_store(tiny)).model_id
    generator = models.load(open_store(tiny), "float32").generator
    apart = np.abs(half.generator(crops[0], training=False) - generator(crops[0], training=False))
    assert 0 < apart.max() < 0.02
    assert models.halved(half).card == half.card  # there is nothing left to round


def test_what_lies_in_out_stays_and_is_not_listed(model: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(tiny, out, "float16")
    (out / "notes.txt").write_text("mine")
    before = (out / "card.json").read_bytes()
    with pytest.raises(
        UsageError, match=rf"^{out} holds another model, tiny \(id .*, now .*\): give"
    ):
        export.run(export.Options(str(model), str(out), format="float16"))
    assert (out / "card.json").read_bytes() == before
    summary = export.run(export.Options(str(tiny), str(out), format="float16"))
    assert set(summary["files"]) == {"model.keras", "card.json"}
    (out / "card.json").write_text("[]")
    with pytest.raises(UsageError, match="is not a model's card"):
        export.run(export.Options(str(tiny), str(out), format="float16"))
    (tmp_path / "link").symlink_to(tiny)
    with pytest.raises(
        UsageError, match=rf"OUT is MODEL, {tiny}: give the export a place of its own"
    ):
        export.run(export.Options(str(tiny), str(tmp_path / "link"), format="float16"))


def test_without_the_library_it_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UsageError, match=r"pip install onnx tf2onnx"):
        export.run(export.Options(str(model), str(tmp_path)))


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        export.run(export.Options(str(tmp_path / "nowhere"), str(tmp_path)))
    assert not list(tmp_path.iterdir())
