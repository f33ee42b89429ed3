"""The coded photos of a run in Ray's object store, in pieces so small that who wants one brings few along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray

from deblur.groups import groups

TASK_CPUS = 0.5  # so that a task finds its place beside one worker on one core

# A block of 64 examples is drawn from all of the photos, and a task has all of its arguments on its
# node: of shards of 128 MB, 64 pairs of 0.3 MB brought 8 GB along. So a piece is one photo of a camera,
# or some pairs.
_PIECE_BYTES = 2_000_000
_MOST_PIECES = 10_000  # as each costs the driver and each worker some kilobytes
_CODED = ("sharp", "blurred")


class Fact(NamedTuple):
    """What a row of a table says of its photo.

    Attributes:
        key: the photo's.
        size_bytes: of what is coded.
        sha256: of the file, where it was looked at.
        reason: why it cannot serve, if it cannot.
    """

    key: str
    size_bytes: int
    sha256: str
    reason: str | None


@dataclass(frozen=True)
class Pieces:
    """Tables of coded photos.

    Attributes:
        refs: to tables with `key`, `sharp`, and, if these are pairs whose blur stays, `blurred`.
        keys: to the keys of all of them, a list for each table.
    """

    refs: Sequence[Any]
    keys: Any


def facts(tables: Sequence[Any]) -> list[list[Fact]]:
    """Return what the rows of some tables in the object store say."""
    found: list[list[Fact]] = ray.get([_facts.remote(table) for table in tables])
    return found


def cut(tables: Sequence[Any], found: Sequence[Sequence[Fact]]) -> Pieces:
    """Return the photos of some tables, without those that cannot serve.

    Args:
        tables: in the object store.
        found: their `facts`.
    """
    size = sum(fact.size_bytes for rows in found for fact in rows if not fact.reason)
    most = max(_PIECE_BYTES, size // _MOST_PIECES)
    refs: list[Any] = []
    keys: list[list[str]] = []
    for table, rows in zip(tables, found, strict=True):
        sizes = {row: fact.size_bytes for row, fact in enumerate(rows) if not fact.reason}
        cuts = list(groups(sizes, sizes.__getitem__, most))
        if not cuts:
            continue
        made = _taken.options(num_returns=len(cuts)).remote(table, cuts)
        refs += made if len(cuts) > 1 else [made]
        keys += [[rows[row].key for row in chosen] for chosen in cuts]
    return Pieces(refs, ray.put(keys))


@ray.remote(num_cpus=TASK_CPUS)
def _facts(table: pa.Table) -> list[Fact]:
    sizes = [
        pc.binary_length(table[name]).to_pylist() for name in _CODED if name in table.column_names
    ]
    told = [
        table[name].to_pylist() if name in table.column_names else [default] * len(table)
        for name, default in (("sha256", ""), ("reason", None))
    ]
    columns = (table["key"].to_pylist(), map(sum, zip(*sizes, strict=True)), *told)
    return [Fact(*row) for row in zip(*columns, strict=True)]


@ray.remote(num_cpus=TASK_CPUS)
def _taken(table: pa.Table, cuts: Sequence[Sequence[int]]) -> Any:
    columns = ["key", *(name for name in _CODED if name in table.column_names)]
    pieces = [table.select(columns).take(chosen) for chosen in cuts]
    return pieces if len(pieces) > 1 else pieces[0]
