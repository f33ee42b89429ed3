"""What `deblur restore --dry-run` says: how much there is to do, and how long it may take."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from deblur import ledger
from deblur.storage import Entry, Store
from jobs.restore_plan import Plan

_SAMPLE = 50
_HEADER_BYTES = 256 << 10  # EXIF with its thumbnail, and profiles: a size comes before the pixels
_THREADS = 16
_PAUSE_S = 60.0  # between photos a longer time than this, besides the photo's own, was no work


def estimate(source: Store, destination: Store, plan: Plan, model_id: str) -> dict[str, Any]:
    """Return what there is to do: photos, bytes, and estimates of megapixels and seconds.

    Megapixels are those of the headers of a sample, scaled by bytes; seconds are at the rate that
    the ledger has of this model in this place, if it has any.
    """
    megapixels = _megapixels(source, plan.todo)
    rate = _rate(destination, model_id)
    known = megapixels is not None and rate is not None
    return {
        "to_restore": len(plan.todo),
        "refused": len(plan.refused),
        "bytes": plan.todo.size_bytes,
        "megapixels_estimate": None if megapixels is None else round(megapixels, 2),
        "megapixels_a_second_before": None if rate is None else round(rate, 3),
        "seconds_estimate": round(megapixels / rate, 1) if known and megapixels and rate else None,
    }


def _megapixels(source: Store, todo: Sequence[Entry]) -> float | None:
    """Return an estimate of the megapixels of all photos; None if no header can be read."""
    places = np.unique(np.linspace(0, len(todo) - 1, min(_SAMPLE, len(todo))).round().astype(int))
    sample = [todo[int(place)] for place in places] if len(todo) else []

    def size(entry: Entry) -> float | None:
        try:
            return _size(source.peek(entry.key, _HEADER_BYTES))
        except OSError:
            return None

    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = list(threads.map(size, sample))
    read = [(found, entry) for found, entry in zip(sizes, sample, strict=True) if found is not None]
    sample_bytes = sum(entry.size_bytes for _, entry in read)
    if not sample_bytes:
        return None
    total_bytes = sum(entry.size_bytes for entry in todo)
    return sum(found for found, _ in read) * total_bytes / sample_bytes


def _size(header: bytes) -> float | None:
    try:
        with Image.open(io.BytesIO(header)) as image:
            return image.width * image.height / 1e6
    except Exception:  # decoders raise whatever they like
        return None


def _rate(destination: Store, model_id: str) -> float | None:
    """Return the megapixels a second of earlier runs, from one photo's end to the next's."""
    columns = ["model_id", "status", "width", "height", "seconds", "finished_at"]

    def history() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ended, sizes, spent = [np.empty(0)], [np.empty(0)], [np.empty(0)]
        for table in ledger.read(destination, columns):
            ours = pc.and_(
                pc.equal(table["model_id"], model_id), pc.equal(table["status"], "restored")
            )
            rows = table.filter(ours)
            ended.append(rows["finished_at"].cast(pa.int64()).to_numpy() / 1e6)
            sizes.append(rows["width"].to_numpy() * rows["height"].to_numpy() / 1e6)
            spent.append(pc.fill_null(rows["seconds"], 0.0).to_numpy())
        return np.concatenate(ended), np.concatenate(sizes), np.concatenate(spent)

    times, megapixels, spent = ledger.steadily(history)
    order = np.argsort(times, kind="stable")
    pauses = np.diff(times[order])
    counted = pauses < _PAUSE_S + spent[order][1:]
    seconds = float(pauses[counted].sum())
    return float(megapixels[order][1:][counted].sum()) / seconds if seconds else None
