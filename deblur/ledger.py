"""One row a photo; plan = inventory - done.

The ledger is a folder of Parquet parts below a restored bucket. A part is written whole, after the
outputs that it speaks of. The latest row of a key counts.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from deblur.errors import UsageError
from deblur.storage import Entry, Store, reason

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


def settings_id(settings: Mapping[str, object]) -> str:
    """Return an id of everything besides the model that an output's bytes depend on."""
    text = "\n".join(f"{name}={settings[name]!r}" for name in sorted(settings))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(store: Store, rows: Sequence[Row]) -> str:
    """Write one part and return its key, made of the time and a hash of what the rows are about."""
    now = datetime.now(UTC)
    columns = [{**asdict(row), "finished_at": row.finished_at or now} for row in rows]
    table = pa.Table.from_pylist(columns, schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    subject = hashlib.sha256(
        "\0".join(row.key for row in rows).encode("utf-8", "surrogatepass")
    ).hexdigest()[:12]
    key = f"{FOLDER}/{now:%Y%m%dT%H%M%S.%fZ}-{subject}.parquet"
    store.put(key, buffer.getbuffer())
    return key


def read(store: Store, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Yield the parts, oldest first. A place without a ledger yields nothing."""
    for entry in sorted(store.list(FOLDER), key=lambda entry: entry.key):
        if not entry.key.endswith(".parquet"):
            continue
        try:
            yield pq.read_table(pa.BufferReader(store.read(entry.key)), columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise UsageError(
                f"{store.uri}/{entry.key}, a part of the ledger, cannot be read: {reason(error)}; "
                "without it the photos that it speaks of are restored again"
            ) from error


def done(
    store: Store, *, model_id: str, settings_id: str, retry_failed: bool = False
) -> dict[str, tuple[str, str]]:
    """Return key -> (source_etag, status) of what this model with these settings has dealt with."""
    found: dict[str, tuple[str, str]] = {}
    for table in read(store, ["key", "source_etag", "model_id", "settings_id", "status"]):
        for key, etag, model, settings, status in zip(
            *(column.to_pylist() for column in table.columns), strict=True
        ):
            if (model, settings) == (model_id, settings_id):
                found[key] = (etag, status)
            else:
                found.pop(key, None)  # a later run with another model has replaced that output
    if retry_failed:
        found = {key: value for key, value in found.items() if value[1] != "failed"}
    return found


def remaining(inventory: Iterable[Entry], done: Mapping[str, tuple[str, str]]) -> Iterator[Entry]:
    """Yield the entries that the ledger has not, or has with another ETag."""
    for entry in inventory:
        if done.get(entry.key, ("", ""))[0] != entry.etag:
            yield entry
