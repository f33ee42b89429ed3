from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deblur import ledger
from deblur.errors import UsageError
from deblur.storage import ArrowStore, Entry, Store, open_store
from jobs import restore_names, restore_plan, restore_report
from jobs.restore_stages import Treatment


def planned(
    source: Store,
    destination: Store,
    *,
    alone: Entry | None = None,
    limit: int | None = None,
    **treatment: Any,
) -> restore_plan.Plan:
    return restore_plan.plan(
        source,
        destination,
        Treatment("model", "settings", **treatment),
        alone=alone,
        limit=limit,
        retry_failed=False,
        probe=True,
    )


def refused(plan: restore_plan.Plan) -> dict[str, str]:
    return {entry.key: why for entry, why in plan.refused}


def folder(path: Path, *names: str) -> Store:
    path.mkdir(exist_ok=True)
    for name in names:
        (path / name).write_bytes(name.encode())
    return open_store(str(path))


def restored(store: Store, key: str, output: str, *, ledger_in: Store | None = None) -> None:
    (entry,) = (each for each in store.list() if each.key == key)
    row = ledger.Row(key, entry.etag, entry.size_bytes, "model", "settings", "restored")
    ledger.write(ledger_in or store, [replace(row, output_key=output, output_sha256="0")])


@pytest.mark.parametrize("other", ["x/../photos", "link", "link/inside", "link/.."])
def test_places_are_one_whatever_they_are_called(tmp_path: Path, other: str) -> None:
    photos = folder(tmp_path / "photos", "a.jpg")
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    named = open_store(os.path.join(tmp_path, other))
    for one, two in ((photos, named), (named, photos)):
        with pytest.raises(UsageError, match="lie in one another"):
            restore_plan.refuse_overlap(one, two)


def test_places_apart(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", "a.jpg")
    restore_plan.refuse_overlap(photos, open_store(str(tmp_path / "photos-sharp")))
    restore_plan.refuse_overlap(open_store("s3://photos/a"), open_store("s3://photos/ab"))


def test_a_destination_with_a_space_in_its_name_is_no_source(tmp_path: Path) -> None:
    photos = ArrowStore(tmp_path.as_uri())
    photos.put("a.jpg", b"a")
    inside = photos / "my out"
    restore_names.remember(photos, inside)
    inside.put("a.jpg", b"a")
    assert [entry.key for entry in planned(photos, inside).todo] == ["a.jpg"]


def test_what_failed_and_is_over_the_limit_has_failed_all_the_same(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.cr2")
    out = open_store(tmp_path / "out")
    rows = [
        ledger.Row(e.key, e.etag, e.size_bytes, "m", "s", "restored" if e.key == "d.jpg" else "failed")
        for e in photos.list()
    ]  # fmt: skip
    ledger.write(out, rows)
    (tmp_path / "photos/f.jpg").write_bytes(b"new")

    def plan(limit: int | None) -> restore_plan.Plan:
        return restore_plan.plan(
            photos, out, Treatment("m", "s"), limit=limit, retry_failed=True, probe=True
        )

    one = plan(1)
    assert [entry.key for entry in one.todo] == ["a.jpg"]
    assert list(refused(one)) == ["e.cr2"]
    assert one.before == {"restored": 1, "failed": 2}
    assert plan(None).before == plan(4).before == {"restored": 1}
    tally = restore_report.Tally(Counter(restored=1, failed=1))
    found = restore_report.account(one, tally, 1.0)
    assert [found[name] for name in ("restored", "failed", "not_done")] == [2, 3, 1]


@pytest.mark.parametrize(
    ("names", "treatment", "lost"),
    [
        (("IMG.jpg", "IMG-edited.jpg"), {"suffix": "-edited"}, "IMG.jpg"),
        (("a.jpg", "a.png"), {"format": "PNG"}, "a.jpg"),
    ],
)
def test_in_place_no_output_replaces_another_photo(
    tmp_path: Path, names: tuple[str, str], treatment: dict[str, str], lost: str
) -> None:
    photos = folder(tmp_path / "photos", *names)
    plan = planned(photos, photos, **treatment)
    (other,) = set(names) - {lost}
    assert refused(plan) == {lost: f"its output would replace {other}, a photo of SOURCE"}
    assert [entry.key for entry in plan.todo] == [other]


def test_in_place_an_output_is_no_photo(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", "a.jpg", "a-sharp.jpg", "b.jpg")
    restored(photos, "a.jpg", "a-sharp.jpg")
    plan = planned(photos, photos, suffix="-sharp")
    assert [entry.key for entry in plan.inventory] == ["a.jpg", "b.jpg"]
    assert [entry.key for entry in plan.todo] == ["b.jpg"]
    assert (plan.others, refused(plan)) == (1, {})


def test_a_collision_in_a_bucket_says_nothing_about_names_that_differ_by_case(bucket: Any) -> None:
    source, destination = open_store(f"{bucket()}/in"), open_store(f"{bucket()}/out")
    for name in ("A.jpg", "a.jpg", "b.jpg", "b.png"):
        source.put(name, b"x")
    plan = planned(source, destination, format="JPEG")
    assert refused(plan) == {"b.png": "its output would be that of b.jpg"}


def test_what_was_restored_in_place_is_known_after_a_merge(tmp_path: Path) -> None:
    photos = folder(tmp_path / "photos", "a.jpg")
    row = ledger.Row("a.jpg", "1", 1, "model", "settings", "restored", output_sha256="abc")
    ledger.write(photos, [row])
    # As the next run writes it, which sees the restored photo.
    skipped = replace(row, source_etag="2", status="skipped")
    ledger.write(photos, [skipped])
    assert ledger.compact(photos, more_than=1) == 2
    assert restore_plan.restored_in_place(photos) == {"abc"}
