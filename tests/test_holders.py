from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deblur import history, ledger
from deblur.errors import UsageError
from deblur.holders import Holders
from deblur.storage import Store, open_store

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def write(store: Store, key: str, output: str | None, after_s: float) -> None:
    ended = START + timedelta(seconds=after_s)
    row = ledger.Row(
        key, "e", 1, "model", "settings", "failed", output_key=output, finished_at=ended
    )
    ledger.write(store, [row])


def test_nobody_holds_a_place_where_there_is_no_ledger(store: Store) -> None:
    holders = Holders(store)
    assert holders.others([("a.png", "a.jpg")]) == {}
    write(store, "a.tif", None, 0)
    assert Holders(store).others([("a.png", "a.jpg")]) == {}


def test_who_was_put_at_a_place_last_holds_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BATCH_ROWS", 2)
    write(store, "a.tif", "a.jpg", 2)
    write(store, "a.png", "a.jpg", 1)  # by a run beside that one, whose part came later
    write(store, "a.tif", None, 3)
    wanted = [(key, "a.jpg") for key in ("a.bmp", "a.png", "a.tif")] + [("b.png", "b.jpg")]
    holders = Holders(store)
    assert list(holders.held(iter(wanted))) == [
        ("a.bmp", "a.jpg", False),
        ("a.png", "a.jpg", False),
        ("a.tif", "a.jpg", True),
    ]
    assert holders.others(iter(wanted)) == {"a.bmp": "a.tif", "a.png": "a.tif"}


def test_case_and_accents_where_the_disk_does_not_see_them(store: Store) -> None:
    write(store, "a.jpg", "a.jpg", 0)
    write(store, "b/\u00e9.png", "b/\u00e9.png", 0)
    wanted = [("A.JPG", "A.JPG"), ("b/e\u0301.png", "b/e\u0301.png")]
    assert Holders(store).others(wanted) == {}
    assert Holders(store, folded=True).others(wanted) == {
        "A.JPG": "a.jpg",
        "b/e\u0301.png": "b/\u00e9.png",
    }


def test_what_lies_at_a_place_is_found_whoever_put_it_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BATCH_ROWS", 2)
    for key in ("a.jpg", "b/c.jpg", "d.jpg", "e.jpg"):
        store.put(key, b"x")
    wanted = ["A.JPG", "b/c.jpg", "e.jpg", "f.jpg", "g.jpg"]
    assert list(Holders(store).strangers(wanted)) == ["b/c.jpg", "e.jpg"]
    assert list(Holders(store, folded=True).strangers(wanted)) == ["a.jpg", "b/c.jpg", "e.jpg"]
    assert list(Holders(store).strangers([])) == []
    assert list(Holders(store / "none").strangers(wanted)) == []
    (Path(store.uri) / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        list(Holders(store / "file").strangers(wanted))
