import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from deblur import ledger, models, photo
from deblur.errors import DeblurError, UsageError
from deblur.restorer import Restorer
from deblur.storage import Entry, LocalStore, open_store
from jobs import restore, restore_packs, restore_plan, restore_stages
from jobs.runtime import bounded_retries

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


def options_for(source: object, target: object, tiny: Path, **more: Any) -> restore.Options:
    """Return options with a model that is untrained."""
    given = {"model": str(tiny), "no_guard": True} | more
    return restore.Options(str(source), str(target), **given)


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
    tmp_path_factory: pytest.TempPathFactory, blurred: Path, tiny: Path
) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("restored")
    return folder, restore.run(options_for(blurred, folder, tiny))


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


def test_second_run_computes_nothing(restored, blurred: Path, tiny: Path) -> None:
    folder, first = restored
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    summary = restore.run(options_for(blurred, folder, tiny))
    assert summary["this_run"]["restored"] == summary["this_run"]["failed"] == 0
    assert (summary["restored"], summary["failed"]) == (first["restored"], first["failed"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("without_ray")
def test_bytes_depend_neither_on_company_nor_on_a_kill_nor_on_ray(
    restored, blurred: Path, tiny: Path, tmp_path: Path
) -> None:
    folder, _ = restored
    options = options_for(blurred, tmp_path, tiny, limit=2)
    assert restore.run(options)["not_done"] == 4
    options = options_for(blurred, tmp_path, tiny)
    summary = restore.run(options)
    assert summary["this_run"]["restored"] + summary["this_run"]["failed"] == 4
    assert outputs(tmp_path) == outputs(folder)


@pytest.mark.usefixtures("without_ray")
def test_new_and_changed_photos_and_retries(photos, tiny: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.png").write_bytes(photos.file(photos.pixels(20, 20), "PNG"))
    (source / "b.png").write_bytes(b"broken")

    def run(**more: object) -> dict[str, int]:
        done = restore.run(options_for(source, target, tiny, **more))
        return {name: done["this_run"][name] for name in ("restored", "failed")}

    assert run() == {"restored": 1, "failed": 1}
    assert run(retry_failed=True) == {"restored": 0, "failed": 1}
    (source / "b.png").write_bytes(photos.file(photos.pixels(21, 20, seed=1), "PNG"))
    (source / "c.png").write_bytes(photos.file(photos.pixels(22, 20, seed=2), "PNG"))
    assert run() == {"restored": 2, "failed": 0}
    assert run() == {"restored": 0, "failed": 0}


@pytest.mark.usefixtures("without_ray")
def test_one_photo(blurred: Path, restored, tiny: Path, tmp_path: Path, bucket) -> None:
    """Without a look at what lies beside it, and into a folder there as well."""
    folder, _ = restored
    shutil.copytree(blurred, tmp_path / "in")
    source, target = tmp_path / "in" / "trip" / "a.jpg", tmp_path / "in" / "trip" / "sharp"
    summary = restore.run(options_for(source, target, tiny))
    assert (summary["source"], summary["photos"], summary["restored"]) == (str(source), 1, 1)
    assert outputs(target) == {"a.jpg": outputs(folder)["trip/a.jpg"]}
    assert [row["key"] for row in ledger_rows(target)] == ["a.jpg"]
    other = restore.run(options_for(source.with_name("grey.png"), target, tiny))
    again = restore.run(options_for(source, target, tiny))
    assert (other["this_run"]["restored"], again["this_run"]["restored"]) == (1, 0)
    assert {row["key"] for row in ledger_rows(target)} == {"a.jpg", "grey.png"}

    place = open_store(bucket())
    place.put("trip/a.jpg", source.read_bytes())
    restore.run(options_for(f"{place.uri}/trip/a.jpg", f"{place.uri}/sharp", tiny))
    assert place.read("sharp/a.jpg") == outputs(folder)["trip/a.jpg"]


def test_buckets(blurred: Path, restored, tiny: Path, bucket) -> None:
    folder, _ = restored
    source, target, model = (open_store(bucket() + suffix) for suffix in ("", "/deep/er", "/m"))
    for path in blurred.rglob("*"):
        if path.is_file():
            source.put(path.relative_to(blurred).as_posix(), path.read_bytes())
    for path in tiny.iterdir():
        model.put(path.name, path.read_bytes())
    summary = restore.run(options_for(source.uri, target.uri, tiny, model=model.uri))
    assert (summary["restored"], summary["failed"]) == (4, 2)
    there = {
        entry.key: target.read(entry.key)
        for entry in target.list()
        if not entry.key.startswith("_deblur")
    }
    assert there == outputs(folder)


def test_dry_run_does_nothing(blurred: Path, tiny: Path, tmp_path: Path) -> None:
    said = restore.run(options_for(blurred, tmp_path / "out", tiny, dry_run=True))
    assert (said["to_restore"], said["seconds_estimate"]) == (6, None)
    assert said["bytes"] == sum(
        path.stat().st_size
        for path in blurred.rglob("*")
        if path.is_file() and path.suffix != ".md"
    )
    assert not (tmp_path / "out").exists()


def test_usage_errors(blurred: Path, tiny: Path, tmp_path: Path) -> None:
    model = str(tiny)
    cases = {
        "lie in one another": restore.Options(str(blurred), str(blurred / "out"), model=model),
        "there is no folder": restore.Options(
            str(tmp_path / "none"), str(tmp_path / "out"), model=model
        ),
        "there is no folder and no photo": restore.Options(
            str(tmp_path / "none.jpg"), str(tmp_path / "out"), model=model
        ),
        "out.jpg is named like a photo": restore.Options(
            str(blurred / "a.jpg"), str(tmp_path / "out.jpg"), model=model
        ),
        "replace their originals": restore.Options(
            str(blurred / "a.jpg"), str(blurred), model=model
        ),
        "photos would be taken for new": restore.Options(
            str(blurred / "trip" / "a.jpg"), str(blurred), model=model
        ),
        "is a file, not a folder": restore.Options(
            str(blurred / "readme.md"), str(tmp_path / "out"), model=model
        ),
        "holds no model": restore.Options(str(blurred), str(tmp_path / "out"), model=str(tmp_path)),
        "--limit 0": restore.Options(str(blurred), str(tmp_path / "out"), model=model, limit=0),
        "--format 'exe'": restore.Options(
            str(blurred), str(tmp_path / "out"), model=model, format="exe"
        ),
        "--quality 0": restore.Options(str(blurred), str(tmp_path / "out"), model=model, quality=0),
        "--suffix": restore.Options(
            str(blurred), str(tmp_path / "out"), model=model, suffix="/../x"
        ),
        "--skip-sharp 2": restore.Options(
            str(blurred), str(tmp_path / "out"), model=model, skip_sharp=2
        ),
        "--copy-skipped": restore.Options(
            str(blurred), str(tmp_path / "out"), model=model, copy_skipped=True
        ),
        "--max-megapixels": restore.Options(
            str(blurred), str(tmp_path / "out"), model=model, max_megapixels=0
        ),
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
    groups = list(restore_plan.chunks(entries))
    assert [entry for group in groups for entry in group] == entries
    assert [len(group) for group in groups] == [32, 32, 7, 1, 1]


def test_packs_are_bounded(photos) -> None:
    large = photo.Photo(np.zeros((2000, 2500, 3), np.uint8))
    items = [restore_packs.Item(Entry(str(i), 1, ""), large) for i in range(5)]
    assert [len(pack) for pack in restore_packs.packs(items)] == [2, 2, 1]


def test_ray_data_takes_the_stages_for_gpus(tmp_path: Path) -> None:
    source, destination = open_store(tmp_path), open_store(tmp_path / "out")
    asked = restore.Options(str(tmp_path), str(tmp_path / "out"), gpu=True)
    ends = restore._ends(source, destination, asked, restore_stages.Treatment("", ""))
    with bounded_retries():
        restore._pipeline([Entry("a.jpg", 1, "etag")], ends[0], source, ends[1], asked, 1)


def test_what_cannot_be_written_is_in_the_ledger(photos, tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()  # in the way of the photo
    treatment = restore_stages.Treatment("model", "settings")
    deliver = restore_stages.Deliver(LocalStore(str(tmp_path)), treatment)
    item = restore_packs.Item(Entry("a.png", 1, "e"), photo.Photo(photos.pixels()))
    result = deliver(restore_packs.to_table([item]))
    assert result["status"] == ["failed"]
    assert "cannot be written" in result["reason"][0]


def test_what_may_not_be_read_fails_and_a_full_disk_ends_the_job(
    photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(code: int) -> Callable[..., None]:
        def refused(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        return refused

    put(tmp_path, {"a.jpg": photos.jpeg(20, 20)})
    store, treatment = LocalStore(str(tmp_path)), restore_stages.Treatment("model", "settings")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse(errno.EACCES))
        (table,) = restore_stages.Fetch(store, treatment)({"chunk": [list(store.list())]})
    ((item,),) = restore_packs.from_table(table)
    assert (item.photo, item.reason) == (None, "cannot be read: Permission denied")

    deliver = restore_stages.Deliver(store, treatment)
    item = restore_packs.Item(item.entry, photo.Photo(photos.pixels(), format="JPEG"))
    table = restore_packs.to_table([item])
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse(code))
            with pytest.raises(DeblurError, match=os.strerror(code)) as caught:
                deliver(table)
        assert caught.value.exit_code == 1
        assert str(caught.value).endswith("the same command goes on where it was")
    assert ledger.parts(store) == []  # no photo is to blame
    assert deliver(table)["status"] == ["restored"]


def test_a_disk_that_has_no_room_for_the_ledger_alone_ends_the_job(
    photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full: No space left on device")

    deliver = restore_stages.Deliver(
        LocalStore(str(tmp_path)), restore_stages.Treatment("model", "settings")
    )
    item = restore_packs.Item(Entry("a.png", 1, "e"), reason="broken")
    monkeypatch.setattr(ledger, "write", full)
    with pytest.raises(DeblurError, match=r"cannot write to .*: the disk is full"):
        deliver(restore_packs.to_table([item]))


@pytest.mark.parametrize("suffix", ["", "-sharp"])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("killed", ["before the put", "after the put", "and done again"])
def test_who_is_killed_in_place_restores_nothing_twice(
    photos, tmp_path: Path, killed: str, merged: bool, suffix: str
) -> None:
    """Fetch, invert, deliver, as a run does, and then another run on what is left."""
    store, treatment = LocalStore(str(tmp_path)), restore_stages.Treatment("m", "s", suffix=suffix)
    put(tmp_path, {"a.png": photos.file(photos.pixels(), "PNG")})
    deliver = restore_stages.Deliver(store, treatment, in_place=True)

    class Killed(Exception):
        pass

    class Dying(LocalStore):
        def put(self, key: str, data: bytes | memoryview) -> None:
            if key.endswith(".png") and killed == "before the put":
                raise Killed
            super().put(key, data)
            if key.endswith(".png"):
                raise Killed

    def steps(deliver: restore_stages.Deliver, entries: list[Entry]) -> list[str]:
        fetch = restore_stages.Fetch(store, treatment, restore_plan.restored_in_place(store))
        found = []
        for table in fetch({"chunk": [entries]}):
            (pack,) = restore_packs.from_table(table)
            pack = [
                replace(item, photo=item.photo.with_pixels(255 - item.photo.pixels), looks=None)
                if item.photo
                else item
                for item in pack
            ]
            found += deliver(restore_packs.to_table(pack))["status"]
        return found

    def todo() -> list[Entry]:
        plan = restore_plan.plan(
            store, store, treatment, limit=None, retry_failed=False, probe=False
        )
        return list(plan.todo)

    listed = todo()
    with pytest.raises(Killed):
        steps(restore_stages.Deliver(Dying(str(tmp_path)), treatment, in_place=True), listed)
    if killed == "and done again":  # by Ray, from the listing of the same run
        steps(deliver, listed)
    if merged and len(ledger.parts(store)) > 1:
        ledger.compact(store, more_than=1)
    for _ in range(2):
        steps(deliver, todo())
    expected = 255 - photos.pixels()
    made = photo.decode((tmp_path / f"a{suffix}.png").read_bytes()).pixels
    np.testing.assert_array_equal(made, expected)
    assert todo() == []
    assert {file.name for file in tmp_path.glob("*.png")} == {"a.png", f"a{suffix}.png"}


@pytest.mark.usefixtures("without_ray")
def test_parts_are_merged_while_a_run_goes_on(
    blurred: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "_MERGED_PHOTOS", 1)
    asked = []
    monkeypatch.setattr(ledger, "compact", lambda store, *, merged=True: asked.append(merged))
    restore.run(options_for(blurred, tmp_path / "out", tiny))
    assert asked == [False] * 6 + [True]


def test_names_of_one_format_are_one_setting(tiny: Path) -> None:
    card = models.read_card(open_store(tiny))
    found = {
        ledger.settings_id(restore._settings(restore.Options("in", "out", format=name), card))
        for name in ("jpg", "jpeg", "JPEG")
    }
    assert len(found) == 1


# === Options ===


def put(folder: Path, files: dict[str, bytes]) -> None:
    for key, data in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)


def statuses(folder: Path) -> dict[str, str]:
    return {str(row["key"]): str(row["status"]) for row in ledger_rows(folder)}


@pytest.mark.usefixtures("without_ray")
def test_format_quality_and_suffix(photos, tiny: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    put(
        source,
        {
            "a.bmp": photos.file(photos.pixels(20, 30, seed=1), "BMP"),
            "a.png": photos.file(photos.pixels(20, 30, seed=2), "PNG"),
            "b.JPG": photos.jpeg(20, 30, seed=3),
            "c.gif": photos.file(photos.pixels(20, 30, seed=4), "PNG"),
        },
    )
    options = options_for(source, target, tiny, format="jpeg", quality=60, suffix="-x")
    summary = restore.run(options)
    assert set(outputs(target)) == {"a-x.jpg", "b-x.JPG", "c-x.jpg"}
    assert all(photo.decode(data).format == "JPEG" for data in outputs(target).values())
    (lost,) = (row for row in ledger_rows(target) if row["status"] == "failed")
    assert (lost["key"], lost["reason"]) == ("a.png", "its output would be that of a.bmp")
    assert (summary["restored"], summary["failed"]) == (3, 1)


@pytest.mark.usefixtures("without_ray")
def test_sharp_photos_are_skipped_or_copied(photos, tiny: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sharp = photos.file(rng.integers(0, 256, (60, 60, 3), np.uint8), "PNG")
    put(tmp_path / "in", {"sharp.png": sharp, "soft.png": photos.file(photos.pixels(), "PNG")})
    skip = options_for(tmp_path / "in", tmp_path / "out", tiny, skip_sharp=0.8)
    assert restore.run(skip)["this_run"]["skipped"] == 1
    assert set(outputs(tmp_path / "out")) == {"soft.png"}
    row = ledger_rows(tmp_path / "out")[0]
    assert (row["key"], row["status"]) == ("sharp.png", "skipped")
    assert float(str(row["sharpness_before"])) > 0.8
    assert "is above 0.8" in str(row["reason"])
    assert restore.run(skip)["this_run"]["restored"] == 0

    copy = options_for(
        tmp_path / "in", tmp_path / "out2", tiny, skip_sharp=0.8, copy_skipped=True, suffix="-x"
    )
    restore.run(copy)
    assert outputs(tmp_path / "out2")["sharp-x.png"] == sharp


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("suffix", ["", "-x"])
@pytest.mark.parametrize("place", ["in", "in/out"])
def test_a_copied_photo_is_not_taken_for_a_restored_one(
    photos, tiny: Path, tmp_path: Path, place: str, suffix: str
) -> None:
    put(tmp_path / "in", {"a.png": photos.file(photos.pixels(), "PNG")})
    asked = options_for(
        tmp_path / "in", tmp_path / place, tiny, skip_sharp=0, copy_skipped=True, suffix=suffix,
        allow_overlap=True,
    )  # fmt: skip
    assert restore.run(asked)["this_run"]["skipped"] == 1
    again = replace(asked, skip_sharp=None, copy_skipped=False)
    assert restore.run(again)["this_run"]["restored"] == 1


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("suffix", ["", "-x"])
def test_in_place_a_sharp_photo_is_copied_once_and_not_over_itself(
    photos, tiny: Path, tmp_path: Path, suffix: str
) -> None:
    put(tmp_path, {"a.png": photos.file(photos.pixels(), "PNG")})
    original = tmp_path / "a.png"
    before = original.stat().st_mtime_ns
    asked = options_for(
        tmp_path, tmp_path, tiny, skip_sharp=0, copy_skipped=True, suffix=suffix,
        allow_overlap=True,
    )  # fmt: skip
    assert restore.run(asked)["this_run"]["skipped"] == 1
    assert restore.run(asked)["this_run"]["skipped"] == 0
    assert original.stat().st_mtime_ns == before
    assert set(outputs(tmp_path)) == {"a.png", f"a{suffix}.png"}


@pytest.mark.usefixtures("without_ray")
def test_a_photo_of_which_nothing_is_heard_is_told_of(
    photos, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "in", {name: photos.jpeg(seed=ord(name[0])) for name in ("a.jpg", "b.jpg")})
    stages = restore._restore

    def losing(*arguments: Any) -> Any:
        yield from list(stages(*arguments))[1:]

    monkeypatch.setattr(restore, "_restore", losing)
    with pytest.raises(DeblurError, match="of 1 photos nobody said what became of them"):
        restore.run(options_for(tmp_path / "in", tmp_path / "out", tiny))


@pytest.mark.usefixtures("without_ray")
def test_the_guard_and_the_limit_of_megapixels(
    photos, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Restorer, "restore", lambda self, given: (255 - pixels for pixels in given))
    files = {
        "a.png": photos.file(photos.pixels(300, 300), "PNG"),
        "b.png": photos.file(photos.pixels(40, 40), "PNG"),
    }
    put(tmp_path / "in", files)
    options = options_for(
        tmp_path / "in", tmp_path / "out", tiny, no_guard=False, max_megapixels=0.05
    )
    assert restore.run(options)["failed"] == 2
    reasons = [str(row["reason"]) for row in ledger_rows(tmp_path / "out")]
    assert "over the limit of 0.05 megapixels" in reasons[0]
    assert "the output guard found" in reasons[1]
    assert outputs(tmp_path / "out") == {}


@pytest.mark.usefixtures("without_ray")
def test_photos_are_restored_in_place_once(photos, tiny: Path, tmp_path: Path) -> None:
    put(tmp_path, {"a.png": photos.file(photos.pixels(40, 40), "PNG")})
    options = options_for(tmp_path, tmp_path, tiny, allow_overlap=True)
    before = outputs(tmp_path)
    assert restore.run(options)["this_run"]["restored"] == 1
    after = outputs(tmp_path)
    assert after != before
    this_run = restore.run(options)["this_run"]
    assert [this_run[name] for name in ("restored", "skipped", "failed", "megapixels")] == [
        0,
        1,
        0,
        0,
    ]
    assert outputs(tmp_path) == after
    assert restore.run(options)["this_run"]["skipped"] == 0
    # Nor with other settings, when the ledger's parts were merged meanwhile.
    assert ledger.compact(open_store(str(tmp_path)), more_than=1) > 1
    assert restore.run(replace(options, skip_sharp=1.0))["this_run"]["skipped"] == 1
    assert outputs(tmp_path) == after


def test_what_is_too_large_for_any_photo_is_not_read() -> None:
    class Full(LocalStore):
        def read(self, key: str, etag: str | None = None) -> bytes:
            if key == "small.tif":
                raise MemoryError
            raise AssertionError("was read")

    fetch = restore_stages.Fetch(Full("/"), restore_stages.Treatment("model", "settings"))
    entries = [Entry("slide.tif", 10 << 30, "1"), Entry("small.tif", 2 << 30, "1")]
    tables = fetch({"chunk": [entries]})
    items = [item for table in tables for pack in restore_packs.from_table(table) for item in pack]
    assert [item.reason for item in items] == [
        "10.7 GB are more than a photo of 500 megapixels takes",
        "cannot be read: no memory for its 2.1 GB",
    ]


@pytest.mark.usefixtures("without_ray")
def test_a_destination_in_the_source(photos, tiny: Path, tmp_path: Path) -> None:
    put(tmp_path, {"a.png": photos.file(photos.pixels(40, 40), "PNG")})
    options = options_for(tmp_path, tmp_path / "out", tiny, allow_overlap=True)
    assert restore.run(options)["photos"] == 1
    assert restore.run(options)["photos"] == 1


@pytest.mark.usefixtures("without_ray")
def test_names_that_lead_elsewhere(photos, bucket, tiny: Path, tmp_path: Path) -> None:
    import boto3

    client = boto3.session.Session().client("s3")

    def contents(name: str) -> set[str]:
        return {item["Key"] for item in client.list_objects_v2(Bucket=name).get("Contents", ())}

    good = {"a.jpg", "A.jpg", "süß/日本.jpg", "z" * 251 + ".jpg"}
    bad = {
        "../../b.jpg": "its name has a part '..', which leads elsewhere",
        "./b.jpg": "its name has a part '.', which leads elsewhere",
        "/etc/c.jpg": "its name is an absolute path",
        "x//c.jpg": "its name has an empty part",
        "bell\a.jpg": "its name has a control character",
        "_Deblur/d.jpg": "its name is in _deblur/, deblur's own folder",
        "y" * 252 + ".jpg": "a part of its name has 256 bytes, more than the 255 of a disk",
    }
    source, target = bucket(), bucket()
    for number, key in enumerate([*good, *bad]):
        body = photos.jpeg(20, 20, seed=number)
        client.put_object(Bucket=source.removeprefix("s3://"), Key=f"in/{key}", Body=body)
    before = contents(source.removeprefix("s3://"))
    for folder in (str(tmp_path / "deep" / "out"), f"{target}/deep/out"):
        summary = restore.run(options_for(f"{source}/in", folder, tiny))
        assert (summary["restored"], summary["failed"]) == (len(good), len(bad))
        rows = [row for table in ledger.current(open_store(folder)) for row in table.to_pylist()]
        assert {row["key"]: row["reason"] for row in rows if row["status"] == "failed"} == bad
    written = contents(target.removeprefix("s3://"))
    for found in (set(outputs(tmp_path)), {key for key in written if "/_deblur/" not in key}):
        assert found == {f"deep/out/{key}" for key in good}
    assert contents(source.removeprefix("s3://")) == before


@pytest.mark.usefixtures("without_ray")
def test_names_that_are_not_utf8_or_lie(photos, tiny: Path, tmp_path: Path) -> None:
    good, png = photos.jpeg(20, 20), photos.file(photos.pixels(20, 20), "PNG")
    files = {"a.jpg": good, os.fsdecode(b"trip/caf\xe9.jpg"): good, "c.gif": png}
    put(tmp_path / "in", files)
    options = options_for(tmp_path / "in", tmp_path / "out", tiny)
    summary = restore.run(options)
    assert (summary["photos"], summary["restored"], summary["failed"]) == (3, 1, 2)
    assert {row["key"]: row["reason"] for row in ledger_rows(tmp_path / "out")} == {
        "a.jpg": None,
        "c.gif": "is PNG, other than its name says; --format writes it",
        r"trip/caf\udce9.jpg": "its name is not UTF-8",
    }
    assert set(outputs(tmp_path / "out")) == {"a.jpg"}
    again = restore.run(options)
    assert (again["failed"], again["this_run"]["failed"]) == (2, 0)


def test_the_report_is_written(restored, blurred: Path) -> None:
    folder, summary = restored
    assert summary["report"] == f"{folder}/_deblur/report.html"
    page = (folder / "_deblur" / "report.html").read_text()
    assert "4 of 6 photos restored" in page
    assert "broken.jpg" in page
    spent = summary["this_run"]["seconds_in"]
    assert list(spent) == list(restore_packs.STEPS)
    assert spent["model"] > 0
    assert f"model {spent['model'] / sum(spent.values()):.0%}".replace("%", " %") in page
    assert page.count('class="compare"') in range(4, 9)


def test_dry_run_estimates_what_there_is_to_do(restored, blurred: Path, tiny: Path) -> None:
    folder, _ = restored
    options = options_for(blurred, folder, tiny, dry_run=True, suffix="-new")
    said = restore.run(options)
    assert said["to_restore"] == 6
    assert said["megapixels_estimate"] > 0  # at what rate: tests/test_restore_estimate.py


def test_packs_pass_uncopied(photos) -> None:
    large = np.arange(3000 * 3000 * 3, dtype=np.uint32).astype(np.uint8).reshape(3000, 3000, 3)
    items = [
        restore_packs.Item(Entry("a", 1, ""), photo.Photo(large, alpha=large[..., 0].copy())),
        restore_packs.Item(Entry("b", 1, ""), reason="broken"),
        restore_packs.Item(
            Entry("c", 1, ""), photo.Photo(photos.pixels()), looks=np.ones((1, 2, 3), np.float32)
        ),
    ]
    (pack,) = restore_packs.from_table(restore_packs.to_table(items))
    assert pack[0].photo is not None
    assert np.shares_memory(pack[0].photo.pixels, large)
    for item, other in zip(pack, items, strict=True):
        assert (item.entry, item.reason) == (other.entry, other.reason)
        if item.photo is not None and other.photo is not None:
            np.testing.assert_array_equal(item.photo.pixels, other.photo.pixels)
    np.testing.assert_array_equal(pack[0].photo.alpha, large[..., 0])
    np.testing.assert_array_equal(pack[2].looks, items[2].looks)
