"""The stages that a photo passes on its way through `deblur restore`: fetch, restore, deliver.

Each is an object that Ray Data calls with a table of packs, which are lists of a few photos.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from deblur import guards, keys, ledger, metrics, models, photo
from deblur.errors import DeblurError, PhotoError
from deblur.storage import Entry, Store, reason
from jobs.restore_packs import Item, from_table, outcome, packs, timed, to_table

_FETCH_THREADS = 8
# Twice what a JPEG can have. The merging of a photo holds 12 bytes for each pixel of its width and of a
# tile's height, of at most 1024.
_MAX_SIDE_PX = 131_072
# What a file may have at most: four channels of 16 bits, and metadata such as a phone's video.
_PIXEL_BYTES, _MORE_BYTES = 8, 256 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # no photo's fault: the next finds the same


@dataclass(frozen=True)
class Treatment:
    """What is done with every photo, apart from the model's work.

    Attributes:
        model_id, settings_id: what the ledger says that a photo was restored with.
        format: Pillow's name of the format that all are written in; None keeps each photo's.
        quality: of JPEG, WebP and the like, 1 to 100; None keeps each photo's.
        suffix: what is added to the names.
        skip_sharp: sharpness above which photos are skipped; None restores all.
        copy_skipped: whether those are copied, byte for byte.
        guard: whether outputs unlike their photos fail.
        max_megapixels: above which photos fail.
    """

    model_id: str
    settings_id: str
    format: str | None = None
    quality: int | None = None
    suffix: str = ""
    skip_sharp: float | None = None
    copy_skipped: bool = False
    guard: bool = True
    max_megapixels: float = photo.MAX_MEGAPIXELS

    def output_key(self, key: str) -> str:
        """Return where the output goes. An extension that names the format already stays."""
        extension = None
        if self.format is not None and _format_of(key) != self.format:
            extension = photo.extension(photo.Photo(_NO_PIXELS, format=self.format))
        return keys.output_key(key, extension, self.suffix)

    def output_keys(self, key: str) -> tuple[str, ...]:
        """Return all places that something may be put at."""
        output, copy = self.output_key(key), self.copy_key(key)
        return (output, copy) if self.copy_skipped and copy != output else (output,)

    def copy_key(self, key: str) -> str:
        """Return where the copy of a skipped photo goes: its format is what it was."""
        return keys.output_key(key, None, self.suffix)

    def written(self, result: photo.Photo, key: str) -> photo.Photo:
        """Return the photo as it is to be encoded, so that the name of its output tells the truth.

        Raises:
            PhotoError: if it is of another format than its name says, of which we write none.
        """
        if self.format is None:
            if _format_of(key) is None:
                raise PhotoError(
                    f"is {result.format}, other than its name says; --format writes it"
                )
            result = photo.named(result, key)
        return photo.converted(result, self.format, self.quality)


_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)


def _format_of(key: str) -> str | None:
    """Return the format that a name stands for."""
    return photo.FORMATS.get(os.path.splitext(key)[1].lower())


class Fetch:
    """Reads and decodes the photos of a chunk, and passes them on in packs of bounded size."""

    def __init__(
        self, source: Store, treatment: Treatment, restored: frozenset[str] = frozenset()
    ) -> None:
        """Take the store, and the SHA-256 of files there that were restored in place before."""
        self._source, self._treatment, self._restored = source, treatment, restored

    def __call__(self, batch: dict[str, Sequence[Sequence[Entry]]]) -> Iterator[pa.Table]:
        """Yield packs: lists of items."""
        for chunk in batch["chunk"]:
            for pack in packs(self._items(chunk)):
                yield to_table(pack)

    def _items(self, chunk: Sequence[Entry]) -> Iterator[Item]:
        # Reads run ahead by threads, in order; what is decoded is passed on at once.
        times: list[dict[str, float]] = [{} for _ in chunk]
        with ThreadPoolExecutor(_FETCH_THREADS) as threads:
            read = threads.map(self._read, chunk, times)
            for entry, spent, data in zip(chunk, times, read, strict=True):
                try:
                    item = self._item(entry, data, spent)
                except PhotoError as error:
                    item = Item(entry, reason=str(error))
                yield replace(item, spent=spent)

    def _item(
        self, entry: Entry, data: bytes | OSError | PhotoError, spent: dict[str, float]
    ) -> Item:
        treatment = self._treatment
        if isinstance(data, PhotoError):
            raise data
        if isinstance(data, OSError):
            raise PhotoError(f"cannot be read: {reason(data)}")
        if self._restored and (sha256 := hashlib.sha256(data).hexdigest()) in self._restored:
            why = "was restored in place before"
            return Item(entry, skipped=True, reason=why, sha256=sha256)
        with timed(spent, "decode"):
            decoded = photo.decode(data, max_megapixels=treatment.max_megapixels)
        if max(decoded.width, decoded.height) > _MAX_SIDE_PX:
            size = f"{decoded.width}x{decoded.height}"
            raise PhotoError(f"{size}: sides of more than {_MAX_SIDE_PX} pixels are not supported")
        with timed(spent, "measure"):
            sharpness = metrics.sharpness(decoded.pixels)
            looks = guards.strong_blur(decoded.pixels) if treatment.guard else None
        if treatment.skip_sharp is not None and sharpness > treatment.skip_sharp:
            why = f"is sharp already: {sharpness:.3f} is above {treatment.skip_sharp:g}"
            copy = data if treatment.copy_skipped else None
            return Item(entry, skipped=True, reason=why, copy=copy, sharpness=sharpness)
        return Item(entry, decoded, looks=looks, sharpness=sharpness)

    def _read(self, entry: Entry, spent: dict[str, float]) -> bytes | OSError | PhotoError:
        # Before it is in memory: one file too large would end the process, and so the job, each time.
        most = self._treatment.max_megapixels
        if entry.size_bytes > most * 1e6 * _PIXEL_BYTES + _MORE_BYTES:
            size = f"{entry.size_bytes / 1e9:.1f} GB"
            return PhotoError(f"{size} are more than a photo of {most:g} megapixels takes")
        try:
            with timed(spent, "fetch", time.perf_counter):
                return self._source.read(entry.key, entry.etag)
        except MemoryError:
            return PhotoError(f"cannot be read: no memory for its {entry.size_bytes / 1e9:.1f} GB")
        except OSError as error:
            return error


class Restore:
    """Holds the model and restores packs of photos."""

    def __init__(self, model: Store, precision: Any, gpus: int = 0) -> None:
        from deblur.precision import policy, use_gpus
        from deblur.restorer import Restorer

        use_gpus(gpus)
        dtype_policy = policy(precision)
        self._restorer = Restorer(models.load(model, dtype_policy), dtype_policy)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the packs with restored photos."""
        for pack in from_table(batch):
            yield to_table(self._pack(pack))

    def _pack(self, pack: Sequence[Item]) -> list[Item]:
        spent: dict[str, float] = {}
        in_model = -self._restorer.seconds
        whole = [item for item in pack if item.photo is not None]
        try:
            with timed(spent, "tiles", time.perf_counter):
                restored = list(
                    self._restorer.restore(item.photo.pixels for item in whole if item.photo)
                )
        except MemoryError as error:
            why = f"the model has not enough memory: {reason(error)}"
            return [replace(item, photo=None, reason=item.reason or why) for item in pack]
        in_model += self._restorer.seconds
        spent |= {"model": in_model, "tiles": spent["tiles"] - in_model}
        pixels = max(sum(item.pixels for item in whole), 1)
        results = iter(restored)
        return [
            item
            if item.photo is None
            else replace(
                item,
                photo=item.photo.with_pixels(next(results)),
                tile_batch=self._restorer.tile_batch,
                spent=item.spent
                | {step: seconds * item.pixels / pixels for step, seconds in spent.items()},
            )
            for item in pack
        ]


class Deliver:
    """Encodes and puts the photos of a pack, then writes what became of them into the ledger."""

    def __init__(self, destination: Store, treatment: Treatment, *, in_place: bool = False) -> None:
        """Take the store, and whether it is also the photos': the ledger then knows outputs before they are there."""
        self._destination, self._treatment, self._in_place = destination, treatment, in_place

    def __call__(self, batch: pa.Table) -> dict[str, list[Any]]:
        """Return a row about each photo, for the driver. Raises DeblurError if the disk is full."""
        outcomes: list[dict[str, Any]] = []
        for pack in from_table(batch):
            try:
                rows = self._delivered(pack)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                raise DeblurError(
                    f"cannot write to {self._destination.uri}: {reason(error)}; "
                    "once it can be written to, the same command goes on where it was"
                ) from error
            outcomes += map(outcome, rows, pack)
        return {name: [each[name] for each in outcomes] for name in outcomes[0]} if outcomes else {}

    def _delivered(self, pack: Sequence[Item]) -> list[ledger.Row]:
        with ThreadPoolExecutor(_FETCH_THREADS) as threads:
            made = list(threads.map(self._made, pack))
            put = [row for row, data in made if data is not None]
            if put and self._in_place:
                ledger.write(self._destination, [ledger.begun(row) for row in put])
            rows = list(threads.map(self._put, pack, *zip(*made, strict=True)))
        ledger.write(self._destination, rows)
        return rows

    def _made(self, item: Item) -> tuple[ledger.Row, bytes | None]:
        """Return what the ledger will say if the output can be put, and the output, if there is one."""
        row = ledger.Row(
            item.entry.key,
            item.entry.etag,
            item.entry.size_bytes,
            self._treatment.model_id,
            self._treatment.settings_id,
            status="skipped" if item.skipped else "failed",
            reason=item.reason,
            # Else who merges the ledger's parts would forget that it was restored.
            output_sha256=item.sha256,
            sharpness_before=item.sharpness,
        )
        if item.copy is not None:
            # Without a hash, by which its photo would be taken for what was restored in place.
            row = replace(row, output_key=self._treatment.copy_key(row.key))
            # A photo put over itself would have another ETag, and be new to each run.
            return row, None if self._in_place and row.output_key == row.key else item.copy
        if item.photo is None:
            return row, None
        result = item.photo
        row = replace(row, width=result.width, height=result.height)
        try:
            with timed(item.spent, "measure"):
                sharpness = metrics.sharpness(result.pixels)
                why = (
                    guards.objection(item.looks, guards.strong_blur(result.pixels))
                    if item.looks is not None
                    else None
                )
            if why:
                raise PhotoError(f"{why}; --no-guard --retry-failed writes it all the same")
            with timed(item.spent, "encode"):
                data = photo.encode(self._treatment.written(result, row.key))
        except PhotoError as error:
            return replace(row, reason=str(error)), None
        output, sha256 = self._treatment.output_key(row.key), hashlib.sha256(data).hexdigest()
        row = replace(row, status="restored", output_key=output, output_sha256=sha256)
        return replace(row, sharpness_after=sharpness), data

    def _put(self, item: Item, row: ledger.Row, data: bytes | None) -> ledger.Row:
        if data is not None and row.output_key is not None:
            try:
                with timed(item.spent, "put", time.perf_counter):
                    self._destination.put(row.output_key, data)
            except OSError as error:
                if error.errno in _FULL:
                    raise
                row = replace(
                    row, status="failed", reason=f"cannot be written: {reason(error)}",
                    output_key=None, output_sha256=None, sharpness_after=None,
                )  # fmt: skip
        return replace(row, seconds=sum(item.spent.values()))
