from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from deblur import metrics, models, pairs, photo, pictures, recipes
from deblur.errors import DeblurError, UsageError
from deblur.examples import Maker
from deblur.recipes import Recipe, recipe
from deblur.sampling import Order
from deblur.storage import LocalStore, Store, open_store
from deblur.training import Training
from jobs import (
    preprocess,
    train,
    train_data,
    train_group,
    train_pieces,
    train_record,
    train_run,
    train_source,
)
from jobs.progress import Progress, duration
from jobs.runtime import Cluster, require_gpus
from jobs.train_pieces import Pieces
from jobs.train_record import live_text

pytestmark = pytest.mark.usefixtures("ray_cluster")


def options(source: Path | str, home: Path | str, **more: object) -> train.Options:
    return train.Options(
        str(source), str(home), **{"network": "pix2pix-small", "epochs": 1, **more}
    )


@pytest.fixture(scope="module")
def coded(made_pairs: Path) -> dict[bool, Pieces]:
    """Return coded pairs in the object store, with their blur and, for one drawn anew, without."""
    source = open_store(made_pairs)
    dataset = pairs.read_dataset(source)
    return {anew: train_source.Pairs(source, dataset, anew=anew).pieces() for anew in (False, True)}


@pytest.fixture(scope="module")
def astray(
    tmp_path_factory: pytest.TempPathFactory, made_pairs: Path
) -> tuple[train.Options, DeblurError]:
    """Return a run that fails after step 3, as a kill would leave it as well, and what it says."""

    class Astray(Recipe):
        def learning_rate_at(self, step: int, total_steps: int) -> float:
            return float("nan") if step == 4 else super().learning_rate_at(step, total_steps)

    home = tmp_path_factory.mktemp("astray") / "run"
    named = {"name": "tiny", "licence": "CC0-1.0"}
    asked = options(made_pairs, home, checkpoint_steps=3, precision="float32", **named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPES", {"report": Astray(**vars(recipes.REPORT))})
        with pytest.raises(DeblurError) as caught:
            train.run(asked)
    return asked, caught.value


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, astray: tuple[train.Options, DeblurError]
) -> Path:
    """Return the same run, gone on with to its end, with its model."""
    asked, _ = astray
    folder = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(asked.run, folder)
    said = io.StringIO()
    with redirect_stderr(said):
        train.run(replace(asked, run=str(folder)))
    assert "\ngoing on after step 3, from its checkpoint\n" in said.getvalue()
    return folder


def test_run_leaves_everything_behind(trained: Path) -> None:
    card = models.read_card(open_store(trained / "model"))
    assert (card.name, card.network, card.recipe) == ("tiny", "pix2pix-small", "box14")
    assert (card.licence, card.precision) == ("CC0-1.0", "float32")
    assert card.steps == 7  # one of the eight pairs is held out
    assert set(card.figures) == {"blurred", "restored"}
    assert card.measured_on == "1 training photos that were held out"
    sheet = photo.decode(next((trained / "samples").iterdir()).read_bytes())
    assert sheet.pixels.shape == (256, 3 * 256, 3)
    assert (trained / "checkpoints" / "step-00000007").is_dir()
    assert not (trained / "live.json").exists()
    run = json.loads((trained / "config.json").read_text())
    assert run["plan"]["recipe"]["adversarial_weight"] == 1
    assert run["plan"]["fingerprint"] == pairs.read_dataset(open_store(run["source"])).fingerprint
    assert {"deblur", "keras", "tensorflow", "ray", "python"} == set(run["versions"])
    assert run["command"].startswith("deblur ")


@pytest.mark.usefixtures("trained")
def test_ctrl_c_is_what_it_was() -> None:
    """What Python begins with: to a command in a script's background Ctrl-C is nothing."""
    assert signal.getsignal(signal.SIGINT) in {signal.default_int_handler, signal.SIG_IGN}


def test_tensorboard_has_all_figures(trained: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["tensors"]) == {
        "loss/generator", "loss/pixel", "loss/error", "loss/gan", "loss/discriminator",
        "discriminator/accuracy_real", "discriminator/accuracy_fake",
        "gradient/gradient_norm_generator", "gradient/gradient_norm_discriminator",
        "schedule/learning_rate", "speed/images_per_second", "speed/share_waiting_for_data",
        "validation/psnr", "validation/ssim", "blurred | restored | sharp",
    }  # fmt: skip


def test_checkpoints_do_not_pile_up_on_a_slow_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the worker alone: what is not there yet when the next one is written is waited for."""
    from jobs import train_worker

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there: list[str] = []
    modes = []

    def report(_: Any, *, checkpoint_upload_mode: Any, **more: Any) -> None:
        modes.append(checkpoint_upload_mode.name)

    def uploaded() -> Any:
        return SimpleNamespace(path=f"bucket/run/{there[-1]}") if there else None

    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_checkpoint", uploaded)
    worker = object.__new__(train_worker._Worker)
    worker._chief, worker._reported = True, ""
    worker._watch = SimpleNamespace(settle=lambda: None, last_good="")
    worker._training = SimpleNamespace(save=lambda folder: None)
    for step, arrives in [(1, True), (2, False), (3, True), (4, True)]:
        worker._progress = train_worker.Progress(step=step)
        worker._save_checkpoint(None, wait=False)
        if arrives:
            there.append(f"step-{step:08d}")
    assert modes == ["ASYNC", "ASYNC", "SYNC", "ASYNC"]


def test_a_worker_uses_no_more_cores_than_its_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose limit the system's affinity does not know."""
    from jobs import train_devices

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert train_devices.cores() == 2


def test_a_bucket_gets_each_event_once(bucket: Any, tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    home = open_store(f"{bucket()}/run")
    config = {
        "plan": None, "name": "", "licence": "", "album": SimpleNamespace(validation=lambda: iter(())),
    }  # fmt: skip
    record = train_record.Record(home, config, None)
    for step in (1, 2, 3):
        with record._events.as_default(step):
            tf.summary.scalar("loss/pixel", 0.5 / step)
        record._publish_events()
    record._events_folder.cleanup()
    files = list(home.list("tensorboard"))
    assert len(files) == 3
    for entry in files:
        (tmp_path / Path(entry.key).name).write_bytes(home.read(entry.key))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Tensors("loss/pixel")] == [1, 2, 3]


def test_a_finished_run_is_left_alone(trained: Path, made_pairs: Path) -> None:
    before = (trained / "model" / "model.keras").stat().st_mtime_ns
    summary = train.run(options(made_pairs, trained, checkpoint_steps=3, precision="float32"))
    assert summary["steps"] == 7
    assert (trained / "model" / "model.keras").stat().st_mtime_ns == before


def test_another_configuration_is_refused(
    trained: Path, made_pairs: Path, sharp_folder: Path
) -> None:
    with pytest.raises(UsageError, match=r"seed 0, now 1"):
        train.run(options(made_pairs, trained, seed=1))
    with pytest.raises(UsageError, match=r"learning_rate 0.0002, now 0.1"):
        train.run(options(made_pairs, trained, learning_rate=0.1))
    with pytest.raises(UsageError, match=r"anew False, now True"):
        train.run(options(sharp_folder, trained, blur="box14"))
    assert not (trained / pairs.REJECTED).exists()  # what the other photos are is not this run's


def test_a_run_that_diverges_says_where(
    astray: tuple[train.Options, DeblurError], made_pairs: Path
) -> None:
    text = str(astray[1])
    assert "training went astray in step 6: " in text
    keys = [row.key for name in pairs.shards(open_store(made_pairs), "train")
            for row in pairs.read_shard(open_store(made_pairs).read(name))]  # fmt: skip
    assert any(f"The step saw {key}." in text for key in keys)
    assert "The last good checkpoint: step-00000003" in text
    assert "\n" not in text


def test_a_run_that_was_cut_off_ends_with_the_weights_of_its_steps_taken_at_once(
    trained: Path, coded: dict[bool, Pieces]
) -> None:
    recipe = replace(recipes.REPORT, network="pix2pix-small")
    training = Training(recipe, seed=0)
    album = train_data.Album(coded[False], Maker("box14", 256, 0), held_out=1)
    feed = train_data.Feed(album, Order(7, 1, 0), workers=1, worker=0, replicas=1, ahead=2)
    for step, batch in enumerate(feed.batches(0, 7)):
        rate = recipe.learning_rate_at(step, 7)
        training.step(batch.blurred, batch.sharp, batch.weights, rate)
    with np.load(trained / "checkpoints" / "step-00000007" / "state.npz") as found:
        for name, variable in training.variables():
            np.testing.assert_array_equal(found[name], variable.numpy(), err_msg=name)
    card = models.read_card(open_store(trained / "model"))
    (held_out,) = album.validation()
    restored = pictures.of_unit(training.restore(held_out.blurred[None])[0])
    assert card.model_id == models.model_id(training.generator, "pix2pix-small")
    assert card.figures["restored"] == {
        "psnr": round(metrics.psnr_8bit(restored, held_out.sharp), 4),
        "ssim": round(metrics.ssim(restored, held_out.sharp, data_range=255), 5),
    }


def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    astray: tuple[train.Options, DeblurError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked of the worker here, which takes no step: on many a CPU one in bfloat16 takes ten seconds."""
    from jobs import train_worker

    saved = tmp_path / "step-00000003"
    shutil.copytree(Path(astray[0].run) / "checkpoints" / saved.name, saved)
    begun = json.loads((saved / "progress.json").read_text())
    assert begun["policy"] == "float32"
    (saved / "progress.json").write_text(json.dumps(begun | {"policy": "mixed_bfloat16"}))
    alone = SimpleNamespace(
        get_world_rank=lambda: 0, get_local_world_size=lambda: 1, get_world_size=lambda: 1
    )
    monkeypatch.setattr(ray.train, "get_context", lambda: alone)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint(str(saved)))
    monkeypatch.setattr("ray.train.collective.broadcast_from_rank_zero", lambda policy: policy)
    # TensorFlow takes no number of threads once it has computed.
    monkeypatch.setattr(
        "tensorflow.config.threading.set_intra_op_parallelism_threads", lambda threads: None
    )
    asked = replace(recipes.REPORT, network="pix2pix-small")
    plan = SimpleNamespace(recipe=asked, precision="float32", seed=0)
    worker = train_worker._Worker({"plan": plan, "home": None, "parts": 1, "gpus": 0})
    assert (worker.policy, worker._progress.step) == ("mixed_bfloat16", 3)
    assert worker._training.generator.get_layer("down0_conv").compute_dtype == "bfloat16"


def test_sharp_photos_are_blurred_anew_from_another_model_in_a_relative_folder_among_them(
    trained: Path, sharp_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train's workers have a working folder of their own; its samples are no photos to train on."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sharp_folder, tmp_path / "photos")
    (tmp_path / "other").symlink_to(trained)
    more = {
        "batch_size": 4, "epochs": 2, "blur": "photo", "validation_photos": 2,
        "start_from": "other/model", "learning_rate": 1e-12,
    }  # fmt: skip
    summary = train.run(options(Path("photos"), "photos/run", **more))
    card = models.read_card(open_store("photos/run/model"))
    # Of 18, one is broken and one held out.
    assert (card.recipe, card.data["count"]) == ("photo", 16)
    assert summary["measured_on"] == "1 training photos that were held out"
    rejected = pq.read_table("photos/run/rejected.parquet").to_pylist()
    assert [row["key"] for row in rejected] == ["castle/8.jpg"]
    mine, theirs = (
        models.load(open_store(model), "float32").generator
        for model in ("photos/run/model", "other/model")
    )
    for one, other in zip(mine.weights, theirs.weights, strict=True):
        if "seed" not in one.path:
            np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6)
    assert list(Path("photos/run/samples").iterdir())
    again = train.run(options(Path("photos"), "photos/run", **more))
    assert again == summary


def test_the_network_is_that_of_the_model_to_start_from(trained: Path) -> None:
    start = models.read_card(open_store(trained / "model"))
    for given, expected in [(None, "pix2pix-small"), ("pix2pix-small", "pix2pix-small")]:
        asked = train.Options("pairs", "run", recipe="best", network=given, start_from="trained")
        assert train._recipe(asked, start).network == expected
    box14 = models.read_card(models.open_model("box14"))
    for network, before in [("lean", "lean"), ("lean", "deeper"), ("deeper", "lean")]:
        start = replace(box14, network=f"wiener-box14-{before}")
        asked = train.Options(
            "photos", "run", network=f"wiener-box14-{network}", start_from="box14"
        )
        assert train._recipe(asked, start).network == f"wiener-box14-{network}"


def test_all_machines_have_to_have_the_model_to_start_from(
    made_pairs: Path,
    sharp_folder: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(read: Iterable[Store], written: Store) -> None:
        raise UsageError(", ".join(store.uri for store in (*read, written)))

    monkeypatch.setattr(train, "require_shared", refused)
    for source, blur in [(made_pairs, None), (sharp_folder, "box14")]:
        home = tmp_path / source.name
        with pytest.raises(UsageError, match=f"^{source}, {tiny}, {home}$"):
            train.run(options(source, home, blur=blur, start_from=str(tiny)))


def test_an_option_replaces_a_part_of_the_recipe() -> None:
    asked = train.Options("photos", "run", recipe="adversarial", adversarial_weight=0.5, epochs=3)
    expected = replace(recipes.ADVERSARIAL, adversarial_weight=0.5, epochs=3)
    assert train._recipe(asked, None) == expected
    # Which is given, though it is false.
    without = train.Options("photos", "run", recipe="report", adversarial_weight=0.0)
    assert train._recipe(without, None).adversarial_weight == 0


@pytest.mark.parametrize(
    ("step_s", "asked"),
    [(3.0, [8, 9, 10, 11, 12]), (1.0, [8, 13, 18, 23]), (0.001, [8, 108, 208]), (40.0, [8, 9, 10])],
)
def test_notice_is_asked_for_every_few_seconds_by_all_in_the_same_steps(
    step_s: float, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import train_worker

    told: list[int] = []  # by worker 0, whose clock counts
    now, found = 0.0, []

    def from_first(steps: int) -> int:
        told.append(steps)
        return steps

    monkeypatch.setattr(train_worker, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("ray.train.collective.broadcast_from_rank_zero", from_first)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    first = train_worker._Notice(7)
    while len(told) < len(asked):
        step = 8 + len(found)
        now += step_s
        before = len(told)
        assert not first.given(step)
        found.append(len(told) > before)
    assert [8 + index for index, was in enumerate(found) if was] == asked
    # Another one, whose steps seem to take as long as they like.
    answers = iter(told)
    monkeypatch.setattr("ray.train.collective.broadcast_from_rank_zero", lambda _: next(answers))
    notices = iter([*[None] * (len(asked) - 1), "a spot instance"])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(notices))
    other = train_worker._Notice(7)
    given = []
    for step in range(8, asked[-1] + 50):
        now += 7 * (step % 5)
        if other.given(step):
            given.append(step)
    assert given == [asked[-1]]  # and once only


@pytest.mark.parametrize(("name", "kept"), [("best", 2), ("adversarial", 3)])
def test_the_last_is_kept_where_psnr_is_not_the_aim(
    monkeypatch: pytest.MonkeyPatch, name: str, kept: int
) -> None:
    from jobs import train_worker

    monkeypatch.setattr("ray.train.collective.broadcast_from_rank_zero", lambda figures: figures)
    psnr = {1: 29.0, 2: 30.0, 3: 28.0}
    record = SimpleNamespace(validate=lambda step: {"restored": {"psnr": psnr[step]}})
    worker = object.__new__(train_worker._Worker)
    worker._config = {"album": SimpleNamespace(held_out=["one"])}
    worker._plan = SimpleNamespace(patience=None)
    worker._recipe = recipe(name)
    worker._progress = train_worker.Progress()
    for step in psnr:
        worker._progress = replace(worker._progress, step=step)
        worker._validate(record)
    assert (worker._progress.best_step, worker._progress.best) == (kept, psnr[kept])
    assert worker._progress.figures == {"restored": {"psnr": psnr[kept]}}


def test_two_workers_on_larger_pairs_in_buckets_keep_the_best_and_stop_without_gain(
    photos: Any, ray_cluster: None, tmp_path: Path, bucket: Any
) -> None:
    made, home = bucket() + "/pairs", open_store(bucket() + "/run")
    for index in range(8):
        (tmp_path / f"{index}.jpg").write_bytes(photos.jpeg(320, 320, seed=index))
    preprocess.run(preprocess.Options(str(tmp_path), made, train=8, test=0, size=320))
    two = {"workers": "2", "batch_size": 2, "precision": "float32"}
    # At such a rate everything is worse than the first epoch.
    stops = {"epochs": 30, "learning_rate": 0.3, "patience": 2, "validate_every": 1}
    with pytest.raises(UsageError, match=r"crops of 320 pixels .* takes 256 alone: give another"):
        train.run(options(made, home.uri, **two, **stops))
    summary = train.run(options(made, home.uri, size=256, **two, **stops))
    keys = [entry.key.split("/") for entry in home.list()]
    names = {key[0] for key in keys}
    assert {"model", "config.json", "samples", "tensorboard", "checkpoints"} <= names
    best, more = divmod(summary["steps"], 4)  # seven photos, two a step
    assert more == 0
    assert len([key for key in keys if key[0] == "samples"]) == best + 2 < 30
    kept = {key[1] for key in keys if key[0] == "checkpoints" and key[1].startswith("step-")}
    assert kept == {f"step-{4 * epoch:08d}" for epoch in (best, best + 2)}


@pytest.mark.usefixtures("coded")
def test_pairs_of_which_a_shard_is_gone_are_refused(made_pairs: Path, tmp_path: Path) -> None:
    source = open_store(made_pairs)
    more = replace(pairs.read_dataset(source), counts={"train": {"castle": 9}})
    with pytest.raises(
        UsageError, match=r"has 9 training pairs, and 8 are there: run the `deblur pre"
    ):
        train_source.Pairs(source, more, anew=False).pieces()
    with pytest.raises(
        UsageError, match=r"has 9 training pairs, and its shards are gone: run the `d"
    ):
        train_source.Pairs(open_store(tmp_path), more, anew=False).pieces()


def test_a_name_that_is_not_utf8_is_rejected(photos, tmp_path: Path) -> None:
    for index, name in enumerate((b"a.jpg", b"b.jpg", b"caf\xe9.jpg")):
        (tmp_path / os.fsdecode(name)).write_bytes(photos.jpeg(64, 64, seed=index))
    found = train_source.Photos(open_store(str(tmp_path)), 32)
    assert found.photos == 2
    assert found.rejected == {r"caf\udce9.jpg": "its name is not UTF-8"}


def test_a_store_that_does_not_answer_costs_the_terminal_a_line_and_no_run(tmp_path: Path) -> None:
    class Gone(LocalStore):
        def read(self, key: str, etag: str | None = None) -> bytes:
            raise DeblurError("no answer")

        def delete(self, key: str) -> None:
            raise DeblurError("no answer")

        def put(self, key: str, data: bytes | memoryview) -> None:
            raise DeblurError("no answer")

    progress = Progress("train", 10, "steps")
    watcher = train_run.Watcher(Gone(str(tmp_path)), progress)
    watcher._look()
    watcher._thread.start()
    watcher.__exit__()
    record = SimpleNamespace(_home=Gone(str(tmp_path)), _lines=[])
    train_record.Record._publish(record, 1, "text")  # type: ignore[arg-type]


def test_a_store_that_is_slow_holds_no_step_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    published: list[int] = []

    class Slow(LocalStore):
        def put(self, key: str, data: bytes | memoryview) -> None:
            assert answers.wait(60)
            published.append(json.loads(bytes(data))["step"])
            super().put(key, data)

    monkeypatch.setattr(train_record, "_TELL_EVERY_S", 0.0)
    config = {
        "plan": SimpleNamespace(recipe=recipe("best")), "name": "", "licence": "",
        "album": SimpleNamespace(validation=lambda: iter(())),
    }  # fmt: skip
    record = train_record.Record(Slow(str(tmp_path)), config, None)
    for step in range(5):
        record.step(step, {"error": 0.05}, 0.0)
        record.tell(f"line {step}")
    assert published == []
    threading.Timer(0.1, answers.set).start()
    record._end(5)
    assert published == [1, 5]
    live = json.loads((tmp_path / train_run.LIVE).read_text())
    assert live["lines"] == [f"line {step}" for step in range(5)]
    assert not any(thread.is_alive() for thread in record._publisher._threads)
    record._events_folder.cleanup()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_without_the_gpus_that_ray_sees_ends(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the TensorFlow of CPUs on a machine with GPUs. Where but one worker has it, Ray may try another."""
    from jobs import train_worker

    told = ["Ray gave 2 GPUs, TensorFlow sees 0"] if rank == 0 else [""]
    here = SimpleNamespace(
        get_world_rank=lambda: rank, get_local_world_size=lambda: 1, get_world_size=lambda: 2
    )
    monkeypatch.setattr(ray.train, "get_context", lambda: here)
    monkeypatch.setattr(
        "ray.train.collective.broadcast_from_rank_zero", lambda why: told[0] and why
    )
    monkeypatch.setattr(
        "tensorflow.config.threading.set_intra_op_parallelism_threads", lambda threads: None
    )
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    home = open_store(tmp_path)
    config = {"plan": None, "home": home, "gpus": 2}
    if rank == 0:
        train_worker.train_worker(config)
        error = json.loads(home.read(train_run.FAILURE))["error"]
        assert error.startswith(told[0])
        return
    with pytest.raises(DeblurError, match="Ray gave 2 GPUs, TensorFlow sees 0"):
        train_worker.train_worker(config)
    assert not home.exists(train_run.FAILURE)


def test_gpus_that_are_not_there_are_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--gpu: 2 wanted, and Ray sees 0 on this machine"):
        require_gpus(2, Cluster())
    require_gpus(0, Cluster())
    require_gpus(2, Cluster(address="grows:6379"))
    assert "2 GPUs are wanted and the cluster has 0" in capsys.readouterr().err


def test_usage_errors(made_pairs: Path, sharp_folder: Path, trained: Path, tmp_path: Path) -> None:
    cases = {
        "no network 'unet'": {"network": "unet"},
        "no training recipe 'bset'": {"recipe": "bset"},
        "--epochs 0": {"epochs": 0},
        "--parts 0": {"parts": 0},
        "--precision 'half'": {"precision": "half"},
        "no blur 'box15'": {"blur": "box15"},
        "--workers '3-2': expected a number, or a range such as 1-8": {"workers": "3-2"},
        "--workers 'two'": {"workers": "two"},
        "--batch-size 1 is a step's, shared by 2 workers": {"workers": "1-2"},
        "crops of 100 pixels do not suit pix2pix-small, which takes 256 alone: give another --size": {"size": 100},
        "crops of 100 pixels do not suit wiener-photo, which takes multiples of 16": {
            "size": 100, "network": "wiener-photo",
        },
        "--learning-rate 0: expected more": {"learning_rate": 0.0},
        "--learning-rate nan: expected more": {"learning_rate": float("nan")},
        "--adversarial-weight -1: expected 0 or more": {"adversarial_weight": -1.0},
        "--adversarial-weight nan": {"adversarial_weight": float("nan")},
        "--seed -1": {"seed": -1},
        "--gpus-per-worker 2 is for --gpu": {"gpus_per_worker": 2},
        "--parts 3: of 1 workers each has 4 photos of a batch of 4": {"parts": 3, "batch_size": 4},
        "--parts 2: of 4 workers each has 3 photos of a batch of 12": {"parts": 2, "batch_size": 12, "workers": "1-8"},
        "--size 512: the pairs are 256 pixels wide": {"size": 512},
        "is a pix2pix-small, and a pix2pix cannot begin with it: leave --network out": {
            "start_from": str(trained / "model"), "network": "pix2pix",
        },
        "--patience counts validations": {"patience": 2, "validation_photos": 0},
        "--patience is for a gain of PSNR": {"recipe": "adversarial", "patience": 2},
        "--recipe adversarial goes on from a model: give --start-from": {"recipe": "adversarial"},
    }  # fmt: skip
    for message, more in cases.items():
        with pytest.raises(UsageError, match=message):
            train.run(options(made_pairs, tmp_path / "run", **more))
    with pytest.raises(UsageError, match=r"holds no finished pairs .* or name a --blur"):
        train.run(options(sharp_folder, tmp_path / "run"))
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere"):
        train.run(options(tmp_path / "nowhere", tmp_path / "run"))
    with pytest.raises(UsageError, match=r"RUN is SOURCE"):
        train.run(options(sharp_folder, sharp_folder, blur="box14"))
    assert not (tmp_path / "run" / "config.json").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has neither pairs .* nor photos"):
        train.run(options(tmp_path / "empty", tmp_path / "run", blur="box14"))


def test_photos_that_serve(photos: Any, tmp_path: Path) -> None:
    """Copies, transparency, sheets of runs, what would be shrunk below the crop, or is too long for WebP."""
    pixels = photos.pixels(300, 320)
    opaque, seen_through = (
        np.dstack([pixels, np.full((300, 320), alpha, np.uint8)]) for alpha in (255, 254)
    )
    files = {
        "a/1.jpg": photos.jpeg(300, 320), "b/2.jpg": photos.jpeg(300, 320), "c.jpg": photos.jpeg(300, 320, seed=1),
        "opaque.png": photos.file(opaque, "PNG"), "through.png": photos.file(seen_through, "PNG"),
        "run/samples/step-00000007.jpg": photos.jpeg(300, 900), "wide.jpg": photos.jpeg(300, 14_000),
        "strip.jpg": photos.jpeg(600, 34_000), "run/config.json": b"{}",
        "runs/2/samples/step-00000007.jpg": photos.jpeg(300, 901), "runs/2/config.json": b"{}",
        # Of no run, and beside one's but no sheet.
        "samples/step-00000007.jpg": photos.jpeg(300, 310), "run/samples/step-1.jpg": photos.jpeg(300, 311),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(data)
    found = train_source.Photos(open_store(tmp_path), 256)
    assert found.rejected == {
        "b/2.jpg": "same content as a/1.jpg",
        "through.png": "has transparent pixels",
    }
    pieces = found.pieces()
    tables = ray.get(list(pieces.refs))
    assert [table["key"].to_pylist() for table in tables] == ray.get(pieces.keys)
    sizes = {
        key: photo.decode(data).pixels.shape[:2]
        for table in tables
        for key, data in zip(table["key"].to_pylist(), table["sharp"].to_pylist(), strict=True)
    }
    assert sizes == {
        "a/1.jpg": (300, 320), "c.jpg": (300, 320), "opaque.png": (300, 320), "strip.jpg": (300, 16_383),
        "wide.jpg": (300, 14_000), "samples/step-00000007.jpg": (300, 310), "run/samples/step-1.jpg": (300, 311),
    }  # fmt: skip
    assert found.photos == 7


def test_who_wants_one_photo_brings_few_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_pieces, "_PIECE_BYTES", 100)
    bytes_of = {"a": 40, "b": 60, "c": 30, "bad": 50, "d": 90, "e": 500, "f": 1}
    columns = {
        "key": list(bytes_of),
        "sharp": [key[0].encode() * (size - size // 2) for key, size in bytes_of.items()],
        "blurred": [bytes(size // 2) for size in bytes_of.values()],
        "reason": ["broken" if key == "bad" else None for key in bytes_of],
    }  # fmt: skip
    tables = [ray.put(pa.table(columns)), ray.put(pa.table(columns).slice(3, 1))]
    facts = train_pieces.facts(tables)
    assert {fact.key: fact.size_bytes for fact in facts[0]} == bytes_of
    pieces = train_pieces.cut(tables, facts)
    expected = [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    assert ray.get(pieces.keys) == expected
    found = ray.get(list(pieces.refs))
    assert [table["key"].to_pylist() for table in found] == expected
    for table in found:
        assert table.column_names == ["key", "sharp", "blurred"]
        assert [data[:1].decode() for data in table["sharp"].to_pylist()] == table[
            "key"
        ].to_pylist()
    # The more photos there are, the larger the pieces, so that there are not too many to know.
    monkeypatch.setattr(train_pieces, "_MOST_PIECES", 2)
    assert ray.get(train_pieces.cut(tables, facts).keys) == [["a", "b", "c", "d"], ["e"], ["f"]]


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "ahead"),
    [([2], 1, 1, 3), ([2], 2, 0.5, 2), ([8] * 5, 4, 1, 19), ([8], 1, 1, 15), ([], 1, 1, 1)],
)
def test_as_many_blocks_are_made_ahead_as_the_free_cores_make(
    nodes: list[float], workers: int, cpus: float, ahead: int
) -> None:
    assert train_data.blocks_ahead(nodes, workers, cpus) == ahead


def test_pairs_of_an_odd_side_are_validated_on_a_multiple_of_the_stride(photos: Any) -> None:
    maker = Maker("box14", 128, 0, 256, 16)
    shown = maker.held_out_pair(*2 * (photos.pixels(250, 250),))
    assert shown.sharp.shape == shown.blurred.shape == (240, 240, 3)


@pytest.mark.parametrize(
    ("photo_count", "chosen", "steps"), [(199, None, 400), (199, 3, 150), (100_000, None, 2000)]
)
def test_a_long_epoch_is_validated_within(photo_count: int, chosen: int | None, steps: int) -> None:
    asked = train.Options(
        "photos", "run", recipe="best", blur="photo", validate_every=chosen, validation_photos=0
    )
    source = SimpleNamespace(photos=photo_count, fingerprint="", blur=None)
    plan = train._plan(asked, recipe("best"), source, 128, None)
    assert plan.total_steps == 20_000
    assert plan.validation_steps == steps


@pytest.mark.parametrize(
    ("nodes", "workers", "gpu", "share"),
    [([2], 1, False, 1), ([2], 2, False, 0.5), ([16], 2, False, 7), ([1], 1, False, 0.5),
     ([8], 3, False, 2), ([64], 8, True, 1), ([2], 1, True, 1), ([4], 4, True, 0.75),
     # A worker's cores are on one node, however many there are in all.
     ([0, 3, 3], 1, False, 2), ([0, 3, 3], 2, False, 2), ([8, 8], 3, False, 3), ([1, 1], 1, False, 0.5),
     ([1, 1], 2, False, 0.5), ([0, 2, 2], 3, False, 0.5), ([0], 2, False, 0.01)],
)  # fmt: skip
def test_cores_are_left_for_the_data(
    nodes: list[float], workers: int, gpu: bool, share: float
) -> None:
    assert train_group.cpus_per_worker(nodes, workers, gpu) == share


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "begun"),
    [([2], (1, 8), 0, 1), ([4], (1, 8), 0, 1), ([16], (2, 8), 0, 2), ([4, 4], (1, 8), 0, 2), ([8], (3, 8), 0, 3),
     ([101], (50, 120), 0, 50), ([2, 2], (3, 8), 0, 3), ([1], (1, 8), 0, 1), ([1, 1], (1, 8), 0, 1),
     ([2], (2, 8), 0, 2), ([4], (1, 8), 8, 8), ([64, 64], (1, 8), 2, 4)],
)  # fmt: skip
def test_a_range_is_as_many_workers_as_have_the_cores_of_the_least(
    nodes: list[float], workers: tuple[int, int], gpus: int, begun: int
) -> None:
    from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy

    number, cpus = train_group.group(nodes, workers, gpu=gpus > 0)
    each = {"CPU": cpus, "GPU": 1 if gpus else 0}
    config = SimpleNamespace(
        _resources_per_worker_not_none=each, max_workers=workers[1], use_tpu=False
    )
    if isinstance(number, tuple):
        assert number == workers
        there = {str(index): {"CPU": cores, "GPU": gpus} for index, cores in enumerate(nodes)}
        policy = SimpleNamespace(scaling_config=config)
        number = ElasticScalingPolicy._count_possible_workers(policy, there)
    assert number == begun
    # However they lie, some node has what a task needs that makes examples.
    assert sum(nodes) - begun * cpus >= len(nodes) * train_pieces.TASK_CPUS


def test_a_range_on_a_cluster_that_has_yet_to_grow_has_a_core_each() -> None:
    assert train_group.group([], (1, 8)) == ((1, 8), 1.001)


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(("workers", "replicas", "ahead"), [(2, 1, 1), (3, 1, 2), (1, 2, 9)])
def test_batches_are_the_planned_ones(
    coded: dict[bool, Pieces],
    workers: int,
    replicas: int,
    ahead: int,
    anew: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What each worker is fed is exactly what the order has for it, in blocks of any size."""
    monkeypatch.setattr(train_data, "_BLOCK_PHOTOS", 8)
    album = train_data.Album(coded[anew], Maker("box14", 256, 5), held_out=2)
    places = album.training
    assert len(places) == 6
    order = Order(len(places), 4, 5)
    feeds = [
        train_data.Feed(album, order, workers, worker, replicas, ahead) for worker in range(workers)
    ]
    received = [list(feed.batches(3, 10)) for feed in feeds]
    for step in range(3, 10):
        seen: list[str] = []
        for worker, got in enumerate(received):
            assert len(got) == 7
            batch = got[step - 3]
            shares = [
                order.share(step, worker * replicas + index, workers * replicas)
                for index in range(replicas)
            ]
            rows = np.concatenate([share.rows for share in shares])
            weights = np.concatenate([share.weights for share in shares])
            assert np.array_equal(batch.weights, weights)
            for index, row in enumerate(rows):
                place = places[row]
                table = ray.get(album.pieces.refs[place.piece])
                sharp, blurred = train_data.example(album.maker, table, place, order.epoch(step))
                assert np.array_equal(batch.sharp[index], sharp)
                assert np.array_equal(batch.blurred[index], blurred)
            seen += [places[row].key for row, weight in zip(rows, weights, strict=True) if weight]
            # Each knows what all see, without what only fills up.
            assert sorted(feeds[worker].keys(step)) == sorted(
                places[row].key for row in order.rows(step)
            )
        assert sorted(seen) == sorted(feeds[0].keys(step))


@pytest.mark.parametrize("left", [80, 7000, 35_990, 90_000, 360_000])
@pytest.mark.parametrize("waiting", [0.0, 1.0])
@pytest.mark.parametrize("rate", [0.01234, 99.94, 1234.5])
def test_a_terminal_of_80_columns_holds_the_line(rate: float, waiting: float, left: int) -> None:
    text = live_text({"error": 0.12345}, rate, waiting)
    assert "img/s" in text
    bar = "train " + 16 * "-" + " 400000/400000"
    assert len(f"{bar} , {text}, {duration(left)} left") <= 80
