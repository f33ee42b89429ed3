import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import deblur
from deblur.errors import UsageError
from jobs import evaluate, preprocess

pytestmark = pytest.mark.usefixtures("ray_cluster")


SAMPLES = Path(deblur.__file__).parent / "samples"


@pytest.fixture(scope="module")
def real_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pairs of the shipped photos: the Wiener filter's prior is that of photos, not of made-up ones."""
    folder = tmp_path_factory.mktemp("real")
    preprocess.run(preprocess.Options(str(SAMPLES), str(folder), train=3, test=1))
    return folder


def test_figures_and_report(real_pairs: Path, trained: Path, tmp_path: Path) -> None:
    model = str(trained / "model")
    summary = evaluate.run(
        evaluate.Options(str(real_pairs), str(tmp_path), model=(model, model), examples=2)
    )
    methods = summary["methods"]
    assert list(methods) == ["blurred", "unsharp mask", "Wiener (kernel known)", "tiny", model]
    assert summary["photos"] == 3
    assert methods["Wiener (kernel known)"]["psnr"] > methods["blurred"]["psnr"] + 3
    assert methods["tiny"] == methods[model]
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(figures["methods"][0]["by_category"]) == {"animal", "city", "landscape"}
    rows = pq.read_table(tmp_path / "photos.parquet").to_pylist()
    assert len(rows) == 3 * 5
    page = (tmp_path / "report.html").read_text()
    assert "tiny" in page
    assert "data:image/jpeg;base64," in page


def test_without_models_or_baselines(made_pairs: Path, tmp_path: Path) -> None:
    summary = evaluate.run(
        evaluate.Options(str(made_pairs), str(tmp_path), baselines=False, limit=2)
    )
    assert summary["photos"] == 2
    assert list(summary["methods"]) == ["blurred"]


def test_a_kernel_that_differs_by_photo(tmp_path: Path) -> None:
    made = tmp_path / "pairs"
    preprocess.run(preprocess.Options(str(SAMPLES), str(made), train=1, test=1, blur="defocus"))
    methods = evaluate.run(evaluate.Options(str(made), str(tmp_path / "report")))["methods"]
    assert methods["Wiener (kernel known)"]["psnr"] > methods["blurred"]["psnr"] + 3


def test_usage_errors(made_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        evaluate.run(evaluate.Options(str(made_pairs), str(tmp_path), model=(str(tmp_path),)))
    with pytest.raises(UsageError, match="holds no finished pairs"):
        evaluate.run(evaluate.Options(str(tmp_path), str(tmp_path)))
