import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from deblur import photo
from deblur.errors import UsageError
from deblur.storage import Entry, LocalStore, open_store
from jobs import restore, restore_stages

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def blurred(tmp_path_factory: pytest.TempPathFactory, photos) -> Path:
    """Return photos of several sizes and kinds, and some that are none."""
    folder = tmp_path_factory.mktemp("blurred")
    grey = photos.pixels(70, 300, seed=3)[..., 0]
    files = {
        "a.jpg": photos.jpeg(300, 200, seed=1),
        "trip/a.jpg": photos.jpeg(40, 520, seed=2),
        "trip/grey.png": photos.file(grey, "PNG"),
        "trip/süß und gut.webp": photos.file(photos.pixels(33, 47, seed=4), "WEBP"),
        "broken.jpg": photos.jpeg(200, 200, seed=5)[:900],
        "empty.png": b"",
        "readme.md": b"# none",
    }
    for key, data in files.items():
        path = folder / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return folder


def ledger_rows(folder: Path) -> list[dict[str, object]]:
    return sorted(
        pq.read_table(folder / "_deblur" / "ledger").to_pylist(), key=lambda row: row["key"]
    )


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_deblur" not in path.parts
    }


@pytest.fixture(scope="module")
def restored(
    tmp_path_factory: pytest.TempPathFactory, blurred: Path, trained: Path
) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("restored")
    return folder, restore.run(
        restore.Options(str(blurred), str(folder), model=str(trained / "model"))
    )


def test_every_photo_is_accounted_for(restored, blurred: Path) -> None:
    folder, summary = restored
    assert (summary["photos"], summary["restored"], summary["failed"], summary["not_done"]) == (
        6,
        4,
        2,
        0,
    )
    rows = ledger_rows(folder)
    assert {row["key"]: row["status"] for row in rows} == {
        "a.jpg": "restored",
        "broken.jpg": "failed",
        "empty.png": "failed",
        "trip/a.jpg": "restored",
        "trip/grey.png": "restored",
        "trip/süß und gut.webp": "restored",
    }
    assert all(row["reason"] for row in rows if row["status"] == "failed")
    assert set(outputs(folder)) == {row["key"] for row in rows if row["status"] == "restored"}
    for row in rows:
        if row["status"] == "restored":
            data = outputs(folder)[str(row["output_key"])]
            assert row["output_sha256"] == hashlib.sha256(data).hexdigest()
            before, after = (
                photo.decode((blurred / str(row["key"])).read_bytes()),
                photo.decode(data),
            )
            assert before.pixels.shape == after.pixels.shape == (row["height"], row["width"], 3)
            assert (before.format, before.grey) == (after.format, after.grey)
            assert not np.array_equal(before.pixels, after.pixels)


def test_second_run_computes_nothing(restored, blurred: Path, trained: Path) -> None:
    folder, first = restored
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    summary = restore.run(restore.Options(str(blurred), str(folder), model=str(trained / "model")))
    assert summary["this_run"]["restored"] == summary["this_run"]["failed"] == 0
    assert (summary["restored"], summary["failed"]) == (first["restored"], first["failed"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_bytes_depend_neither_on_company_nor_on_a_kill(
    restored, blurred: Path, trained: Path, tmp_path: Path
) -> None:
    folder, _ = restored
    options = restore.Options(str(blurred), str(tmp_path), model=str(trained / "model"), limit=2)
    assert restore.run(options)["not_done"] == 4
    options = restore.Options(str(blurred), str(tmp_path), model=str(trained / "model"))
    summary = restore.run(options)
    assert summary["this_run"]["restored"] + summary["this_run"]["failed"] == 4
    assert outputs(tmp_path) == outputs(folder)


def test_new_and_changed_photos_and_retries(photos, trained: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.png").write_bytes(photos.file(photos.pixels(20, 20), "PNG"))
    (source / "b.png").write_bytes(b"broken")

    def run(**more: object) -> dict[str, int]:
        done = restore.run(
            restore.Options(str(source), str(target), model=str(trained / "model"), **more)
        )
        return {name: done["this_run"][name] for name in ("restored", "failed")}

    assert run() == {"restored": 1, "failed": 1}
    assert run(retry_failed=True) == {"restored": 0, "failed": 1}
    (source / "b.png").write_bytes(photos.file(photos.pixels(21, 20, seed=1), "PNG"))
    (source / "c.png").write_bytes(photos.file(photos.pixels(22, 20, seed=2), "PNG"))
    assert run() == {"restored": 2, "failed": 0}
    assert run() == {"restored": 0, "failed": 0}


def test_buckets(blurred: Path, restored, trained: Path, bucket) -> None:
    folder, _ = restored
    source, target, model = (open_store(bucket() + suffix) for suffix in ("", "/deep/er", "/m"))
    for path in blurred.rglob("*"):
        if path.is_file():
            source.put(path.relative_to(blurred).as_posix(), path.read_bytes())
    for path in (trained / "model").iterdir():
        model.put(path.name, path.read_bytes())
    summary = restore.run(restore.Options(source.uri, target.uri, model=model.uri))
    assert (summary["restored"], summary["failed"]) == (4, 2)
    there = {
        entry.key: target.read(entry.key)
        for entry in target.list()
        if not entry.key.startswith("_deblur")
    }
    assert there == outputs(folder)


def test_dry_run_does_nothing(blurred: Path, trained: Path, tmp_path: Path) -> None:
    options = restore.Options(
        str(blurred), str(tmp_path / "out"), model=str(trained / "model"), dry_run=True
    )
    assert restore.run(options)["to_restore"] == 6
    assert not (tmp_path / "out").exists()


def test_usage_errors(blurred: Path, trained: Path, tmp_path: Path) -> None:
    model = str(trained / "model")
    cases = {
        "lie in one another": restore.Options(str(blurred), str(blurred / "out"), model=model),
        "there is no folder": restore.Options(
            str(tmp_path / "none"), str(tmp_path / "out"), model=model
        ),
        "holds no model": restore.Options(str(blurred), str(tmp_path / "out"), model=str(tmp_path)),
        "--limit 0": restore.Options(str(blurred), str(tmp_path / "out"), model=model, limit=0),
        "--actors 0": restore.Options(str(blurred), str(tmp_path / "out"), model=model, actors=0),
    }
    for message, options in cases.items():
        with pytest.raises(UsageError, match=message):
            restore.run(options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no photos"):
        restore.run(restore.Options(str(tmp_path / "empty"), str(tmp_path / "out"), model=model))


def test_chunks_are_bounded() -> None:
    entries = [Entry(f"{i:03}", size, "") for i, size in enumerate([1] * 70 + [20 << 20] * 3)]
    groups = list(restore.chunks(entries))
    assert [entry for group in groups for entry in group] == entries
    assert [len(group) for group in groups] == [32, 32, 7, 1, 1]


def test_packs_are_bounded(photos) -> None:
    large = photo.Photo(np.zeros((2000, 2500, 3), np.uint8))
    items = [restore_stages.Item(Entry(str(i), 1, ""), large) for i in range(5)]
    assert [len(pack) for pack in restore_stages.packs(items)] == [2, 2, 1]


def test_what_cannot_be_written_is_in_the_ledger(photos, tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()  # in the way of the photo
    deliver = restore_stages.Deliver(LocalStore(str(tmp_path)), "model", "settings")
    item = restore_stages.Item(Entry("a.png", 1, "e"), photo.Photo(photos.pixels()))
    result = deliver({"pack": [[item]]})
    assert result["status"] == ["failed"]
    assert "cannot be written" in result["reason"][0]
