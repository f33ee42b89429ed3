"""Megapixels a second of `deblur restore` against the bare model loop on the same tiles.

    python -m tests.benchmarks.restore PHOTOS MODEL [--rounds 3]

Twice a round: from folder to folder, and within SeaweedFS on this machine, which takes its share of
the cores.

The bare loop calls the compiled network on as many full batches of tiles as the photos have, in a
process that does nothing else. The job also lists, fetches, decodes, cuts, merges, encodes, puts
and accounts. Its time counts from the first photo out to the last, so that starting Ray and loading
the model are not in it; the pixels of the first pack are not either.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import stores


def bare(model: str, batches: int) -> float:
    """Return the seconds of so many full batches of tiles."""
    import numpy as np

    from deblur import models
    from deblur.networks import network
    from deblur.precision import policy
    from deblur.restorer import TILE_BATCH, compiled
    from deblur.storage import open_store

    loaded = models.load(open_store(model), policy("auto"))
    size = network(loaded.card.network).tile_px
    call = compiled(loaded.generator)
    tiles = np.random.default_rng(0).random((TILE_BATCH, size, size, 3), dtype=np.float32)
    call(tiles)
    call(tiles)
    started = time.perf_counter()
    for _ in range(batches):
        call(tiles)
    return time.perf_counter() - started


@contextlib.contextmanager
def places(photos: str) -> Iterator[dict[str, tuple[str, str]]]:
    """Yield (source, folder of the destinations) by name: local, and a real store with the photos."""
    from deblur.storage import open_store

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": stores.IDENTITIES["testing"][0],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with tempfile.TemporaryDirectory() as folder:
        found = {"local": (photos, f"{folder}/out")}
        if stores.why_no_seaweedfs():
            yield found
            return
        Path(folder, "weed").mkdir()
        server = stores.SeaweedFS(Path(folder, "weed"))
        os.environ["AWS_ENDPOINT_URL_S3"] = server.endpoint
        try:
            server.start()
            here, there = open_store(photos), open_store("s3://tests/in")
            for entry in here.list():
                there.put(entry.key, here.read(entry.key))
            yield found | {"SeaweedFS": ("s3://tests/in", "s3://tests/out")}
        finally:
            server.kill()


def job(source: str, destination: str, model: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Restore; return the summary and the rows of what was restored, by time."""
    from deblur import ledger
    from deblur.storage import open_store
    from jobs import restore

    with contextlib.redirect_stderr(io.StringIO()):
        summary = restore.run(restore.Options(source, destination, model=model, no_guard=True))
    rows = [row for table in ledger.current(open_store(destination)) for row in table.to_pylist()]
    done = [row for row in rows if row["status"] == "restored"]
    return summary, sorted(done, key=lambda row: row["finished_at"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    from deblur import models, tiles
    from deblur.networks import network
    from deblur.restorer import TILE_BATCH
    from deblur.storage import open_store
    from jobs import runtime
    from jobs.restore_report import shares

    tiling = network(models.read_card(open_store(arguments.model)).network).tiling
    if tiling.most_px > tiling.tile_px:
        parser.error(f"{arguments.model}: expected a network with tiles of one size, as pix2pix")
    ratios: dict[str, list[float]] = {}
    with places(arguments.photos) as where, runtime.cluster(runtime.Cluster()):
        for number in range(arguments.rounds):
            for name, (source, destination) in where.items():
                summary, rows = job(source, f"{destination}/{number}", arguments.model)
                seconds = (rows[-1]["finished_at"] - rows[0]["finished_at"]).total_seconds()
                if not seconds:
                    parser.error("so few photos that all were one pack: 20 megapixels are enough")
                counted = [row for row in rows if row["finished_at"] > rows[0]["finished_at"]]
                megapixels = sum(row["width"] * row["height"] for row in counted) / 1e6
                count = sum(len(tiles.plan(row["height"], row["width"], tiling)) for row in counted)
                batches = max(count // TILE_BATCH, 1)
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    plain = process.apply(bare, (arguments.model, batches))
                plain *= count / TILE_BATCH / batches
                ratios.setdefault(name, []).append(plain / seconds)
                print(
                    f"{name}: {megapixels:.1f} megapixels, {count} tiles: "
                    f"bare {megapixels / plain:.2f}, job {megapixels / seconds:.2f} megapixels/s, "
                    f"ratio {plain / seconds:.2f}; {shares(summary['this_run']['seconds_in'])}",
                    flush=True,
                )
    for name, found in ratios.items():
        print(f"{name}: median ratio {statistics.median(found):.2f}")


if __name__ == "__main__":
    main()
