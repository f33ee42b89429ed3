from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deblur import ledger
from deblur.errors import UsageError
from deblur.storage import Entry, Store, open_store
from jobs import restore_names, restore_plan
from jobs.restore_stages import Treatment
from tests.test_restore_plan import folder, planned, refused, restored


def alone(source: Store, name: str, destination: Store, **treatment: Any) -> restore_plan.Plan:
    return planned(source, destination, alone=source.entry(name), **treatment)


@pytest.mark.parametrize("treatment", [{"format": "JPEG"}, {"suffix": "-x"}])
def test_one_photo_replaces_nothing_that_lies_beside_it(
    tmp_path: Path, treatment: dict[str, str]
) -> None:
    photos = folder(tmp_path, "a.tif", "a.jpg", "a-x.tif")
    (why,) = refused(alone(photos, "a.tif", photos, **treatment)).values()
    assert why.startswith("its output would replace a")
    assert why.endswith("which lies beside it")
    # What it has put there itself it may replace, and nothing is in the way of what has another name.
    (tmp_path / "b.tif").write_bytes(b"b")
    plan = alone(photos, "b.tif", photos, **treatment)
    assert refused(plan) == {}
    assert len(plan.todo) == 1
    restored(photos, "b.tif", Treatment("model", "settings", **treatment).output_key("b.tif"))
    (tmp_path / "b.tif").write_bytes(b"another b")
    assert len(alone(photos, "b.tif", photos, **treatment).todo) == 1


def test_one_photo_that_deblur_has_made_is_none_to_restore(tmp_path: Path) -> None:
    photos = folder(tmp_path, "a.png", "a-x.png")
    restored(photos, "a.png", "a-x.png")
    with pytest.raises(UsageError, match=r"has no photos: a-x.png is what deblur has put there"):
        alone(photos, "a-x.png", photos, suffix="-x")


def test_one_photo_does_not_take_another_s_place(tmp_path: Path) -> None:
    photos, out = folder(tmp_path / "in", "a.png", "a.tif"), folder(tmp_path / "out")
    row = ledger.Row("a.png", "1", 1, "model", "settings", "restored", output_key="a.jpg")
    ledger.write(out, [row])
    plan = alone(photos, "a.tif", out, format="JPEG")
    assert refused(plan) == {"a.tif": "its output would be that of a.png"}
    assert refused(alone(photos, "a.png", out, format="JPEG")) == {}
    # Whatever becomes of that photo later: what was put is there yet.
    ledger.write(out, [replace(row, status="failed", output_key=None)])
    assert refused(alone(photos, "a.tif", out, format="JPEG")) == refused(plan)


def test_what_is_refused_does_not_depend_on_how_far_the_last_run_came(tmp_path: Path) -> None:
    photos = folder(tmp_path, "a.bmp", "a.jpg")
    first = planned(photos, photos, format="JPEG")
    expected = {"a.bmp": "its output would replace a.jpg, a photo of SOURCE"}
    assert refused(first) == expected
    # Killed when those were written that it has refused.
    restore_plan.write_refused(photos, Treatment("model", "settings", format="JPEG"), first)
    again = planned(photos, photos, format="JPEG")
    assert ([entry.key for entry in again.todo], refused(again)) == (["a.jpg"], {})


def test_a_copy_replaces_no_photo_either(tmp_path: Path) -> None:
    photos = folder(tmp_path, "a.png", "a-x.png")
    treatment = {"format": "JPEG", "suffix": "-x"}
    assert refused(planned(photos, photos, **treatment)) == {}
    found = refused(planned(photos, photos, **treatment, copy_skipped=True))
    assert found == {"a.png": "its output would replace a-x.png, a photo of SOURCE"}


def test_a_raw_file_is_in_the_ledger_with_its_reason(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "in", "a.DNG", "b.cr3", "c.jpg"), folder(tmp_path / "out")
    plan = planned(source, out)
    why = "a camera's raw file is not supported"
    assert refused(plan) == {"a.DNG": why, "b.cr3": why}
    assert [entry.key for entry in plan.todo] == ["c.jpg"]


def refuse_others(source: Store, out: Store, todo: Sequence[Entry], **treatment: Any) -> None:
    holders = restore_names.holders(out, probe=True)
    made = Treatment("model", "settings", **treatment)
    restore_names.refuse_others(source, out, made, todo, holders)


def test_photos_of_another_source_are_not_replaced(tmp_path: Path) -> None:
    """Cameras call the first photo of each card the same."""
    cards = [folder(tmp_path / name, "IMG_1.jpg", f"{name}.jpg") for name in ("one", "two")]
    out = folder(tmp_path / "out")
    entries = [list(card.list()) for card in cards]
    refuse_others(cards[0], out, entries[0])
    restore_names.remember(cards[0], out)
    restored(cards[0], "IMG_1.jpg", "IMG_1.jpg", ledger_in=out)
    refuse_others(cards[0], out, entries[0])  # a photo that has changed
    with pytest.raises(UsageError, match=r"has 1 photos of .*/one whose names .* such as IMG_1"):
        refuse_others(cards[1], out, entries[1])
    refuse_others(cards[1], out, [entries[1][1]])  # of another name
    restore_names.remember(cards[1], out)
    refuse_others(cards[0], cards[0], entries[0])  # in place there is one SOURCE
    out.put(restore_names.SOURCES, b"[")
    with pytest.raises(UsageError, match=r"sources.json cannot be read"):
        refuse_others(cards[1], out, entries[1])


def test_the_photos_of_another_source_are_known_by_their_outputs(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", "IMG_1.png", "IMG_2.png")
    two, three = folder(tmp_path / "two", "IMG_1.jpg"), folder(tmp_path / "three", "IMG_2.png")
    out = folder(tmp_path / "out")
    for card in (one, tmp_path / "elsewhere"):
        restore_names.remember(open_store(getattr(card, "uri", card)), out)
    restored(one, "IMG_1.png", "IMG_1.jpg", ledger_in=out)
    why = r"has 1 photos of .*/one or .*/elsewhere whose .* such as IMG_1.jpg"
    with pytest.raises(UsageError, match=why):
        planned(two, out)
    assert len(planned(one, out, format="JPEG").todo) == 1
    # Copied, and not restored since.
    (entry,) = three.list()
    row = ledger.Row("IMG_2.png", "1", 1, "model", "other", "skipped", output_key="IMG_2.png")
    ledger.write(out, [row])
    ledger.write(out, [replace(row, status="failed", output_key=None)])
    assert ledger.compact(out, more_than=1) == 3
    for treatment in ({}, {"format": "JPEG", "copy_skipped": True}):
        with pytest.raises(UsageError, match="such as IMG_2"):
            refuse_others(three, out, [entry], **treatment)
    refuse_others(three, out, [entry], format="JPEG")


def test_what_a_limit_leaves_is_judged_with_the_rest(tmp_path: Path) -> None:
    """The run after it finds that DESTINATION knows SOURCE."""
    one, two = folder(tmp_path / "one", "b.jpg"), folder(tmp_path / "two", "a.jpg", "b.jpg")
    out = folder(tmp_path / "out")
    restore_names.remember(one, out)
    restored(one, "b.jpg", "b.jpg", ledger_in=out)
    with pytest.raises(UsageError, match="such as b"):
        planned(two, out, limit=1)


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_files_of_which_deblur_knows_nothing_are_not_replaced(
    tmp_path: Path, bucket: Any, place: str
) -> None:
    photos = folder(tmp_path / "in", "a.png", "b.png", "c.dng", "d.png")
    out = open_store(str(tmp_path / "out") if place == "folder" else f"{bucket()}/out")
    assert len(planned(photos, out).todo) == 3  # nothing is there, nor is the place itself
    for name in ("trip/a.png", "b.jpg", "c.dng", "d.png"):
        out.put(name, b"the user's")
    assert len(planned(photos, out, suffix="-x").todo) == 3
    why = r"/out has 1 files that deblur knows nothing of, such as d.png: they would be replaced"
    with pytest.raises(UsageError, match=why):
        planned(photos, out, limit=1)
    with pytest.raises(UsageError, match="has 2 files"):  # or copied
        planned(photos, out, format="JPEG", copy_skipped=True)
    # A run that was killed has put some of them there.
    restore_names.remember(photos, out)
    assert len(planned(photos, out).todo) == 3
    with pytest.raises(UsageError, match="has 1 files"):
        planned(folder(tmp_path / "two", "b.jpg"), out)


def test_files_beside_the_ledger_of_an_earlier_version_may_be_its_own(tmp_path: Path) -> None:
    photos, out = folder(tmp_path / "in", "a.png", "b.png"), folder(tmp_path / "out", "b.png")
    restored(photos, "a.png", "a.png", ledger_in=out)
    assert [entry.key for entry in planned(photos, out).todo] == ["b.png"]


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_new_photo_does_not_replace_the_output_of_one_that_has_gone(
    tmp_path: Path, bucket: Any, place: str
) -> None:
    photos = folder(tmp_path / "in", "a.png", "b.jpg")
    out = folder(tmp_path / "out") if place == "folder" else open_store(f"{bucket()}/out")
    restored(photos, "a.png", "a.jpg", ledger_in=out)
    photos.delete("a.png")
    photos.put("a.jpg", b"new")
    plan = planned(photos, out)
    assert refused(plan) == {"a.jpg": "its output would be that of a.png"}
    assert [entry.key for entry in plan.todo] == ["b.jpg"]


def test_what_was_put_last_holds_a_place_whatever_was_done_to_other_photos_since(
    tmp_path: Path,
) -> None:
    """A run of other settings that was cut off, so that two photos are restored, one of them there."""
    photos, out = folder(tmp_path / "in", "a.png", "a.tif"), folder(tmp_path / "out")
    restored(photos, "a.tif", "a.jpg", ledger_in=out)
    row = ledger.Row("a.png", "1", 1, "model", "keep", "restored", output_key="a.png")
    ledger.write(out, [row])
    assert refused(planned(photos, out, format="JPEG")) == {
        "a.png": "its output would be that of a.tif"
    }


def test_case_does_not_make_a_place_of_its_own_where_the_disk_does_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = folder(tmp_path / "in", "a.jpg"), folder(tmp_path / "out")
    restored(photos, "a.jpg", "a.jpg", ledger_in=out)
    photos.delete("a.jpg")
    photos.put("A.JPG", b"new")
    assert refused(planned(photos, out)) == {}
    monkeypatch.setattr(restore_names, "_folds", lambda _: True)
    assert refused(planned(photos, out)) == {"A.JPG": "its output would be that of a.jpg"}
