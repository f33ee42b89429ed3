from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deblur import ledger
from deblur.errors import UsageError
from deblur.storage import Store
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


def test_one_photo_does_not_take_another_s_place(tmp_path: Path) -> None:
    photos, out = folder(tmp_path / "in", "a.png", "a.tif"), folder(tmp_path / "out")
    row = ledger.Row("a.png", "1", 1, "model", "settings", "restored", output_key="a.jpg")
    ledger.write(out, [row])
    plan = alone(photos, "a.tif", out, format="JPEG")
    assert refused(plan) == {"a.tif": "its output would be that of a.png"}
    assert refused(alone(photos, "a.png", out, format="JPEG")) == {}
    ledger.write(out, [replace(row, status="failed", output_key=None)])
    assert refused(alone(photos, "a.tif", out, format="JPEG")) == {}


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


def test_photos_of_another_source_are_not_replaced(tmp_path: Path) -> None:
    """Cameras call the first photo of each card the same."""
    cards = [folder(tmp_path / name, "IMG_1.jpg", f"{name}.jpg") for name in ("one", "two")]
    out = folder(tmp_path / "out")
    entries = [list(card.list()) for card in cards]
    restore_names.refuse_others(cards[0], out, entries[0])
    restore_names.remember(cards[0], out)
    restored(cards[0], "IMG_1.jpg", "IMG_1.jpg", ledger_in=out)
    restore_names.refuse_others(cards[0], out, entries[0])  # a photo that has changed
    with pytest.raises(UsageError, match=r"has 1 photos of .*/one whose names .* such as IMG_1"):
        restore_names.refuse_others(cards[1], out, entries[1])
    restore_names.refuse_others(cards[1], out, [entries[1][1]])  # of another name
    restore_names.remember(cards[1], out)
    restore_names.refuse_others(cards[0], cards[0], entries[0])  # in place there is one SOURCE
    out.put(restore_names.SOURCES, b"[")
    with pytest.raises(UsageError, match=r"sources.json cannot be read"):
        restore_names.refuse_others(cards[1], out, entries[1])
