"""Where a run's photos come from: pairs, or any folder or bucket of sharp photos."""

from __future__ import annotations

import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa

from deblur import keys, pairs, photo, pictures, places365
from deblur.errors import PhotoError, UsageError
from deblur.storage import Entry, Store, reason
from jobs import train_run
from jobs.runtime import RETRIES, bounded_retries

if TYPE_CHECKING:
    from jobs.train_pieces import Pieces

_FETCH_THREADS = 8
_CHUNK_PHOTOS = 32
# What is larger is shrunk when it is read, once: at their full size photos of cameras are soft, and
# decoding one of 12 megapixels takes 120 ms for each crop.
_MOST_PIXELS = 4_000_000
# Ray 2.60 reads footers in 32 processes, whatever there is to read, ten files at a time in each: one shard
# was there after 4.4 s with one of them, after 7.4 with 32, on two cores.
_FOOTERS_EACH, _MOST_FOOTER_READERS = 10, 32


class Source(ABC):
    """What there is to train on.

    Attributes:
        photos: how many.
        fingerprint: of their contents.
        blur: the recipe of the blur that they come with, if any.
        rejected: key -> why a photo cannot serve.
    """

    photos: int
    fingerprint: str
    blur: str | None = None
    rejected: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def pieces(self) -> Pieces:
        """Return the coded photos, in the object store."""


class Pairs(Source):
    """Training pairs, whose blur stays or, `anew`, is left out. Nothing is read before `pieces`."""

    def __init__(self, store: Store, dataset: pairs.Dataset, *, anew: bool) -> None:
        self.photos, self.fingerprint = dataset.total("train"), dataset.fingerprint
        self.blur = dataset.recipe
        self._store, self._anew = store, anew
        if not self.photos:
            raise UsageError(f"{store.uri} has no training pairs")

    def pieces(self) -> Pieces:
        """Read the coded pairs."""
        import ray.data

        from jobs import train_pieces

        filesystem, path = self._store.arrow()
        names = pairs.shards(self._store, "train")
        if not names:
            raise UsageError(
                f"{self._store.uri} says that it has {self.photos} training pairs, and its shards are gone: "
                "run the `deblur preprocess` that made them again"
            )
        footer_readers = min(-(-len(names) // _FOOTERS_EACH), _MOST_FOOTER_READERS)
        os.environ["RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"] = str(footer_readers)
        coded = ray.data.read_parquet([f"{path}/{name}" for name in names], filesystem=filesystem)
        columns = ["key", "sharp"] if self._anew else ["key", "sharp", "blurred"]
        tables = coded.select_columns(columns).materialize().to_arrow_refs()
        facts = train_pieces.facts(tables)
        there = sum(map(len, facts))
        if there != self.photos:
            raise UsageError(
                f"{self._store.uri} says that it has {self.photos} training pairs, and {there} are there: "
                "run the `deblur preprocess` that made them again"
            )
        return train_pieces.cut(tables, facts)


class Photos(Source):
    """A tree of sharp photos, each read once; those that cannot serve are rejected with a reason."""

    def __init__(self, store: Store, size_px: int) -> None:
        """Read those of a store whose sides have at least so many pixels."""
        import ray.data

        from jobs import train_pieces

        found = _photos(store.list())
        entries = [entry for entry in found if not keys.nameless(entry.key)]
        if not found:
            raise UsageError(
                f"{store.uri} has neither pairs (no {pairs.DATASET}) nor photos, whose names end in "
                f"{', '.join(sorted(places365.PHOTO_EXTENSIONS))}"
            )
        if not entries:
            raise UsageError(f"the name of none of the {len(found)} photos of {store.uri} is UTF-8")
        chunks = [
            {"chunk": entries[start : start + _CHUNK_PHOTOS]}
            for start in range(0, len(entries), _CHUNK_PHOTOS)
        ]
        with bounded_retries():
            read = ray.data.from_items(chunks, override_num_blocks=len(chunks)).map_batches(
                Gather(store, size_px), batch_size=1, num_cpus=1, max_retries=RETRIES
            )
        tables = read.materialize().to_arrow_refs()
        facts = train_pieces.facts(tables)
        self.rejected = {fact.key: fact.reason for rows in facts for fact in rows if fact.reason}
        # Of photos with the same content the first serves: another one held out would have been trained on.
        first: dict[str, str] = {}
        for fact in sorted(fact for rows in facts for fact in rows):
            if not fact.reason and first.setdefault(fact.sha256, fact.key) != fact.key:
                self.rejected[fact.key] = f"same content as {first[fact.sha256]}"
        nameless = (keys.shown(entry.key) for entry in found if keys.nameless(entry.key))
        self.rejected |= dict.fromkeys(nameless, keys.NOT_UTF8)
        contents = sorted(f"{key}\0{sha256}" for sha256, key in first.items())
        if not contents:
            some = "; ".join(f"{key}: {why}" for key, why in sorted(self.rejected.items())[:3])
            raise UsageError(f"none of the {len(found)} photos of {store.uri} can be used: {some}")
        text = "\n".join(contents).encode("utf-8", "surrogatepass")
        self.photos, self.fingerprint = len(contents), hashlib.sha256(text).hexdigest()
        left = [
            [fact._replace(reason=self.rejected.get(fact.key)) for fact in rows] for rows in facts
        ]
        self._pieces = train_pieces.cut(tables, left)

    def pieces(self) -> Pieces:
        """Return what was read."""
        return self._pieces


def _photos(listed: Iterable[Entry]) -> list[Entry]:
    """Return what may be a photo: the sample sheets of runs that lie among the photos are none."""
    found: list[Entry] = []
    runs: set[str] = set()
    for entry in listed:
        folder, _, name = entry.key.rpartition("/")
        if name == train_run.CONFIGURATION:
            runs.add(folder)
        elif places365.is_photo(entry.key):
            found.append(entry)
    sheets = ((entry, _SHEET.fullmatch(entry.key)) for entry in found)
    return [entry for entry, sheet in sheets if sheet is None or (sheet[1] or "") not in runs]


_SHEET = re.compile("(?:(.*)/)?" + train_run.SHEET.format("[0-9]{8}"), re.DOTALL)


class Gather:
    """Reads a chunk of photos and makes sure that each can be decoded and is large enough."""

    def __init__(self, store: Store, size_px: int) -> None:
        self._store, self._size_px = store, size_px

    def __call__(self, batch: dict[str, Sequence[Sequence[Entry]]]) -> pa.Table:
        """Return a table of `key`, `sharp`, `sha256`, `reason`."""
        return pa.Table.from_pylist(list(self._rows(batch)), schema=_SCHEMA)

    def _rows(self, batch: dict[str, Sequence[Sequence[Entry]]]) -> Iterator[dict[str, Any]]:
        cv2.setNumThreads(1)  # one task, one core
        for chunk in batch["chunk"]:
            with ThreadPoolExecutor(_FETCH_THREADS) as threads:
                for entry, data in zip(chunk, threads.map(self._read, chunk), strict=True):
                    row = {"key": entry.key, "sharp": b"", "sha256": "", "reason": None}
                    try:
                        yield row | self._usable(data)
                    except PhotoError as error:
                        yield row | {"reason": str(error)}

    def _read(self, entry: Entry) -> bytes | OSError:
        try:
            return self._store.read(entry.key, entry.etag)
        except OSError as error:
            return error

    def _usable(self, data: bytes | OSError) -> dict[str, Any]:
        if isinstance(data, OSError):
            raise PhotoError(f"cannot be read: {reason(data)}")
        decoded = photo.decode(data)
        if decoded.alpha is not None and (decoded.alpha < np.iinfo(decoded.alpha.dtype).max).any():
            raise PhotoError("has transparent pixels")
        pixels = photo.to_uint8(decoded.pixels)
        while (
            pixels.shape[0] * pixels.shape[1] > _MOST_PIXELS
            and min(pixels.shape[:2]) >= 2 * self._size_px
        ):
            half = (pixels.shape[1] // 2, pixels.shape[0] // 2)
            pixels = cv2.resize(pixels, half, interpolation=cv2.INTER_AREA)
        if min(pixels.shape[:2]) < self._size_px:
            size = f"{decoded.width}x{decoded.height}"
            raise PhotoError(f"{size} is smaller than the crop of {self._size_px} pixels")
        shrunk = pixels.shape[:2] != decoded.pixels.shape[:2]
        strip = pixels[: pictures.MOST_SIDE_PX, : pictures.MOST_SIDE_PX]
        coded = photo.encode_lossless(strip) if shrunk else data
        return {"sharp": coded, "sha256": hashlib.sha256(data).hexdigest()}


_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("sharp", pa.large_binary()),
        ("sha256", pa.string()),
        ("reason", pa.string()),
    ]
)
