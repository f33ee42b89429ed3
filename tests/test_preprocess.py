import json
import os
import shutil
from pathlib import Path

import cv2
import pyarrow.parquet as pq
import pytest

from deblur import ahead, pairs, photo
from deblur.errors import UsageError
from deblur.places365 import Pool
from deblur.storage import LocalStore, open_store
from jobs import preprocess, preprocess_plan, preprocess_shards, runtime
from jobs.preprocess_shards import Shard, bundles
from jobs.progress import Progress

pytestmark = pytest.mark.usefixtures("ray_cluster")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def options(source: Path, target: Path | str, **more: object) -> preprocess.Options:
    return preprocess.Options(str(source), str(target), **{"train": 4, "test": 2, **more})


def test_pairs_are_centre_crops_blurred_as_the_report_did(
    made_pairs: Path, sharp_folder: Path
) -> None:
    store = LocalStore(str(made_pairs))
    rows = [
        row
        for split in ("train", "test")
        for name in pairs.shards(store, split)
        for row in pairs.read_shard(store.read(name))
    ]
    assert len(rows) == 12
    for row in rows:
        source = photo.decode((sharp_folder / row.key).read_bytes()).pixels
        top, left = (source.shape[0] - 256) // 2, (source.shape[1] - 256) // 2
        crop = source[top : top + 256, left : left + 256]
        assert (photo.decode_lossless(row.sharp) == crop).all()
        assert (photo.decode_lossless(row.blurred) == cv2.blur(crop.copy(), (14, 14))).all()


def test_dataset_says_what_is_there(made_pairs: Path) -> None:
    dataset = pairs.read_dataset(LocalStore(str(made_pairs)))
    assert dataset.counts == {
        "train": {"castle": 4, "forest": 4},
        "test": {"castle": 2, "forest": 2},
    }
    assert dataset.recipe == "box14"


def test_rejected_photos_are_replaced_and_listed(sharp_folder: Path, tmp_path: Path) -> None:
    summary = preprocess.run(options(sharp_folder, tmp_path / "all", train=6, test=3))
    made = [summary["by_category"][split]["castle"] for split in ("train", "test")]
    assert sum(made) == 8  # one of castle's nine is broken, and there is none to replace it
    rows = pq.read_table(tmp_path / "all" / "rejected.parquet").to_pylist()
    assert [(row["key"], row["split"]) for row in rows] == [("castle/8.jpg", rows[0]["split"])]
    assert rows[0]["reason"]


def test_a_kill_in_the_middle_changes_no_byte(
    sharp_folder: Path, made_pairs: Path, tmp_path: Path
) -> None:
    preprocess.run(options(sharp_folder, tmp_path))
    assert contents(tmp_path) == contents(made_pairs)
    for name in ("train/00000.parquet", "dataset.json"):  # as if it had been killed before these
        (tmp_path / name).unlink()
    kept = (tmp_path / "test/00000.parquet").stat().st_mtime_ns
    preprocess.run(options(sharp_folder, tmp_path))
    assert contents(tmp_path) == contents(made_pairs)
    assert (tmp_path / "test/00000.parquet").stat().st_mtime_ns == kept


def test_bucket_gets_the_same_bytes(sharp_folder: Path, made_pairs: Path, bucket) -> None:
    source, target = open_store(bucket()), open_store(bucket() + "/pairs")
    for key, data in contents(sharp_folder).items():
        source.put(key, data)
    preprocess.run(preprocess.Options(source.uri, target.uri, train=4, test=2))
    here = contents(made_pairs)
    there = {entry.key: target.read(entry.key) for entry in target.list()}
    assert {key: data for key, data in here.items() if key != "dataset.json"} == {
        key: data for key, data in there.items() if key != "dataset.json"
    }
    mine, theirs = (json.loads(data["dataset.json"]) for data in (here, there))
    assert mine.pop("source") != theirs.pop("source")
    assert mine == theirs


def test_train_and_test_share_no_content(photos, tmp_path: Path) -> None:
    for index in range(6):  # each photo twice, under other names
        for copy in range(2):
            path = tmp_path / "in" / f"{copy}" / f"{index}{copy}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photos.jpeg(64, 64, seed=index))
    preprocess.run(options(tmp_path / "in", tmp_path / "out", train=9, test=9, size=32))
    store = LocalStore(str(tmp_path / "out"))
    seen = [
        {
            row.source_sha256
            for name in pairs.shards(store, split)
            for row in pairs.read_shard(store.read(name))
        }
        for split in ("train", "test")
    ]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 6
    reasons = pq.read_table(tmp_path / "out" / "rejected.parquet")["reason"].to_pylist()
    assert len(reasons) == 6
    assert all("same content as" in reason for reason in reasons)


def test_plan_takes_categories_in_turn_and_fills_shards() -> None:
    pools = [
        Pool("a", "train", tuple(f"a{i}" for i in range(100)), 70),
        Pool("b", "train", ("b0", "b1"), 2),
    ]
    shards = list(
        preprocess_plan.plan(
            pools, dict.fromkeys(pools, 0), {pool: pool.wanted for pool in pools}, {}
        )
    )
    assert [shard.name for shard in shards] == ["train/00000.parquet", "train/00001.parquet"]
    assert [len(shard.photos) for shard in shards] == [64, 8]
    assert shards[0].photos[:5] == (("a0", "a"), ("b0", "b"), ("a1", "a"), ("b1", "b"), ("a2", "a"))


@pytest.mark.parametrize(("count", "workers"), [(1, 8), (26, 2), (400, 3)])
def test_bundles_are_large_first_and_single_at_the_end(count: int, workers: int) -> None:
    shards = [Shard(str(index), "train", ()) for index in range(count)]
    made = list(bundles(shards, workers))
    assert [shard for bundle in made for shard in bundle] == shards
    sizes = [len(bundle) for bundle in made]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 16
    assert sizes[-1] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"blur": "box15"}, "box14"),
        ({"size": 8}, "--size 8"),
        ({"size": 16_384}, "32 to 16383"),
        ({"train": 0, "test": 0}, "not both 0"),
        ({"categories": "castel"}, "castle"),
    ],
)
def test_wrong_options_are_explained(
    sharp_folder: Path, tmp_path: Path, more: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        preprocess.run(options(sharp_folder, tmp_path, **more))


def test_other_pairs_are_not_mixed_in(sharp_folder: Path, made_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="other options"):
        preprocess.run(options(sharp_folder, made_pairs, seed=1))
    # Nor where the first shard is damaged, which `evaluate` says to mend by the same command.
    shutil.copytree(made_pairs, tmp_path / "damaged")
    first = tmp_path / "damaged" / "test" / "00000.parquet"
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(UsageError, match="other options"):
        preprocess.run(options(sharp_folder, tmp_path / "damaged", seed=1))
    preprocess.run(options(sharp_folder, tmp_path / "damaged"))
    assert contents(tmp_path / "damaged") == contents(made_pairs)


def test_photos_of_the_same_names_are_other_photos(photos, tmp_path: Path) -> None:
    """As those of two cameras' cards."""
    for number, card in enumerate(("one", "two")):
        for index in range(3):
            path = tmp_path / card / f"IMG_{index}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(photos.jpeg(64, 64, seed=3 * number + index))
    target = tmp_path / "pairs"
    preprocess.run(options(tmp_path / "one", target, train=2, test=1, size=32))
    with pytest.raises(UsageError, match="other photos"):
        preprocess.run(options(tmp_path / "two", target, train=2, test=1, size=32))


def test_what_was_made_before_says_nothing_of_the_rate() -> None:
    progress = Progress("preprocess", 1000, "photos")
    progress.begin_at(900)
    progress.advance(0)
    assert progress._first is not None
    assert progress._first[1] == 900


def test_photos_outside_of_the_layout_are_told_of(
    photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, name in enumerate(("train/a.jpg", "train/b.jpg", "test/c.jpg", "stray\x1b[31m.jpg")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.jpeg(64, 64, seed=index))
    preprocess.run(options(tmp_path / "in", tmp_path / "out", train=2, test=1, size=32))
    said = capsys.readouterr().err
    assert r"1 of 4 photos are left out, such as stray\x1b[31m.jpg: they are not in" in said


def test_a_category_without_a_photo_for_a_split_is_told_of(
    photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One photo is trained on, and copies of another category's are none."""
    for name, seed in {
        "castle/a.jpg": 0,
        "castle/b.jpg": 1,
        "fort/c.jpg": 1,
        "lake/d.jpg": 2,
    }.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.jpeg(64, 64, seed=seed))
    summary = preprocess.run(options(tmp_path / "in", tmp_path / "out", train=1, test=1, size=32))
    counts = summary["by_category"]
    assert set(counts["train"]) == set(counts["test"]) == {"castle", "fort", "lake"}
    assert sum(counts["train"].values()) + sum(counts["test"].values()) == 3
    said = capsys.readouterr().err
    for split in ("train", "test"):
        none = ", ".join(f"{name} 0" for name, count in counts[split].items() if not count)
        assert f"fewer than the 1 {split} photos wanted: {none}" in said


def test_lists_that_are_no_text(photos, tmp_path: Path) -> None:
    """One that begins with a mark of its encoding is read as it is; one in UTF-16 is refused."""
    root = tmp_path / "in"
    for index in range(2):
        path = root / "val_256" / f"Places365_val_0000000{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.jpeg(64, 64, seed=index))
    (root / "categories_places365.txt").write_text("/c/castle 0\n", "utf-8-sig")
    names = "".join(f"Places365_val_0000000{index}.jpg 0\n" for index in range(2))
    (root / "places365_val.txt").write_text(names, "utf-8-sig")
    summary = preprocess.run(options(root, tmp_path / "out", train=1, test=1, size=32))
    assert summary["by_category"]["test"] == {"castle": 1}
    (root / "places365_val.txt").write_text(names, "utf-16")
    with pytest.raises(UsageError, match=r"places365_val\.txt is no UTF-8 text"):
        preprocess.run(options(root, tmp_path / "out", train=1, test=1, size=32))


def test_no_photos(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="has no photos"):
        preprocess.run(options(tmp_path / "in", tmp_path / "out"))
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    with pytest.raises(UsageError, match="the name of none of the 1 photos"):
        preprocess.run(options(tmp_path / "in", tmp_path / "out"))
    with pytest.raises(UsageError, match="there is no folder"):
        preprocess.run(options(tmp_path / "nowhere", tmp_path / "out"))


def test_only_broken_photos(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        (tmp_path / "in" / f"{index}.jpg").write_bytes(b"no" * (index + 1))
    with pytest.raises(UsageError, match="none of the 3 photos"):
        preprocess.run(options(tmp_path / "in", tmp_path / "out"))


def test_the_same_place_serves_after_none_could_be_used(photos, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index in range(3):
        (tmp_path / "in" / f"{index}.jpg").write_bytes(photos.jpeg(64, 64, seed=index))
    with pytest.raises(UsageError, match="smaller than the crop"):
        preprocess.run(options(tmp_path / "in", tmp_path / "out", train=2, test=1, size=128))
    summary = preprocess.run(options(tmp_path / "in", tmp_path / "out", train=2, test=0, size=64))
    assert (summary["train"], summary["test"]) == (2, 0)
    assert not [name for name in contents(tmp_path / "out") if name.startswith("test/")]


def test_a_category_of_which_nothing_can_be_used_is_told_of(
    photos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for category, height in (("castle", 280), ("forest", 200)):
        (tmp_path / "in" / category).mkdir(parents=True)
        for index in range(2):
            data = photos.jpeg(height, 300, seed=height + index)
            (tmp_path / "in" / category / f"{index}.jpg").write_bytes(data)
    summary = preprocess.run(options(tmp_path / "in", tmp_path / "out", train=1, test=1))
    assert summary["by_category"] == {
        split: {"castle": 1, "forest": 0} for split in ("train", "test")
    }
    said = capsys.readouterr().err
    for split in ("train", "test"):
        assert f"fewer than the 1 {split} photos wanted: forest 0" in said


def test_cluster_is_left_running() -> None:
    import ray

    with runtime.cluster(runtime.Cluster()):
        pass
    assert ray.is_initialized()


def test_a_name_that_is_not_utf8_is_rejected(photos, tmp_path: Path) -> None:
    for index, name in enumerate((b"a.jpg", b"b.jpg", b"caf\xe9.jpg", b"caf\xe9/c.jpg")):
        path = tmp_path / "in" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos.jpeg(64, 64, seed=index))
    summary = preprocess.run(options(tmp_path / "in", tmp_path / "out", train=1, test=1, size=32))
    assert (summary["train"], summary["test"], summary["rejected"]) == (1, 1, 2)
    assert pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist() == [
        {"key": key, "split": "", "reason": "its name is not UTF-8"}
        for key in (r"caf\udce9.jpg", r"caf\udce9/c.jpg")
    ]


def test_files_are_read_a_few_ahead_and_one_too_large_is_rejected(photos, tmp_path: Path) -> None:
    read: list[str] = []

    class Large(LocalStore):
        def read(self, key: str, etag: str | None = None) -> bytes:
            read.append(key)
            if key == "1.jpg":
                raise MemoryError
            return photos.jpeg(64, 64)

    threads = preprocess_shards.ThreadPoolExecutor(1)
    names = [f"{number}.jpg" for number in range(64)]
    maker = preprocess_shards.ShardMaker(
        Large(str(tmp_path)), LocalStore(str(tmp_path / "out")), recipe="box14", seed=0, size_px=64, plan_id="plan",
    )  # fmt: skip
    with threads:
        found = ahead.results(threads, maker._fetch, names, 2 * preprocess_shards._FETCH_THREADS)
        next(found)
        threads.submit(lambda: None).result()  # all that was asked for by now has been read
        assert len(read) == 17
    facts = maker.make(Shard("train/a.parquet", "train", tuple((name, "") for name in names[:3])))
    assert facts.pairs == 2
    assert facts.rejected == {"1.jpg": "cannot be read: the file is larger than the memory"}
