"""The stages that a photo passes on its way through `deblur restore`: fetch, restore, deliver.

Each is an object that Ray Data calls with a batch of packs, lists of a few photos.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deblur import ledger, metrics, models, photo
from deblur.errors import PhotoError
from deblur.storage import Entry, Store, reason

# What passes from stage to stage: 24 MB of pixels, or a single larger photo.
_PACK_PIXELS = 8_000_000
_FETCH_THREADS = 8


@dataclass(frozen=True)
class Item:
    """One photo on its way: first decoded, then restored, or failed with a reason."""

    entry: Entry
    photo: photo.Photo | None = None
    reason: str | None = None
    sharpness: float | None = None
    seconds: float = 0.0


class Fetch:
    """Reads and decodes the photos of a chunk, and passes them on in packs of bounded size."""

    def __init__(self, source: Store) -> None:
        self._source = source

    def __call__(
        self, batch: Mapping[str, Sequence[Sequence[Entry]]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield packs: lists of items."""
        for chunk in batch["chunk"]:
            for pack in packs(self._decoded(chunk)):
                yield {"pack": _column(pack)}

    def _decoded(self, chunk: Sequence[Entry]) -> Iterator[Item]:
        # Reads run ahead by threads, in order; what is decoded is passed on at once.
        with ThreadPoolExecutor(_FETCH_THREADS) as threads:
            for entry, data in zip(chunk, threads.map(self._read, chunk), strict=True):
                started = time.perf_counter()
                try:
                    if isinstance(data, OSError):
                        raise PhotoError(f"cannot be read: {reason(data)}")
                    decoded = photo.named(photo.decode(data), entry.key)
                    sharpness = metrics.sharpness(decoded.pixels)
                    yield Item(
                        entry, decoded, sharpness=sharpness, seconds=time.perf_counter() - started
                    )
                except PhotoError as error:
                    yield Item(entry, reason=str(error), seconds=time.perf_counter() - started)

    def _read(self, entry: Entry) -> bytes | OSError:
        try:
            return self._source.read(entry.key)
        except OSError as error:
            return error


def packs(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield lists of items: enough pixels to fill tile batches, not enough to fill memory."""
    pack: list[Item] = []
    pixels = 0
    for item in items:
        pack.append(item)
        pixels += item.photo.width * item.photo.height if item.photo else 0
        if pixels >= _PACK_PIXELS:
            yield pack
            pack, pixels = [], 0
    if pack:
        yield pack


def _column(*values: Any) -> np.ndarray:
    """Return a column of Python objects; a plain list of lists would be taken for a matrix."""
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        column[index] = value
    return column


class Restore:
    """Holds the model and restores packs of photos."""

    def __init__(self, model: str, precision: Any) -> None:
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)
        from deblur.precision import policy
        from deblur.restorer import Restorer

        dtype_policy = policy(precision)
        self._restorer = Restorer(models.load(model, dtype_policy), dtype_policy)

    def __call__(self, batch: Mapping[str, Sequence[Sequence[Item]]]) -> dict[str, np.ndarray]:
        """Return the packs with restored photos."""
        return {"pack": _column(*map(self._pack, batch["pack"]))}

    def _pack(self, pack: Sequence[Item]) -> list[Item]:
        started = time.perf_counter()
        whole = [item for item in pack if item.photo is not None]
        restored = self._restorer.restore(item.photo.pixels for item in whole if item.photo)
        results = dict(zip((item.entry.key for item in whole), restored, strict=True))
        pixels = sum(result.shape[0] * result.shape[1] for result in results.values())
        elapsed = time.perf_counter() - started
        out = []
        for item in pack:
            if item.photo is not None:
                share = item.photo.width * item.photo.height / pixels
                item = replace(
                    item,
                    photo=item.photo.with_pixels(results[item.entry.key]),
                    seconds=item.seconds + elapsed * share,
                )
            out.append(item)
        return out


class Deliver:
    """Encodes and puts the photos of a pack, then writes what became of them into the ledger."""

    def __init__(self, destination: Store, model_id: str, settings_id: str) -> None:
        self._destination = destination
        self._model_id, self._settings_id = model_id, settings_id

    def __call__(self, batch: Mapping[str, Sequence[Sequence[Item]]]) -> dict[str, list[Any]]:
        """Return a row about each photo, for the driver."""
        rows = []
        for pack in batch["pack"]:
            with ThreadPoolExecutor(_FETCH_THREADS) as threads:
                part = list(threads.map(self._deliver, pack))
            ledger.write(self._destination, part)
            rows += part
        return {
            "key": [row.key for row in rows],
            "status": [row.status for row in rows],
            "reason": [row.reason or "" for row in rows],
            "megapixels": [(row.width or 0) * (row.height or 0) / 1e6 for row in rows],
        }

    def _deliver(self, item: Item) -> ledger.Row:
        entry = item.entry
        row = ledger.Row(
            entry.key,
            entry.etag,
            entry.size_bytes,
            self._model_id,
            self._settings_id,
            status="failed",
            reason=item.reason,
        )
        if item.photo is None:
            return replace(row, seconds=item.seconds)
        started = time.perf_counter()
        try:
            data = photo.encode(item.photo)
            self._destination.put(entry.key, data)
        except (PhotoError, OSError) as error:
            why = (
                str(error)
                if isinstance(error, PhotoError)
                else f"cannot be written: {reason(error)}"
            )
            return replace(row, reason=why, seconds=item.seconds)
        return replace(
            row,
            status="restored",
            output_key=entry.key,
            output_sha256=hashlib.sha256(data).hexdigest(),
            width=item.photo.width,
            height=item.photo.height,
            sharpness_before=item.sharpness,
            sharpness_after=metrics.sharpness(item.photo.pixels),
            seconds=item.seconds + time.perf_counter() - started,
        )
