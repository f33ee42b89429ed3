"""The pair: its Arrow schema, making one, and a shard of many.

A shard is the unit of work. It is written whole, named by its number, and carries in its own
metadata what was rejected and the sum of its rows' digests, so that a rerun needs nothing but the
shards to know what is done.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deblur import __version__, ahead, blur, photo
from deblur.errors import PhotoError, UsageError
from deblur.storage import Store

SCHEMA_VERSION = 1
DATASET = "dataset.json"
REJECTED = "rejected.parquet"

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("source_sha256", pa.string(), nullable=False),
        pa.field("sharp", pa.binary(), nullable=False),
        pa.field("blurred", pa.binary(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),
    ]
)
REJECTED_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("key", "split", "reason")]
)

_META = b"deblur"
# A shard's footer has some 4 kB, and 8 MB of pictures lie before it that nobody needs for its facts.
_FOOTER_BYTES = 1 << 16
_FACTS_THREADS = 16  # which wait for a store's latency


@dataclass(frozen=True)
class Pair:
    """One row. `sharp` and `blurred` are losslessly coded 8-bit RGB; `recipe` is the drawn degradation as JSON."""

    key: str
    category: str
    source_sha256: str
    sharp: bytes
    blurred: bytes
    recipe: str

    @property
    def digest(self) -> int:
        """256 bits of everything in the row."""
        hasher = hashlib.sha256()
        for value in asdict(self).values():
            data = value.encode() if isinstance(value, str) else value
            hasher.update(len(data).to_bytes(8, "little") + data)
        return int.from_bytes(hasher.digest(), "little")


@dataclass(frozen=True)
class ShardFacts:
    """What a shard says of itself.

    Attributes:
        plan_id: hash of everything that decides its bytes; a shard of another plan is not this
            shard.
        categories: number of pairs by category.
        rejected: key -> reason.
        fingerprint: sum of the rows' digests modulo 2^256, in hex: the order of rows does not
            matter.
    """

    plan_id: str
    categories: dict[str, int]
    rejected: dict[str, str]
    fingerprint: str

    @property
    def pairs(self) -> int:
        """Number of rows."""
        return sum(self.categories.values())


@dataclass(frozen=True)
class Dataset:
    """`dataset.json`: what the pairs are and where they came from."""

    source: str
    recipe: str
    seed: int
    size_px: int
    counts: dict[str, dict[str, int]]
    rejected: int
    fingerprint: str
    plan_id: str
    schema_version: int = SCHEMA_VERSION
    made_by: str = f"deblur {__version__}"

    def total(self, split: str) -> int:
        """Number of pairs of a split."""
        return sum(self.counts.get(split, {}).values())


def centre_crop(pixels: np.ndarray, size_px: int) -> np.ndarray:
    """Return the middle (size_px, size_px, 3) of a photo, as the report took it.

    Raises:
        PhotoError: if the photo is smaller than the crop.
    """
    height, width = pixels.shape[:2]
    if min(height, width) < size_px:
        raise PhotoError(f"{width}x{height} is smaller than the crop of {size_px}x{size_px}")
    top, left = (height - size_px) // 2, (width - size_px) // 2
    return np.ascontiguousarray(pixels[top : top + size_px, left : left + size_px])


def make_pair(
    data: bytes, *, key: str, category: str, recipe: str, seed: int, size_px: int
) -> Pair:
    """Make the pair of one photo's bytes. Grey photos become RGB, and 16 bits become 8.

    Raises:
        PhotoError: if the photo does not decode, is smaller than the crop, or has transparent
        pixels in it.
    """
    source = photo.decode(data)
    sharp = centre_crop(photo.to_uint8(source.pixels), size_px)
    if source.alpha is not None:
        opaque = np.iinfo(source.alpha.dtype).max
        if (centre_crop(source.alpha[..., None], size_px) < opaque).any():
            raise PhotoError("has transparent pixels in the crop")
    degradation = blur.draw(recipe, seed=seed, key=key)
    return Pair(
        key=key,
        category=category,
        source_sha256=hashlib.sha256(data).hexdigest(),
        sharp=photo.encode_lossless(sharp),
        blurred=photo.encode_lossless(blur.degrade(sharp, degradation)),
        recipe=degradation.to_json(),
    )


def write_shard(
    store: Store, name: str, pairs: Sequence[Pair], rejected: dict[str, str], plan_id: str
) -> ShardFacts:
    """Write one shard whole, and return what it says of itself."""
    categories: dict[str, int] = {}
    for pair in pairs:
        categories[pair.category] = categories.get(pair.category, 0) + 1
    fingerprint = sum(pair.digest for pair in pairs) % (1 << 256)
    facts = ShardFacts(plan_id, dict(sorted(categories.items())), rejected, f"{fingerprint:064x}")
    columns = {name: [getattr(pair, name) for pair in pairs] for name in SCHEMA.names}
    schema = SCHEMA.with_metadata({_META: json.dumps(asdict(facts), sort_keys=True)})
    buffer = io.BytesIO()
    # The pictures are coded already; what is left does not pay for the time of a compressor.
    pq.write_table(
        pa.table(columns, schema=schema),
        buffer,
        compression="none",
        use_dictionary=["category"],
        write_statistics=["key", "category"],  # of pictures they cost 40 ms a shard
    )
    store.put(name, buffer.getbuffer())
    return facts


def shard_facts(store: Store, names: Iterable[str]) -> Iterator[ShardFacts | None]:
    """Yield what each shard says of itself, in order; None where it is not there, or damaged."""
    with ThreadPoolExecutor(_FACTS_THREADS) as threads:
        yield from ahead.results(threads, partial(_facts, store), names, 2 * _FACTS_THREADS)


def _facts(store: Store, name: str) -> ShardFacts | None:
    try:
        end = store.peek(name, -_FOOTER_BYTES)
        # Parquet ends with a footer, the footer's length in four bytes, and PAR1.
        length = int.from_bytes(end[-8:-4], "little") + 8
        if length > len(end) == _FOOTER_BYTES:
            end = store.peek(name, -length)
        metadata = pq.read_schema(pa.BufferReader(end)).metadata or {}
    except FileNotFoundError:
        return None
    except pa.ArrowException:
        return None  # not a shard of ours, or damaged: it is made again
    text = metadata.get(_META)
    return ShardFacts(**json.loads(text)) if text else None


def read_shard(data: bytes) -> list[Pair]:
    """Return the rows of one shard's bytes."""
    table = pq.read_table(pa.BufferReader(data), columns=SCHEMA.names)
    return [Pair(**row) for row in table.to_pylist()]


def write_rejected(store: Store, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write (key, split, reason) of each photo that became no pair."""
    columns = list(zip(*sorted(rows), strict=True)) or [(), (), ()]
    table = pa.table([pa.array(column, pa.string()) for column in columns], schema=REJECTED_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    store.put(REJECTED, buffer.getbuffer())


def write_dataset(store: Store, dataset: Dataset) -> None:
    """Write `dataset.json`: the mark that the pairs are complete."""
    store.put(DATASET, (json.dumps(asdict(dataset), indent=2, sort_keys=True) + "\n").encode())


def read_dataset(store: Store) -> Dataset:
    """Read `dataset.json`.

    Raises:
        UsageError: if there is none, or no such place, or it is of another version.
    """
    try:
        values: Any = json.loads(store.read(DATASET))
    except (FileNotFoundError, NotADirectoryError) as error:
        next(store.list(), None)  # which says so where there is no such place
        raise UsageError(
            f"{store.uri} holds no finished pairs (no {DATASET}); make them with `deblur preprocess`"
        ) from error
    except OSError as error:
        raise UsageError(f"{store.uri}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{store.uri}/{DATASET} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{store.uri}/{DATASET} is damaged: it is no JSON object")
    version = values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{store.uri} has pairs of schema version {version}; this deblur reads version {SCHEMA_VERSION}"
        )
    known = {field.name for field in fields(Dataset)}
    try:
        return Dataset(**{name: value for name, value in values.items() if name in known})
    except TypeError as error:
        raise UsageError(f"{store.uri}/{DATASET} is damaged: {error}") from error


def shards(store: Store, split: str) -> list[str]:
    """Return the names of a split's shards, in order."""
    return sorted(entry.key for entry in store.list(split) if entry.key.endswith(".parquet"))
