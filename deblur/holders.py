"""Whose the outputs are that lie in DESTINATION: of each, the photo that the latest row with it is about.

A photo holds a place whatever became of it since: what was restored or copied there is there yet.
Places and photos are known by hashes, in columns, as in `history`: DESTINATION may have millions.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from deblur import history, keys, ledger
from deblur.errors import UsageError
from deblur.storage import Entry, Store


class Holders:
    """The photos that hold places in a DESTINATION."""

    def __init__(self, destination: Store, *, folded: bool = False) -> None:
        """Read the ledger.

        Args:
            destination: the place.
            folded: whether it takes `A.jpg` and `a.jpg` for one, as macOS and Windows do.
        """
        self._destination, self.folded = destination, folded
        self._latest = ledger.steadily(lambda: history.latest(self._rows()))

    def held(self, wanted: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, bool]]:
        """Yield those of (key, output key) whose place is held, and whether by the photo itself."""
        left = iter(wanted)
        while self._latest and (some := list(itertools.islice(left, history.BATCH_ROWS))):
            photos, outputs = (pa.array(column, pa.string()) for column in zip(*some, strict=True))
            found, row = history.find(self._latest, self._places(outputs))
            own = self._latest["holder"].to_numpy()[row] == history.hashes(photos)
            for index in found.nonzero()[0]:
                yield *some[index], bool(own[index])

    def others(self, wanted: Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return key -> key of the other photo that holds its place."""
        lost = {key: self._place(output) for key, output, own in self.held(wanted) if not own}
        names = ledger.steadily(lambda: self._names(set(lost.values()))) if lost else {}
        return {key: names[place] for key, place in lost.items()}

    def strangers(self, outputs: Iterable[str]) -> Iterator[str]:
        """Yield the keys of what lies in DESTINATION where these would be put, whoever has put it there."""
        listed = (entry.key for entry in _listed(self._destination))
        if (first := next(listed, None)) is None:
            return
        sought = history.latest(
            history.identified(
                pa.table({"key": places, "finished_at": pa.array(range(len(places)))})
            )
            for places in map(self._places, _batches(outputs))
        )
        for there in _batches(itertools.chain([first], listed)) if sought else ():
            found, _ = history.find(sought, self._places(there))
            yield from there.filter(pa.array(found)).to_pylist()

    def _read(self) -> Iterator[Any]:
        """Yield the rows with an output: `place`, `key`, `finished_at`."""
        for table in ledger.read(self._destination, ["key", "output_key", "finished_at"]):
            table = table.filter(table["output_key"].is_valid())
            ended = table["finished_at"].cast(pa.int64())
            places = self._places(table["output_key"])
            yield pa.table({"place": places, "key": table["key"], "finished_at": ended})

    def _rows(self) -> Iterator[Any]:
        for table in self._read():
            holder = pa.array(history.hashes(table["key"]))
            table = table.drop_columns("key").rename_columns({"place": "key"})
            yield history.identified(table.append_column("holder", holder))

    def _names(self, places: Collection[str]) -> dict[str, str]:
        sought = pa.array(list(places), pa.string())
        latest: dict[str, tuple[int, str]] = {}
        ours = (table.filter(pc.is_in(table["place"], sought)) for table in self._read())
        for place, key, ended in history.rows(ours):
            if place not in latest or ended >= latest[place][0]:
                latest[place] = ended, key
        return {place: key for place, (_, key) in latest.items()}

    def _place(self, output: str) -> str:
        return keys.folded(output) if self.folded else output

    def _places(self, outputs: Any) -> Any:
        if not self.folded:
            return outputs
        return pa.array(map(self._place, outputs.to_pylist()), pa.string())


def _batches(strings: Iterable[str]) -> Iterator[Any]:
    left = iter(strings)
    while some := list(itertools.islice(left, history.BATCH_ROWS)):
        yield pa.array(some, pa.string())


def _listed(destination: Store) -> Iterator[Entry]:
    """Yield what lies in DESTINATION, which need not be there yet."""
    try:
        yield from destination.list()
    except UsageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
