import dataclasses
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import deblur
from deblur import metrics, pairs
from deblur.errors import DeblurError, UsageError
from deblur.storage import open_store
from jobs import evaluate, preprocess
from jobs.evaluate_figures import Result, Scores, examples, extremes, figures, gains, is_example
from jobs.evaluate_methods import prior_of, row_names

pytestmark = pytest.mark.usefixtures("ray_cluster")


SAMPLES = Path(deblur.__file__).parent / "samples"


@pytest.fixture(scope="module")
def real_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return pairs of the shipped photos: the Wiener filter's prior is that of photos, not of made-up ones."""
    folder = tmp_path_factory.mktemp("real")
    preprocess.run(preprocess.Options(str(SAMPLES), str(folder), train=3, test=1))
    return folder


def test_figures_and_report(real_pairs: Path, tiny: Path, tmp_path: Path) -> None:
    model = str(tiny)
    summary = evaluate.run(
        evaluate.Options(str(real_pairs), str(tmp_path), model=(model, model), examples=2)
    )
    methods = summary["methods"]
    assert list(methods) == [
        "blurred", "unsharp mask", "Richardson-Lucy (kernel known)", "Wiener (kernel known)", "tiny",
        model,
    ]  # fmt: skip
    assert summary["photos"] == 3
    assert methods["Wiener (kernel known)"]["psnr"] > methods["blurred"]["psnr"] + 3
    assert methods["tiny"] == methods[model]
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(figures["methods"][0]["by_category"]) == {"animal", "city", "landscape"}
    rows = pq.read_table(tmp_path / "photos.parquet").to_pylist()
    assert len(rows) == 3 * 6
    assert {row["blur"] for row in rows} == {"box14, 4 px and more"}
    for method in figures["methods"]:
        mine = [row["psnr"] for row in rows if row["method"] == method["name"]]
        low, high = method["psnr_interval"]
        assert min(mine) <= low + 1e-9 <= method["psnr"] <= high + 1e-9
        assert low < high <= max(mine) + 1e-9
    sharpness = {method["name"]: method["sharpness"] for method in figures["methods"]}
    assert sharpness["blurred"] < 0.6 < sharpness["Wiener (kernel known)"] < 1.3
    wiener = next(method for method in figures["methods"] if method["name"].startswith("Wiener"))
    assert wiener["better_than"] == {"blurred": 1.0}
    assert "; models on the CPU, " in figures["facts"]["Machine"]
    page = (tmp_path / "report.html").read_text()
    assert "tiny" in page
    assert "58.92 dB means identical" in page
    assert "data:image/jpeg;base64," in page
    for remark in ("gains most", "median gain"):  # the third of two examples has no place
        assert f"{model}: {remark}" in page


def test_a_mixture_is_told_apart_by_kind_and_strength(tmp_path: Path) -> None:
    made, home = tmp_path / "pairs", tmp_path / "report"
    preprocess.run(preprocess.Options(str(SAMPLES), str(made), train=1, test=3, blur="photo"))
    evaluate.run(evaluate.Options(str(made), str(home), limit=9))
    groups = json.loads((home / "evaluation.json").read_text())["methods"][0]["by_blur"]
    assert len(groups) >= 3
    kinds = {name.split(",")[0] for name in groups}
    assert kinds <= {"motion", "defocus", "anisotropic", "not blurred"}
    assert len(kinds) >= 2
    assert "By blur" in (home / "report.html").read_text()


def test_figures_of_known_scores() -> None:
    """A method that is a dB better on three photos of four, and equal on the last."""
    before = [Scores(psnr, 0.5, 0.25) for psnr in (20.0, 21.0, 22.0, 23.0)]
    after = [
        Scores(21.0, 0.6, 0.5),
        Scores(22.0, 0.6, 1),
        Scores(23.0, 0.6, 1),
        Scores(23.0, 0.5, 1),
    ]
    result = Result(
        keys=list("abcd"), categories=["x", "x", "y", "y"], blurs=["weak"] * 4,
        scores={"blurred": before, "mine": after}, seconds={"blurred": 0.0, "mine": 3.0},
        megapixels=1.5, pictures={}, machine="",
    )  # fmt: skip
    blurred, mine = figures([result])
    assert (blurred.psnr, mine.psnr, mine.ssim) == (21.5, 22.25, pytest.approx(0.575))
    assert (blurred.sharpness, mine.sharpness) == (0.25, 0.875)
    assert mine.by_category == {"x": (21.5, 0.6), "y": (23.0, pytest.approx(0.55))}
    assert (mine.wins, blurred.wins) == ({"blurred": 0.75}, {})
    assert mine.seconds_per_megapixel == 2
    assert 20 < blurred.interval[0] < 21 < 22 < blurred.interval[1] < 23
    assert gains(result.scores) == [1, 1, 1, 0]
    assert extremes([3.0, 1.0, 2.0]) == [0, 2, 1]


def test_a_shard_of_rejected_photos_alone_is_left_out(made_pairs: Path, tmp_path: Path) -> None:
    given = tmp_path / "pairs"
    shutil.copytree(made_pairs, given)
    store = open_store(given)
    pairs.write_shard(store, "test/0.parquet", [], {"a.jpg": "is small"}, "plan")
    summary = evaluate.run(evaluate.Options(str(given), str(tmp_path / "report"), baselines=False))
    assert summary["photos"] == pairs.read_dataset(store).total("test")


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


def test_a_photo_without_an_edge_leaves_figures_finite(photos: Any, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    for name, pixels in {
        "a": photos.pixels(256, 256),
        "b": photos.pixels(256, 256, seed=1),
        "white": np.full((256, 256, 3), 255, np.uint8),
    }.items():
        (source / f"{name}.png").write_bytes(photos.file(pixels, "PNG"))
    preprocess.run(preprocess.Options(str(source), str(tmp_path / "pairs"), train=0, test=3))
    summary = evaluate.run(evaluate.Options(str(tmp_path / "pairs"), str(tmp_path / "report")))
    json.dumps(summary, allow_nan=False)
    figures = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    for method in figures["methods"]:
        assert method["psnr"] < metrics.MOST_DB
        assert 0 < method["sharpness"] < 5  # of the two others, which noise sharpens
    assert figures["facts"]["Prior of the Wiener filter"] == "natural photos' 1 / f²"


def test_models_of_one_name_and_names_of_baselines_are_told_apart() -> None:
    names, uris = ["mine", "mine", "mine", "blurred"], ["/a", "/b", "/b", "/c"]
    assert row_names(names, uris) == ["mine", "/b", "/b (2)", "/c"]


def test_the_report_says_what_the_filter_takes_photos_for(real_pairs: Path) -> None:
    dataset = pairs.read_dataset(open_store(real_pairs))
    assert prior_of(dataset) == "9 training photos"
    for recipe in ("box14-jpeg", "gaussian", "photo"):
        assert prior_of(replace(dataset, recipe=recipe)) == "natural photos' 1 / f²"


def test_pictures_are_of_extremes_of_all_and_of_drawn_photos() -> None:
    """Of forty shards, each of which has the pictures of its own extremes."""
    keys = [[f"{shard} {index}" for index in range(25)] for shard in range(40)]
    gained = np.random.default_rng(0).normal(size=(40, 25))
    results = []
    for names, values in zip(keys, gained, strict=True):
        scores = {
            "blurred": [Scores(20, 0.5, 0.5)] * 25,
            "mine": [Scores(20 + value, 0.5, 0.5) for value in values],
        }
        shown = {names[place] for place in extremes(gains(scores))}
        shown |= {name for name in names if is_example(name, 8 / 1000)}
        pictures: dict[str, dict[str, bytes]] = {name: {} for name in shown}
        none = {"blurred": 0.0, "mine": 0.0}
        results.append(Result(names, [""] * 25, [""] * 25, scores, none, 1.0, pictures, ""))
    shown_first = examples(results, 8)
    order = sorted(gained.ravel())
    of = dict(zip(itertools.chain(*keys), gained.ravel(), strict=True))
    assert [of[one.key] for one in (shown_first[0], shown_first[2])] == [order[-1], order[0]]
    assert abs(order.index(of[shown_first[1].key]) - 500) < 20
    assert all(is_example(one.key, 8 / 1000) for one in shown_first[3:])
    assert len(shown_first) > 5


@pytest.mark.parametrize(
    ("gained", "remarks"),
    [
        ([5.0], ["gains most"]),
        ([5.0, 1.0], ["gains most", "gains least"]),
        ([1.0, 5.0, 2.0], ["gains most", "median gain", "gains least"]),
    ],
)
def test_few_photos_are_remarked_on(gained: list[float], remarks: list[str]) -> None:
    keys = [str(gain) for gain in gained]
    scores = {
        "blurred": [Scores(20, 0.5, 0.5)] * len(keys),
        "mine": [Scores(20 + gain, 0.5, 0.5) for gain in gained],
    }
    none = {"blurred": 0.0, "mine": 0.0}
    results = [Result(keys, keys, keys, scores, none, 1.0, {key: {} for key in keys}, "")]
    shown_first = examples(results, 8)
    assert [one.remark for one in shown_first] == [f"mine: {remark}" for remark in remarks]
    assert [float(one.key) for one in shown_first] == sorted(gained, reverse=True)
    blurred, _ = figures(results)
    assert (blurred.interval is None) == (len(gained) == 1)  # which says nothing of other photos


def test_a_missing_shard_is_told(made_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(made_pairs, tmp_path / "pairs")
    (tmp_path / "pairs" / "test" / "00000.parquet").unlink()
    with pytest.raises(DeblurError, match=r"has 1 of the 4 test pairs .*: run the `deblur prep"):
        evaluate.run(evaluate.Options(str(tmp_path / "pairs"), str(tmp_path / "report")))


def test_a_damaged_shard_is_told(made_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(made_pairs, tmp_path / "pairs")
    shard = next((tmp_path / "pairs" / "test").iterdir())
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DeblurError, match=r"test/.*parquet is damaged: run"):
        evaluate.run(evaluate.Options(str(tmp_path / "pairs"), str(tmp_path / "report")))


def test_usage_errors(made_pairs: Path, tmp_path: Path) -> None:
    for message, more in {
        "--limit -1": {"limit": -1},
        "--limit 0": {"limit": 0},
        "--examples -1": {"examples": -1},
    }.items():
        with pytest.raises(UsageError, match=message):
            evaluate.run(evaluate.Options(str(made_pairs), str(tmp_path), **more))
    (tmp_path / "none").mkdir()
    store = open_store(tmp_path / "none")
    counts = {"train": {"castle": 8}, "test": {"castle": 0}}
    made = pairs.read_dataset(open_store(made_pairs))
    pairs.write_dataset(store, dataclasses.replace(made, counts=counts))
    pairs.write_shard(store, "test/00000.parquet", [], {"castle/0.jpg": "too small"}, made.plan_id)
    with pytest.raises(UsageError, match="has no test pairs"):
        evaluate.run(evaluate.Options(str(tmp_path / "none"), str(tmp_path)))
    with pytest.raises(UsageError, match="holds no model"):
        evaluate.run(evaluate.Options(str(made_pairs), str(tmp_path), model=(str(tmp_path),)))
    with pytest.raises(UsageError, match="holds no finished pairs"):
        evaluate.run(evaluate.Options(str(tmp_path), str(tmp_path)))
