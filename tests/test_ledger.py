from __future__ import annotations

import dataclasses
import io
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deblur import ledger
from deblur.errors import UsageError
from deblur.ledger import Row
from deblur.storage import Entry, Store, open_store

NAMES = [
    "key", "source_etag", "source_bytes", "output_key", "output_sha256", "width", "height",
    "model_id", "settings_id", "status", "reason", "sharpness_before", "sharpness_after", "seconds",
    "finished_at",
]  # fmt: skip


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(
        tmp_path if request.param == "folder" else request.getfixturevalue("bucket")()
    )


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each part a second younger than the one before, however quick the test is."""
    seconds = itertools.count()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(2026, 1, 1, tzinfo=tz) + timedelta(seconds=next(seconds))

    monkeypatch.setattr(ledger, "datetime", Clock)


def row(key: str, etag: str = "e1", **values: Any) -> Row:
    return Row(
        key, etag, 10, **{"model_id": "m", "settings_id": "s", "status": "restored"} | values
    )


def done(store: Store, model: str = "m", settings: str = "s", **options: Any) -> dict[str, Any]:
    return ledger.done(store, model_id=model, settings_id=settings, **options)


def test_the_columns_are_the_contract_and_the_row() -> None:
    assert ledger.SCHEMA.names == NAMES
    assert {field.name for field in dataclasses.fields(Row)} == set(NAMES)


def test_a_part_keeps_all_that_a_row_says(store: Store) -> None:
    full = Row(
        "été/ü 1.jpg", "e1", 5_000_000_000, "m", "s", "restored", None, "été/ü 1.jpg", "ab" * 32,
        4000, 3000, 0.25, 0.5, 1.5, datetime(2026, 5, 4, 3, 2, 1, 7, tzinfo=UTC),
    )  # fmt: skip
    failed = row("b.jpg", status="failed", reason="the JPEG is damaged")
    key = ledger.write(store, [full, failed])
    assert key.startswith("_deblur/ledger/20260101T000000.")
    (table,) = ledger.read(store)
    assert table.schema.equals(ledger.SCHEMA)
    first, second = table.to_pylist()
    assert first == dataclasses.asdict(full)
    assert second["reason"] == "the JPEG is damaged"
    assert second["finished_at"] == datetime(2026, 1, 1, tzinfo=UTC)
    # What others read it with must see the same.
    read = pq.read_table(io.BytesIO(store.read(key)))
    assert read.column_names == NAMES


def test_a_place_without_a_ledger(store: Store) -> None:
    assert list(ledger.read(store)) == []
    assert done(store) == {}
    assert done(store / "not/there/yet") == {}


def test_what_is_done_is_not_done_again(store: Store) -> None:
    inventory = [Entry("a", 1, "e1"), Entry("b", 1, "e1"), Entry("c", 1, "e1"), Entry("d", 1, "e1")]
    ledger.write(
        store,
        [row("a"), row("b", "e0"), row("c", status="failed", reason="x"), row("gone")],
    )
    left = [entry.key for entry in ledger.remaining(inventory, done(store))]
    assert left == ["b", "d"], "b has changed since, d is new"
    left = [entry.key for entry in ledger.remaining(inventory, done(store, retry_failed=True))]
    assert left == ["b", "c", "d"]
    assert list(ledger.remaining(inventory, {})) == inventory


def test_another_model_or_setting_does_it_anew(store: Store) -> None:
    ledger.write(store, [row("a"), row("b", status="skipped")])
    assert done(store) == {"a": ("e1", "restored"), "b": ("e1", "skipped")}
    assert done(store, model="m2") == {}
    assert done(store, settings="s2") == {}
    # m2 has replaced the output of a, so m has to do it again.
    ledger.write(store, [row("a", model_id="m2")])
    assert done(store) == {"b": ("e1", "skipped")}
    assert done(store, model="m2") == {"a": ("e1", "restored")}


def test_the_later_row_counts(store: Store) -> None:
    ledger.write(store, [row("a", status="failed", reason="x"), row("b")])
    ledger.write(store, [row("a", "e2"), row("b", status="failed", reason="y")])
    assert done(store) == {"a": ("e2", "restored"), "b": ("e1", "failed")}
    assert done(store, retry_failed=True) == {"a": ("e2", "restored")}


def test_parts_never_replace_each_other(store: Store) -> None:
    written = {ledger.write(store, [row(name)]) for name in "abcab"}
    assert len(written) == 5
    assert sorted(written) == [entry.key for entry in store.list(ledger.FOLDER)]
    assert sum(table.num_rows for table in ledger.read(store, ["key"])) == 5


def test_what_is_no_part_is_passed_over_and_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    ledger.write(store, [row("a")])
    store.put(f"{ledger.FOLDER}/README", b"hello")
    assert done(store) == {"a": ("e1", "restored")}
    store.put(f"{ledger.FOLDER}/2026-broken.parquet", b"PAR1 no")
    with pytest.raises(UsageError, match=r"2026-broken\.parquet.* cannot be read"):
        done(store)


def test_a_row_without_what_it_must_say_is_not_written(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises((pa.ArrowException, TypeError, ValueError)):
        ledger.write(store, [row("a", status=None)])
    assert list(store.list()) == []


def test_the_settings_id_knows_names_and_values_and_no_order() -> None:
    one = ledger.settings_id({"tile": 256, "policy": "float32"})
    assert one == ledger.settings_id({"policy": "float32", "tile": 256})
    assert len(one) == 16
    others = [
        {"tile": "256", "policy": "float32"},
        {"tile": 256},
        {"policy": 256, "tile": "float32"},
    ]
    assert len({one, *map(ledger.settings_id, others)}) == 4
