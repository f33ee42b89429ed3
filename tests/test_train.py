import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray.train

from deblur import models, photo
from deblur.errors import UsageError
from deblur.storage import open_store
from jobs import train

pytestmark = pytest.mark.usefixtures("ray_cluster")


def options(pairs: Path, home: Path | str, **more: object) -> train.Options:
    return train.Options(str(pairs), str(home), **{"network": "pix2pix-small", "epochs": 1, **more})


def test_run_leaves_everything_behind(trained: Path) -> None:
    card = models.read_card(open_store(trained / "model"))
    assert (card.name, card.network, card.recipe, card.steps) == (
        "tiny",
        "pix2pix-small",
        "box14",
        8,
    )
    assert set(card.figures) == {"blurred", "restored"}
    assert "4 test pairs" in card.measured_on
    sheet = photo.decode(next((trained / "samples").iterdir()).read_bytes())
    assert sheet.pixels.shape == (4 * 256, 3 * 256, 3)
    assert list((trained / "tensorboard").iterdir())
    assert (trained / "checkpoints" / "step-00000008").is_dir()
    assert not (trained / "live.json").exists()


def test_a_finished_run_is_left_alone(trained: Path, made_pairs: Path) -> None:
    before = (trained / "model" / "model.keras").stat().st_mtime_ns
    summary = train.run(options(made_pairs, trained, checkpoint_steps=3))
    assert summary["steps"] == 8
    assert (trained / "model" / "model.keras").stat().st_mtime_ns == before


def test_another_configuration_is_refused(trained: Path, made_pairs: Path) -> None:
    with pytest.raises(UsageError, match=r"seed 0, now 1"):
        train.run(options(made_pairs, trained, seed=1))


def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    trained: Path, made_pairs: Path, tmp_path: Path
) -> None:
    """Put back the run's state as it was after step 3, which a kill leaves behind, and go on."""
    home = tmp_path / "run"
    config = {"network": "pix2pix-small", "checkpoint_steps": 3, "max_steps": 3}
    train.run(train.Options(str(made_pairs), str(home), epochs=1, **config))
    shutil.rmtree(home / "model")
    plan = json.loads((home / "config.json").read_text())
    plan["plan"]["total_steps"] = 8
    (home / "config.json").write_text(json.dumps(plan))
    train.run(options(made_pairs, home, checkpoint_steps=3))
    assert (
        models.read_card(open_store(home / "model")).model_id
        == models.read_card(open_store(trained / "model")).model_id
    )


def test_relative_folders(
    trained: Path, made_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train's workers have a working folder of their own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").symlink_to(made_pairs)
    train.run(options(Path("pairs"), "run", max_steps=1))
    assert (tmp_path / "run" / "model" / "card.json").exists()


def test_two_workers_and_a_bucket(made_pairs: Path, bucket) -> None:
    home = open_store(bucket() + "/run")
    summary = train.run(options(made_pairs, home.uri, workers=2, max_steps=2, precision="float32"))
    assert summary["steps"] == 2
    keys = {entry.key.split("/")[0] for entry in home.list()}
    assert {"model", "config.json", "samples", "tensorboard", "checkpoints"} <= keys


def test_usage_errors(made_pairs: Path, tmp_path: Path) -> None:
    cases = {
        "no network 'unet'": {"network": "unet"},
        "--epochs 0": {"epochs": 0},
        "--precision 'half'": {"precision": "half"},
    }
    for message, more in cases.items():
        with pytest.raises(UsageError, match=message):
            train.run(options(made_pairs, tmp_path, **more))
    with pytest.raises(UsageError, match="holds no finished pairs"):
        train.run(options(tmp_path, tmp_path / "run"))


@pytest.mark.parametrize(
    ("total", "workers", "share"), [(2, 1, 1), (2, 2, 0.5), (16, 2, 7), (1, 1, 0.5), (8, 3, 2)]
)
def test_one_core_is_left_for_the_data(total: float, workers: int, share: float) -> None:
    assert train.cpus_per_worker(total, workers) == share


def test_batches_are_the_planned_ones(made_pairs: Path, tmp_path: Path) -> None:
    """What Ray Data hands to each of two workers is exactly what the order has for it."""
    from deblur import blur, pairs
    from deblur.sampling import Order
    from jobs import train_data

    home, source = open_store(tmp_path), open_store(made_pairs)
    home.put(train_data.PROGRESS, json.dumps({"step": 3}).encode())
    planned = train_data.Planned(home, global_batch=4, seed=5, total_steps=7, recipe="box14")
    splits = planned.configure({"train": train_data.encoded(source)}, 2)
    rows = {
        row.key: row
        for name in pairs.shards(source, "train")
        for row in pairs.read_shard(source.read(name))
    }
    keys = sorted(rows)
    order = Order(len(keys), 4, 5)

    @ray.remote(num_cpus=0)
    def batches(split):
        return [batch["sharp"] for batch in split.iter_batches(batch_size=2, batch_format="numpy")]

    received = ray.get([batches.remote(split["train"]) for split in splits])
    for worker, got in enumerate(received):
        assert len(got) == 4
        for step, batch in zip(range(3, 7), got, strict=True):
            expected = []
            for row in order.rows(step, worker, 2):
                key = keys[row]
                sharp, blurred = (
                    photo.decode_lossless(getattr(rows[key], name)) for name in ("sharp", "blurred")
                )
                generator = pairs.jitter_generator(5, key, order.epoch(step))
                shift = blur.mirror_shift("box14")
                expected.append(pairs.jitter(sharp, blurred, generator, mirror_shift=shift)[0])
            assert np.array_equal(batch, np.stack(expected))
