"""Many parts of rows -> which of them count: of each key the latest.

A key is known by a hash of 128 bits, and columns are all that is kept: a million keys take tens of
megabytes, where dicts of strings take hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deblur import ahead
from deblur.errors import UsageError
from deblur.storage import Store, reason

BATCH_ROWS = 1 << 16
_THREADS = 16
_FOLD_ROWS = 1 << 18  # a history is reduced to its latest rows whenever so many have come


def tables(store: Store, parts: Sequence[str], columns: Sequence[str] | None) -> Iterator[Any]:
    """Yield the rows of the parts, in order, in tables of bounded size; threads read ahead.

    Raises FileNotFoundError for a part that is gone, UsageError for one that cannot be read.
    """

    def read(key: str) -> Iterable[Any]:
        return _tables(store, key, columns)

    with ThreadPoolExecutor(_THREADS) as threads:
        for found in ahead.results(threads, read, parts, 2 * _THREADS):
            yield from found


def _tables(store: Store, key: str, columns: Sequence[str] | None) -> Iterable[Any]:
    with _explained(store, key):
        # A seventh of the time of pq.read_table for a small part: that takes a folder for a table.
        file = pq.ParquetFile(pa.BufferReader(store.read(key)))
        if file.metadata.num_rows <= BATCH_ROWS:
            return [file.read(columns, use_threads=False)]

    def batches() -> Iterator[Any]:
        with _explained(store, key):
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])

    return batches()


@contextmanager
def _explained(store: Store, key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{store.uri}/{key}, a part of the ledger, cannot be read: {reason(error)}; "
            "without it the photos that it speaks of are restored again"
        ) from error


def rows(tables: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of some tables as tuples."""
    for table in tables:
        yield from zip(*(column.to_pylist() for column in table.columns), strict=True)


def aligned(table: Any, schema: Any, columns: Sequence[str] | None) -> Any:
    """Return these columns, nulls for those that an earlier version has not written.

    All are those of the schema, and then those of a later version that it does not know.
    """
    if columns is None:
        columns = [*schema.names, *(n for n in table.column_names if n not in schema.names)]
    for name in columns:
        if name not in table.column_names:
            nulls = pa.nulls(len(table), schema.field(name).type)
            table = table.append_column(schema.field(name), nulls)
    return table.select(columns)


def grouped(tables: Iterable[Any]) -> Iterator[Any]:
    """Yield the same rows in tables of enough rows for a row group."""
    group: list[Any] = []
    rows = 0
    for table in tables:
        group.append(table)
        rows += table.num_rows
        if rows >= BATCH_ROWS:
            yield pa.concat_tables(group, promote_options="default")
            group, rows = [], 0
    if group:
        yield pa.concat_tables(group, promote_options="default")


def hashes(strings: Any, salt: str = "") -> np.ndarray:
    """Return 64 bits of each string, the same within this process alone."""
    found = np.empty(len(strings), np.int64)
    for start in range(0, len(found), BATCH_ROWS):
        some = strings[start : start + BATCH_ROWS].to_pylist()
        found[start : start + len(some)] = [hash(text + salt) for text in some]
    return found


def identified(table: Any) -> Any:
    """Replace the column `key` by its hash: `high` and `low`."""
    key = table["key"]
    table = table.drop_columns("key").append_column("high", pa.array(hashes(key)))
    return table.append_column("low", pa.array(hashes(key, "\0")))


def latest(parts: Iterable[Any]) -> Any:
    """Return of each key (`high`, `low`) the row that counts, by `finished_at`, in order of keys.

    It takes the memory of the keys, not that of their histories. No tables give None.
    """
    kept: list[Any] = []
    rows, most = 0, _FOLD_ROWS
    for table in parts:
        kept.append(table)
        rows += table.num_rows
        if rows > most:
            kept = [_folded(kept)]
            rows = kept[0].num_rows
            most = max(_FOLD_ROWS, 2 * rows)
    return _folded(kept) if kept else None


def _folded(parts: Sequence[Any]) -> Any:
    table = pa.concat_tables(parts).combine_chunks()
    high, low = table["high"].to_numpy(), table["low"].to_numpy()
    # Stable: of equal times the row of the later part counts.
    order = np.lexsort((table["finished_at"].to_numpy(), low, high))
    high, low = high[order], low[order]
    last = np.append((high[1:] != high[:-1]) | (low[1:] != low[:-1]), True)[: len(order)]
    return table.take(pa.array(order[last]))


def find(known: Any, keys: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return for each key whether `latest` has it, and its row there."""
    high, low = known["high"].to_numpy(), known["low"].to_numpy()
    sought = hashes(keys)
    row = np.searchsorted(high, sought)
    row[row == len(high)] = 0
    if not len(high):
        return np.zeros(len(sought), bool), row
    return (high[row] == sought) & (low[row] == hashes(keys, "\0")), row
