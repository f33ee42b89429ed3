"""Seconds and memory of a restore's plan: a resume with all done, and one with nothing done.

    python tests/benchmarks/planning.py [--keys 10000 100000 1000000]

The ledger lies in a local folder, as one merged part and as 1,000 parts; the inventory is a
generator, whose own time is in the figures, and shown. Each case runs in a process of its own.
`cpu` is that process's, which a busy machine does not change much; `peak` is the most resident
memory while planning, and `base` that before it, with Arrow imported.

Seconds and peak MB on a quiet machine, 2026-11 (`base` 74 MB):

    keys                             10,000        100,000       1,000,000
    the generator alone             0.02            0.17            1.65
    no ledger                       0.17  123       0.43  158       3.1  269
    1,000 parts, all done           0.88  145       1.2   186       6.0  457
    one part, all done              0.26  144       0.57  190       5.3  458
    merging 1,000 parts             1.5   174       1.8   205       3.3  377

`places` is whose each place in DESTINATION is, which is asked where something is to do: as many
seconds as the plan with all done (both 13 for 1,000,000 on a busy machine), and 315 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

PARTS = 1000
MODEL, SETTINGS = "m" * 16, "s" * 16
START = datetime(2026, 1, 1, tzinfo=UTC)


def inventory(first: int, last: int) -> Iterator[Any]:
    """Yield entries with keys of 42 letters and ETags as S3 has them."""
    from deblur.storage import Entry

    for number in range(first, last):
        etag = hashlib.md5(str(number).encode()).hexdigest()
        yield Entry(f"2016/{number // 5000:04}/holiday-photos/IMG_{number:07}.jpg", 3_000_000, etag)


def fill(folder: str, keys: int) -> dict[str, Any]:
    """Write a ledger of as many restored photos, in 1,000 parts."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from deblur import ledger
    from deblur.storage import open_store

    store, size = open_store(folder), keys // PARTS
    for part in range(PARTS):
        entries = list(inventory(part * size, (part + 1) * size))
        names = [entry.key for entry in entries]
        same = {
            "source_bytes": 3_000_000, "width": 4000, "height": 3000, "model_id": MODEL,
            "settings_id": SETTINGS, "status": "restored", "reason": None, "sharpness_before": 0.1,
            "sharpness_after": 0.2, "seconds": 1.5, "finished_at": START + timedelta(seconds=part),
        }  # fmt: skip
        columns = {name: [value] * size for name, value in same.items()} | {
            "key": names,
            "source_etag": [entry.etag for entry in entries],
            "output_key": names,
            "output_sha256": [hashlib.sha256(name.encode()).hexdigest() for name in names],
        }
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns, schema=ledger.SCHEMA), buffer, compression="zstd")
        name = f"{START + timedelta(seconds=part):%Y%m%dT%H%M%S.%fZ}-0.parquet"
        store.put(f"{ledger.FOLDER}/{name}", buffer.getbuffer())
    return {}


def plan(folder: str, keys: int) -> dict[str, Any]:
    """Plan; say what is left."""
    from deblur import ledger
    from deblur.storage import open_store

    found = ledger.plan(
        open_store(folder), inventory(0, keys), model_id=MODEL, settings_id=SETTINGS
    )
    return {"done": sum(found.before.values()), "todo": len(found.todo)}


def places(folder: str, keys: int) -> dict[str, Any]:
    """Compare the outputs with what lies in DESTINATION."""
    from deblur.holders import Holders
    from deblur.storage import open_store

    wanted = ((entry.key, entry.key) for entry in inventory(0, keys))
    return {"others": len(Holders(open_store(folder)).others(wanted))}


def bare(folder: str, keys: int) -> dict[str, Any]:
    """Only list."""
    for _ in inventory(0, keys):
        pass
    return {}


def compact(folder: str, keys: int) -> dict[str, Any]:
    """Merge the parts."""
    from deblur import ledger
    from deblur.storage import open_store

    return {"merged": ledger.compact(open_store(folder))}


def summarise(folder: str, keys: int) -> dict[str, Any]:
    """Do what `deblur ledger --csv` does."""
    from jobs import ledger

    return {"photos": ledger.run(ledger.Options(folder, csv=f"{folder}/x.csv"))["photos"]}


def measured(work: Callable[[str, int], dict[str, Any]], folder: str, keys: int) -> dict[str, Any]:
    """Run some work and say what it took."""
    import deblur.ledger  # noqa: F401

    def peak_mb() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    base_mb, started, cpu = peak_mb(), time.perf_counter(), time.process_time()
    result = work(folder, keys)
    return {
        "work": work.__name__, "keys": keys, "seconds": round(time.perf_counter() - started, 2),
        "cpu": round(time.process_time() - cpu, 2), "base_mb": base_mb, "peak_mb": peak_mb(),
    } | result  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    spawn = multiprocessing.get_context("spawn")

    def show(
        title: str, work: Callable[[str, int], dict[str, Any]], folder: str, keys: int
    ) -> None:
        with spawn.Pool(1) as pool:
            print(
                json.dumps({"case": title} | pool.apply(measured, (work, folder, keys))), flush=True
            )

    for keys in parser.parse_args().keys:
        with tempfile.TemporaryDirectory() as folder:
            show("the generator alone", bare, folder, keys)
            show("no ledger", plan, folder, keys)
            with spawn.Pool(1) as pool:
                pool.apply(fill, (folder, keys))
            show("1,000 parts, all done", plan, folder, keys)
            show("merging 1,000 parts", compact, folder, keys)
            show("one part, all done", plan, folder, keys)
            show("one part, places", places, folder, keys)
            show("summary and CSV", summarise, folder, keys)


if __name__ == "__main__":
    main()
