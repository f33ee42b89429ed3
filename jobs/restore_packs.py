"""What passes between the stages of `deblur restore`: photos in packs of bounded size, not copied; then outcomes.

Ray Data would pickle a photo into its table, and again out of it: for 100 megapixels that is three
copies of 300 MB at a time. Here the pixels of a pack are a column of the table by themselves, which
goes into shared memory once and is seen there by the next stage.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from deblur.ledger import Row
from deblur.photo import Photo
from deblur.storage import Entry

STEPS = ("fetch", "decode", "measure", "tiles", "model", "encode", "put")
"""What a photo takes time for: `measure` is its sharpness and the output guard, `tiles` is cutting and
merging them."""

# 24 MB of pixels, or a single larger photo.
_PACK_PIXELS = 8_000_000


@dataclass(frozen=True)
class Item:
    """One photo on its way: decoded, then restored; or failed or skipped, with a reason.

    Attributes:
        copy: the file as it is, if a skipped photo is to be copied.
        sha256: of the file, if it is one that was restored in place before.
        looks: the photo before it was restored, as `guards.strong_blur` sees it.
        tile_batch: tiles a call that it was restored with.
        spent: step -> seconds, see `timed`.
    """

    entry: Entry
    photo: Photo | None = None
    reason: str | None = None
    skipped: bool = False
    copy: bytes | None = None
    sha256: str | None = None
    looks: np.ndarray | None = None
    sharpness: float | None = None
    tile_batch: int = 0
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Pixels to restore."""
        return self.photo.width * self.photo.height if self.photo else 0


@contextmanager
def timed(
    spent: dict[str, float], step: str, clock: Callable[[], float] = time.thread_time
) -> Iterator[None]:
    """Add the seconds of a step.

    They are the thread's own, of the processor: where threads share cores, all would be counted
    several times by the clock on the wall. That is for what waits: `fetch` and `put`, and `model`,
    whose threads are not ours.
    """
    started = clock()
    try:
        yield
    finally:
        spent[step] = spent.get(step, 0.0) + clock() - started


def packs(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield lists of items: enough pixels to fill tile batches, not enough to fill memory.

    A photo that fills a pack is alone in it.
    """
    pack: list[Item] = []
    pixels = 0
    for item in items:
        if pack and item.pixels >= _PACK_PIXELS:
            yield pack
            pack, pixels = [], 0
        pack.append(item)
        pixels += item.pixels
        if pixels >= _PACK_PIXELS:
            yield pack
            pack, pixels = [], 0
    if pack:
        yield pack


def to_table(pack: Sequence[Item]) -> pa.Table:
    """Return the pack as a table of one row.

    The largest array, the pixels of a large photo, is not copied; the others are, together.
    """
    buffers: list[pickle.PickleBuffer] = []
    items = pickle.dumps(pack, protocol=5, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    sizes = [part.nbytes for part in raw]
    largest = sizes.index(max(sizes)) if sizes else -1
    rest = b"".join(part for index, part in enumerate(raw) if index != largest)
    meta = pickle.dumps((items, sizes, largest))
    columns = {
        "meta": pa.array([meta], pa.large_binary()),
        "largest": _uncopied(raw[largest] if raw else b""),
        "rest": pa.array([rest], pa.large_binary()),
    }
    return pa.table(columns)


def _uncopied(data: Any) -> pa.Array:
    buffer = pa.py_buffer(data)
    offsets = pa.py_buffer(np.array([0, buffer.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, buffer])


def from_table(table: pa.Table) -> Iterator[list[Item]]:
    """Yield the packs of a table. Their arrays are views of it, and cannot be written to."""
    for meta, largest, rest in zip(
        *(_values(table.column(name)) for name in ("meta", "largest", "rest")), strict=True
    ):
        items, sizes, index = pickle.loads(meta)
        buffers: list[Any] = []
        start = 0
        for number, size in enumerate(sizes):
            if number == index:
                buffers.append(largest)
            else:
                buffers.append(rest.slice(start, size))
                start += size
        yield pickle.loads(items, buffers=buffers)


def _values(column: pa.ChunkedArray) -> Iterator[pa.Buffer]:
    """Yield a column's values where they lie; Arrow's own scalars are copies."""
    for chunk in column.chunks:
        _, offsets, data = chunk.buffers()
        bounds = np.frombuffer(offsets, np.int64)[chunk.offset :]
        for index in range(len(chunk)):
            start, end = int(bounds[index]), int(bounds[index + 1])
            yield data.slice(start, end - start) if data else pa.py_buffer(b"")


def outcome(row: Row, item: Item | None = None) -> dict[str, Any]:
    """Return what the driver is told about a photo."""
    restored = row.status == "restored"
    return {
        "key": row.key,
        "status": row.status,
        "reason": row.reason or "",
        "output_key": row.output_key or "",
        "megapixels": (row.width or 0) * (row.height or 0) / 1e6 if restored else 0.0,
        "tile_batch": item.tile_batch if item else 0,
        "spent": {step: item.spent.get(step, 0.0) if item else 0.0 for step in STEPS},
    }
