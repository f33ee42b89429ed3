from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur import history, ledger
from deblur.entries import Entries
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


def planned(
    store: Store, *inventory: Entry, model: str = "m", settings: str = "s", **options: Any
) -> tuple[str, dict[str, int]]:
    """Return the keys that are to do, in one word, and what has been dealt with."""
    plan = ledger.plan(store, inventory, model_id=model, settings_id=settings, **options)
    assert plan.photos == len(inventory)
    return "".join(entry.key for entry in plan.todo), dict(plan.before)


def done(store: Store) -> dict[str, tuple[str, str]]:
    """Return key -> (ETag, status) of the rows that count."""
    return {
        row["key"]: (row["source_etag"], row["status"])
        for table in ledger.current(store, ["key", "source_etag", "status"])
        for row in table.to_pylist()
    }


def entries(keys: str, etag: str = "e1") -> list[Entry]:
    return [Entry(key, 1, etag) for key in keys]


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
    assert planned(store, *entries("ba")) == ("ab", {})
    assert planned(store / "not/there/yet", *entries("a")) == ("a", {})


def test_what_is_done_is_not_done_again(store: Store) -> None:
    ledger.write(
        store,
        [row("a"), row("b", "e0"), row("c", status="failed", reason="x"), row("g")],
    )
    # b has changed since, d is new, g is gone.
    assert planned(store, *entries("abcd")) == ("bd", {"restored": 1, "failed": 1})
    assert planned(store, *entries("abcd"), retry_failed=True) == ("bcd", {"restored": 1})


def test_another_model_or_setting_does_it_anew(store: Store) -> None:
    ledger.write(store, [row("a"), row("b", status="skipped")])
    assert planned(store, *entries("ab")) == ("", {"restored": 1, "skipped": 1})
    assert planned(store, *entries("ab"), model="m2") == ("ab", {})
    assert planned(store, *entries("ab"), settings="s2") == ("ab", {})
    # m2 has replaced the output of a, so m has to do it again.
    ledger.write(store, [row("a", model_id="m2")])
    assert planned(store, *entries("ab")) == ("a", {"skipped": 1})
    assert planned(store, *entries("ab"), model="m2") == ("b", {"restored": 1})


def test_the_later_row_counts(store: Store) -> None:
    ledger.write(store, [row("a", status="failed", reason="x"), row("b")])
    ledger.write(store, [row("a", "e2"), row("b", status="failed", reason="y")])
    inventory = [Entry("a", 1, "e2"), Entry("b", 1, "e1")]
    assert planned(store, *inventory) == ("", {"restored": 1, "failed": 1})
    assert planned(store, *inventory, retry_failed=True) == ("b", {"restored": 1})


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


# === The plan is that of a naive ledger, whatever has been merged ===


class Memory(Store):
    """A dict. It may be made to fail after so many deletions, as a killed process does."""

    uri = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.deletions: int | None = None
        self._lock = threading.Lock()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for key in sorted(self.objects):
            if key.startswith(f"{prefix}/"):
                yield Entry(key, len(self.objects[key]), "")

    def read(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise FileNotFoundError(2, "no such object", key) from None

    def peek(self, key: str, count: int) -> bytes:
        raise NotImplementedError

    def entry(self, key: str) -> Entry | None:
        return Entry(key, len(self.objects[key]), "") if key in self.objects else None

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.objects[key] = bytes(data)

    def delete(self, key: str) -> None:
        with self._lock:
            if self.deletions is not None:
                if not self.deletions:
                    raise OSError(5, "killed")
                self.deletions -= 1
            self.objects.pop(key, None)

    def arrow(self) -> Any:
        raise NotImplementedError

    def __truediv__(self, prefix: str) -> Store:
        raise NotImplementedError


KEYS = ["a", "a/b.jpg", "é\n", 'z,"', "<script>"]
MODELS, SETTINGS, ETAGS = ["m", "n"], ["s", "t"], ["e1", "e2"]
EPOCH = datetime(2025, 1, 1, tzinfo=UTC)

rows = st.builds(
    Row,
    key=st.sampled_from(KEYS),
    source_etag=st.sampled_from(ETAGS),
    source_bytes=st.just(1),
    model_id=st.sampled_from(MODELS),
    settings_id=st.sampled_from(SETTINGS),
    status=st.sampled_from(["restored", "skipped", "failed"]),
    reason=st.none() | st.text(max_size=3),
    # Also clocks that go back, and rows of the same moment.
    finished_at=st.none() | st.integers(0, 3).map(lambda s: EPOCH + timedelta(seconds=s)),
)
histories = st.lists(
    st.lists(rows, max_size=4)
    | st.just("merge")
    | st.integers(0, 3).map(lambda deletions: ("killed after so many deletions", deletions)),
    max_size=12,
)
inventories = st.lists(
    st.builds(Entry, st.sampled_from(KEYS), st.integers(0, 9), st.sampled_from(ETAGS)),
    unique_by=lambda entry: entry.key,
)


class Naive:
    """The latest row of each key, in a dict."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, rows: list[Row], now: datetime) -> None:
        for new in rows:
            new = dataclasses.replace(new, finished_at=new.finished_at or now)
            old = self.rows.get(new.key)
            if old is None or old.finished_at <= new.finished_at:
                self.rows[new.key] = new

    def plan(
        self, inventory: list[Entry], model: str, settings: str, retry: bool
    ) -> tuple[int, Counter[str], list[Entry]]:
        before, todo = Counter(), []
        for entry in sorted(inventory, key=lambda entry: entry.key):
            row = self.rows.get(entry.key)
            if (
                row is not None
                and (row.source_etag, row.model_id, row.settings_id)
                == (entry.etag, model, settings)
                and not (retry and row.status == "failed")
            ):
                before[row.status] += 1
            else:
                todo.append(entry)
        return len(inventory), before, todo


@settings(max_examples=60)
@given(histories, inventories, st.integers(1, 8))
def test_the_plan_is_that_of_a_naive_ledger_whatever_is_merged(
    history_: list[Any], inventory: list[Entry], fold_rows: int
) -> None:
    store, naive = Memory(), Naive()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "_FOLD_ROWS", fold_rows)
        patch.setattr(history, "BATCH_ROWS", 2)
        for number, event in enumerate(history_):
            if isinstance(event, list):
                name = ledger.write(store, event)
                naive.add(
                    event,
                    datetime.strptime(
                        name.rpartition("/")[2].partition("-")[0], "%Y%m%dT%H%M%S.%fZ"
                    ).replace(tzinfo=UTC),
                )
            elif event == "merge":
                before = ledger.parts(store)
                replaced = ledger.compact(store, more_than=1)
                assert replaced == (len(before) if len(before) > 1 else 0)
                assert len(ledger.parts(store)) == min(1, len(before))
            else:
                store.deletions = event[1]
                with contextlib.suppress(OSError):
                    ledger.compact(store, more_than=1)
                store.deletions = None
            for model, setting, retry in itertools.product(MODELS, SETTINGS, (False, True)):
                plan = ledger.plan(
                    store, inventory, model_id=model, settings_id=setting, retry_failed=retry
                )
                photos, counts, todo = naive.plan(inventory, model, setting, retry)
                assert (plan.photos, plan.before, list(plan.todo)) == (photos, counts, todo), number
        found = [Row(**row) for table in ledger.current(store) for row in table.to_pylist()]
    assert sorted(found, key=lambda row: row.key) == [naive.rows[key] for key in sorted(naive.rows)]


def test_a_merged_ledger_is_the_same_and_small(store: Store) -> None:
    for number in range(5):
        ledger.write(
            store, [row("a", f"e{number}"), row(f"b{number}", status="failed", reason="x")]
        )
    assert ledger.compact(store, more_than=5) == 0
    assert len(ledger.parts(store)) == 5
    before = {r["key"]: r for table in ledger.current(store) for r in table.to_pylist()}
    assert ledger.compact(store, more_than=4) == 5
    (part,) = ledger.parts(store)
    (table,) = ledger.read(store)
    assert table.schema.equals(ledger.SCHEMA)
    assert {r["key"]: r for r in table.to_pylist()} == before
    assert table.num_rows == len(before) == 6
    assert ledger.compact(store, more_than=0) == 0, "one part is merged already"
    ledger.write(store, [row("c")])
    assert ledger.compact(store, more_than=1) == 2
    assert ledger.parts(store)[0] > part
    assert done(store)["a"] == ("e4", "restored")


def test_damage_within_a_part_of_many_rows_is_told(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    name = ledger.write(store, [row(f"{number}") for number in range(history.BATCH_ROWS + 1)])
    data = bytearray(store.read(name))
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 4)
    store.put(name, bytes(data))
    with pytest.raises(UsageError, match=r"a part of the ledger, cannot be read"):
        list(ledger.read(store))


def test_a_long_run_merges_what_is_not_merged_yet(store: Store) -> None:
    for number in range(9):
        ledger.write(store, [row(f"a{number}")])
        if number % 3 == 2:
            assert ledger.compact(store, more_than=2, merged=False) == 3
    assert len(ledger.parts(store)) == 3
    assert ledger.compact(store, more_than=2) == 3
    assert len(done(store)) == 9


def test_a_merge_keeps_the_latest_hash_of_each_photo(store: Store) -> None:
    for number in (1, 2):
        ledger.write(
            store, [dataclasses.replace(row("a", f"e{number}"), output_sha256=f"h{number}")]
        )
    ledger.write(store, [row("a", "e3", status="failed", reason="changed since it was listed")])
    assert ledger.compact(store, more_than=1) == 3
    (table,) = ledger.read(store)
    assert table["output_sha256"].to_pylist() == ["h2", None]
    assert done(store)["a"] == ("e3", "failed")


def test_a_merge_keeps_all_places_that_a_photo_was_put_at(store: Store) -> None:
    """Else what one model made, beside the photos, would be photos to the next run."""
    for number, place in enumerate(["a-x.jpg", "a-y.jpg", "a-x.jpg"]):
        made = {"output_key": place, "output_sha256": f"h{number}"}
        ledger.write(store, [dataclasses.replace(row("a", "e"), **made)])
    ledger.write(store, [row("a", "e", status="failed")])
    assert ledger.compact(store, more_than=1) == 4
    (table,) = ledger.read(store)
    places = zip(table["output_key"].to_pylist(), table["output_sha256"].to_pylist(), strict=True)
    assert list(places) == [("a-y.jpg", "h1"), ("a-x.jpg", "h2"), (None, None)]
    assert done(store) == {"a": ("e", "failed")}


def test_a_merge_keeps_what_was_copied(store: Store) -> None:
    """It has no hash; and a copy at the place of what was restored before does not make that forgotten."""
    restored = dataclasses.replace(row("a", "e"), output_key="a.jpg", output_sha256="h")
    copied = dataclasses.replace(row("a", "e", status="skipped"), output_key="a.jpg")
    for each in (restored, copied, copied, row("a", "e", status="failed")):
        ledger.write(store, [each])
    assert ledger.compact(store, more_than=1) == 4
    (table,) = ledger.read(store)
    places = zip(table["output_key"].to_pylist(), table["output_sha256"].to_pylist(), strict=True)
    assert list(places) == [("a.jpg", "h"), ("a.jpg", None), (None, None)]


def test_a_listing_that_falls_into_a_merge_is_made_again(store: Store) -> None:
    """A folder's has the old names, which are gone when it looks at them, and not the new one."""
    key = ledger.write(store, [row("a", "e")])

    class Merging(Memory):
        looks = iter([[], [Entry(key, 1, "e")], [Entry(key, 1, "e")]])

        def list(self, prefix: str = "") -> Iterator[Entry]:
            return iter(next(self.looks))

    assert ledger.parts(Merging()) == [key]


def test_a_merged_part_comes_after_what_it_replaces_and_before_what_is_written_later() -> None:
    # A listing takes many requests: if it misses a part that is deleted meanwhile, it must still
    # come to the merged one.
    store = Memory()
    names = [ledger.write(store, [row(key)]) for key in "abc"]
    for key in "de":
        assert ledger.compact(store, more_than=1) == len(names)
        (merged,) = ledger.parts(store)
        later = ledger.write(store, [row(key)])
        assert max(names) < merged < later
        names = [merged, later]
    store.put(names[0].replace("-merged-", "-again-"), store.read(names[1]))
    store.delete(names[1])
    assert ledger.compact(store, more_than=1) == 2
    assert ledger.parts(store)[0] > names[0], "also where the last of them is a merged one"


def test_parts_that_come_while_others_are_merged_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    for key in "abc":
        ledger.write(store, [row(key)])
    put = store.put

    def slow(key: str, data: bytes | memoryview) -> None:
        monkeypatch.setattr(store, "put", put)
        ledger.write(store, [row("a", "e2"), row("d")])  # another run
        put(key, data)

    monkeypatch.setattr(store, "put", slow)
    assert ledger.compact(store, more_than=1) == 3
    assert len(ledger.parts(store)) == 2
    assert {key: etag for key, (etag, _) in done(store).items()} == {
        "a": "e2", "b": "e1", "c": "e1", "d": "e1",
    }  # fmt: skip
    assert len(ledger.plan(store, [Entry("a", 1, "e2")], model_id="m", settings_id="s").todo) == 0


def test_two_runs_merge_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    for key in "abc":
        ledger.write(store, [row(key)])
    put = store.put

    def slow(key: str, data: bytes | memoryview) -> None:
        monkeypatch.setattr(store, "put", put)
        # A part by a machine whose clock is behind, then another run that merges all four.
        table = next(iter(ledger.read(store))).set_column(
            0, ledger.SCHEMA.field(0), pa.array(["d"])
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        put(f"{ledger.FOLDER}/20250101T000000.000000Z-0.parquet", buffer.getvalue())
        assert ledger.compact(store, more_than=1) == 4
        put(key, data)

    monkeypatch.setattr(store, "put", slow)
    assert ledger.compact(store, more_than=1) == 3
    assert set(done(store)) == set("abcd")


def test_parts_that_vanish_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Memory()
    for key in "abc":
        ledger.write(store, [row(key)])
    read, merging = store.read, [True]

    def slow(key: str) -> bytes:
        if merging:
            merging.clear()
            monkeypatch.setattr(store, "read", read)
            assert ledger.compact(store, more_than=1) == 3
        return read(key)

    monkeypatch.setattr(history, "_THREADS", 1)
    monkeypatch.setattr(store, "read", slow)
    inventory = [Entry(key, 1, "e1") for key in "abcd"]
    plan = ledger.plan(store, inventory, model_id="m", settings_id="s")
    assert (plan.before, [entry.key for entry in plan.todo]) == ({"restored": 3}, ["d"])

    for key in "ef":
        ledger.write(store, [row(key)])
    merging.append(True)
    monkeypatch.setattr(store, "read", slow)
    assert ledger.compact(store, more_than=1) == 0, "another run has merged them"
    assert len(ledger.parts(store)) == 1


def test_columns_of_a_later_version_are_not_dropped() -> None:
    store = Memory()
    buffer = io.BytesIO()
    key = ledger.write(store, [row("a")])
    table = next(iter(ledger.read(store))).append_column("new", pa.array([1]))
    pq.write_table(table, buffer)
    store.put(key, buffer.getvalue())
    ledger.write(store, [row("b")])
    assert ledger.compact(store, more_than=1) == 0
    assert len(ledger.parts(store)) == 2
    assert set(done(store)) == {"a", "b"}


def test_columns_that_an_earlier_version_lacks_are_empty() -> None:
    store = Memory()
    key = ledger.write(store, [row("a", reason="why")])
    buffer = io.BytesIO()
    pq.write_table(next(iter(ledger.read(store))).drop_columns(["reason", "width"]), buffer)
    store.put(key, buffer.getvalue())
    ledger.write(store, [row("b", reason="why")])
    assert ledger.compact(store, more_than=1) == 2
    (table,) = ledger.read(store)
    assert table.schema.equals(ledger.SCHEMA)
    assert table["reason"].to_pylist() == [None, "why"]


def test_entries_are_a_sequence_in_order_of_keys() -> None:
    listed = [
        Entry(key, size, f"e{size}") for size, key in enumerate(["b", "a/é", "a", "a-b", "ab"])
    ]
    expected = sorted(listed, key=lambda entry: entry.key)
    entries = Entries.of(iter(listed))
    assert list(entries) == expected
    assert len(entries) == 5
    assert entries.size_bytes == 10
    assert (entries[0], entries[-1]) == (expected[0], expected[-1])
    for part in (
        slice(None, 2),
        slice(1, None),
        slice(None, None),
        slice(None, None, -2),
        slice(9, 12),
    ):
        assert list(entries[part]) == expected[part]
    assert entries[:0].size_bytes == 0
    assert list(Entries.of([])) == []
    with pytest.raises(IndexError):
        entries[5]
