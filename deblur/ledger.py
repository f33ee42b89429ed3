"""One row a photo; plan = inventory - done.

The ledger is a folder of Parquet parts below a restored bucket. A part is written whole, after the
outputs that it speaks of. The latest row of a key counts: by `finished_at`, and of equal ones the
later in order of parts. So a row may be there twice, and parts may be merged, without a change of
what the ledger says. Besides it the latest row is kept of each output that a photo has had, with its
hash, and without where it is a copy: they tell outputs from photos, and whose each output is.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deblur import history
from deblur.entries import Entries
from deblur.storage import Entry, Store

FOLDER = "_deblur/ledger"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("source_etag", pa.string(), nullable=False),
        pa.field("source_bytes", pa.int64(), nullable=False),
        pa.field("output_key", pa.string()),
        pa.field("output_sha256", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("settings_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("sharpness_before", pa.float32()),
        pa.field("sharpness_after", pa.float32()),
        pa.field("seconds", pa.float32()),
        pa.field("finished_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)

Status = Literal["restored", "skipped", "failed"]
Result = TypeVar("Result")

_MOST_PARTS = 64
_MERGED = re.compile(r"-merged-(\d{6})-")
_THREADS = 16
_LOOKS = 5


@dataclass(frozen=True)
class Row:
    """What became of one photo."""

    key: str
    source_etag: str
    source_bytes: int
    model_id: str
    settings_id: str
    status: Status
    reason: str | None = None
    output_key: str | None = None
    output_sha256: str | None = None
    width: int | None = None
    height: int | None = None
    sharpness_before: float | None = None
    sharpness_after: float | None = None
    seconds: float | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Plan:
    """What a run has before it."""

    photos: int
    "In the inventory."
    before: Mapping[str, int]
    "Status -> photos that have been dealt with: the ledger has them as they are now."
    todo: Entries
    "The others, in the order of their keys."


def settings_id(settings: Mapping[str, object]) -> str:
    """Return an id of everything besides the model that an output's bytes depend on."""
    text = "\n".join(f"{name}={settings[name]!r}" for name in sorted(settings))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# === Write ===


def write(store: Store, rows: Sequence[Row]) -> str:
    """Write one part and return its key, made of the time and a hash of what the rows are about."""
    now = datetime.now(UTC)
    columns = [{**asdict(row), "finished_at": row.finished_at or now} for row in rows]
    table = pa.Table.from_pylist(columns, schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    key = f"{FOLDER}/{now:%Y%m%dT%H%M%S.%fZ}-{_digest(row.key for row in rows)}.parquet"
    store.put(key, buffer.getbuffer())
    return key


def begun(row: Row) -> Row:
    """Return the row that is written before an output replaces its photo or lies beside it, and settles nothing.

    Killed before the next one is written, a run would take what it has put for a photo to restore.
    """
    return replace(
        row,
        model_id="",
        settings_id="",
        status="failed",
        reason="its restoration in place was cut off",
    )


def compact(store: Store, *, more_than: int = _MOST_PARTS, merged: bool = True) -> int:
    """Merge the parts into one if there are more than so many; return how many it replaces.

    Without `merged`, those that are merged already are left alone: time and again in a run, each row is
    read once.

    The merged part is there before the first of the others is deleted, and only those are deleted
    that are in it: killed at any point it leaves rows twice, which changes nothing, and what other
    runs write meanwhile stays. Raises OSError if the store fails; then, too, nothing is lost.
    """
    old = [key for key in parts(store) if merged or not _MERGED.search(key)]
    if len(old) <= max(more_than, 1):
        return 0
    buffer = io.BytesIO()
    try:
        with pq.ParquetWriter(buffer, SCHEMA, compression="zstd") as writer:
            for table in history.grouped(_current(store, old, None, outputs=True)):
                if table.column_names != SCHEMA.names:
                    return 0  # a later version of this program knows columns that we would drop
                writer.write_table(table)
    except FileNotFoundError:
        return 0  # another run is merging them
    store.put(_merged_name(old), buffer.getbuffer())
    with ThreadPoolExecutor(_THREADS) as threads:
        for _ in threads.map(store.delete, old):
            pass
    return len(old)


def _merged_name(old: Sequence[str]) -> str:
    """Return a name that comes after those of the merged parts, and before those of later ones.

    After them, so that a listing in order of the names, which may take many requests, that misses
    a part because it was deleted meanwhile comes to the merged one. It is never that of another
    set of parts: of two runs that merge at the same time neither may replace the other's.
    """
    generations = [_MERGED.search(key) for key in old]
    generation = 1 + max((int(found[1]) for found in generations if found), default=0)
    time = old[-1].removeprefix(f"{FOLDER}/").partition("-")[0]
    return f"{FOLDER}/{time}-merged-{generation:06}-{_digest(old)}.parquet"


def _digest(keys: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(keys).encode("utf-8", "surrogatepass")).hexdigest()[:12]


# === Read ===


def parts(store: Store) -> list[str]:
    """Return the keys of the parts, oldest first; none if there is no ledger.

    Two listings have to agree: a folder's may miss the merged part and the merged ones as well.
    """
    found, before = _listed(store), None
    for _ in range(_LOOKS):
        if found == before:
            break
        found, before = _listed(store), found
    return found


def _listed(store: Store) -> list[str]:
    return sorted(e.key for e in store.list(FOLDER) if e.key.endswith(".parquet"))


def read(store: Store, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the parts whole, oldest first, superseded rows included."""
    yield from history.tables(store, parts(store), columns)


def current(store: Store, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows that count, each key once, oldest part first.

    Raises FileNotFoundError if another run merges the parts meanwhile: `steadily` tries it again.
    """
    yield from _current(store, parts(store), columns)


def steadily(look: Callable[[], Result]) -> Result:
    """Return what `look` does, which begins anew if another run merges the parts meanwhile."""
    for _ in range(_LOOKS - 1):
        try:
            return look()
        except FileNotFoundError:
            continue
    return look()


def plan(
    store: Store,
    inventory: Iterable[Entry],
    *,
    model_id: str,
    settings_id: str,
    retry_failed: bool = False,
) -> Plan:
    """Return what this model with these settings has to do, and has done.

    Done is an entry whose latest row has the same ETag, model and settings; with `retry_failed` a
    failed one is not. All is kept in columns: tests/benchmarks/planning.py
    has the seconds and the memory.
    """
    entries = Entries.of(inventory)
    known = steadily(lambda: _known(store, model_id, settings_id, retry_failed))
    if known is None:
        return Plan(len(entries), {}, entries)
    done, row = history.find(known, entries.table["key"])
    etags = history.hashes(entries.table["etag"].filter(done))
    done[done] = known["etag"].to_numpy()[row[done]] == etags
    tally = pc.value_counts(known["status"].take(row[done])).to_pylist()
    before = {str(count["values"]): int(count["counts"]) for count in tally}
    return Plan(len(entries), before, Entries(entries.table.filter(~done)))


def _known(store: Store, model_id: str, settings_id: str, retry_failed: bool) -> Any:
    """Return the latest rows that stand: of this model and settings, and not to be tried again."""
    names = ["key", "finished_at", "source_etag", "model_id", "settings_id", "status"]

    def columns() -> Iterator[Any]:
        for table in history.tables(store, parts(store), names):
            stands = pc.and_(
                pc.equal(table["model_id"], model_id), pc.equal(table["settings_id"], settings_id)
            )
            if retry_failed:
                stands = pc.and_(stands, pc.not_equal(table["status"], "failed"))
            rows = pa.table(
                {
                    "key": table["key"],
                    "finished_at": table["finished_at"].cast(pa.int64()),
                    "etag": history.hashes(table["source_etag"]),
                    "status": pc.if_else(stands, table["status"], None),
                }
            )
            yield history.identified(rows)

    if (known := history.latest(columns())) is None:
        return None
    return known.filter(known["status"].is_valid())


def _current(
    store: Store, keys: Sequence[str], columns: Sequence[str] | None, *, outputs: bool = False
) -> Iterator[Any]:
    """Yield the rows that count, and with `outputs` the latest of each output: it reads which, then them."""

    def places() -> Iterator[Any]:
        end = 0
        wanted = ["key", "finished_at", *(["output_key", "output_sha256"] if outputs else [])]
        for table in history.tables(store, keys, wanted):
            start, end = end, end + table.num_rows
            table = table.append_column("place", pa.array(np.arange(start, end)))
            if outputs:  # those with an output once more, as if each were a key
                hashed = table["output_sha256"].is_valid()
                names = pc.binary_join_element_wise(
                    table["key"], pc.fill_null(table["output_key"], ""), hashed.cast("string"), "\0"
                )
                own = pc.or_(hashed, table["output_key"].is_valid())
                again = table.select(["finished_at", "place"]).append_column("key", names)
                yield history.identified(again.filter(own))
            yield history.identified(table.select(["key", "finished_at", "place"]))

    if (latest := history.latest(places())) is None:
        return
    found = np.unique(latest["place"].to_numpy())
    end = 0
    for table in history.tables(store, keys, columns):
        start, end = end, end + table.num_rows
        first, last = np.searchsorted(found, (start, end))
        if last > first:
            table = table if last - first == len(table) else table.take(found[first:last] - start)
            yield history.aligned(table, SCHEMA, columns)
