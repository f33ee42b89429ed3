"""A listing as columns: the entries of a million photos without a million objects."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from deblur.storage import Entry

_BATCH = 1 << 16


class Entries(Sequence[Entry]):
    """Entries of a listing in the order of their keys, kept as columns: a third of the memory."""

    _SCHEMA = pa.schema([("key", pa.string()), ("size_bytes", pa.int64()), ("etag", pa.string())])

    def __init__(self, table: Any) -> None:
        self._table = table

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """Return all entries of a listing, which need not be in order."""
        if isinstance(entries, Entries):
            return entries
        left = iter(entries)
        batches = []
        while some := list(itertools.islice(left, _BATCH)):
            columns = [[getattr(entry, name) for entry in some] for name in cls._SCHEMA.names]
            arrays = map(pa.array, columns, cls._SCHEMA.types)
            batches.append(pa.record_batch(list(arrays), cls._SCHEMA))
        table = pa.Table.from_batches(batches, cls._SCHEMA)
        keys = table["key"]
        if pc.any(pc.greater(keys[:-1], keys[1:])).as_py():
            table = table.sort_by("key")
        return cls(table)

    @property
    def table(self) -> Any:
        """Return the columns `key`, `size_bytes`, `etag`."""
        return self._table

    @property
    def size_bytes(self) -> int:
        """Return the sum of the sizes."""
        return pc.sum(self._table["size_bytes"]).as_py() or 0

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[Entry]:
        for batch in self._table.to_batches(_BATCH):
            yield from itertools.starmap(
                Entry, zip(*(column.to_pylist() for column in batch.columns), strict=True)
            )

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Entries: ...
    def __getitem__(self, index: int | slice) -> Entry | Entries:
        places = range(len(self))[index]
        if isinstance(places, int):
            return Entry(*(column[places].as_py() for column in self._table.columns))
        if places.step == 1:
            return Entries(self._table.slice(places.start, len(places)))
        return Entries(self._table.take(pa.array(places, pa.int64())))
