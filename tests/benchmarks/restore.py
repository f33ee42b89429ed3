"""Megapixels a second of `deblur restore` against the bare model loop on the same tiles.

    python tests/benchmarks/restore.py PHOTOS MODEL [--rounds 3]

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
import statistics
import tempfile
import time
from pathlib import Path


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    import pyarrow.parquet as pq

    from deblur import models, tiles
    from deblur.networks import network
    from deblur.restorer import TILE_BATCH
    from deblur.storage import open_store
    from jobs import restore, runtime

    shape = network(models.read_card(open_store(arguments.model)).network)
    ratios = []
    with runtime.cluster(runtime.Cluster()):
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
                options = restore.Options(
                    arguments.photos, folder, model=arguments.model, no_guard=True
                )
                restore.run(options)
                rows = pq.read_table(Path(folder) / "_deblur" / "ledger").to_pylist()
            done = sorted(
                (row for row in rows if row["status"] == "restored"),
                key=lambda row: row["finished_at"],
            )
            first = done[0]["finished_at"]
            counted = [row for row in done if row["finished_at"] > first]
            seconds = (done[-1]["finished_at"] - first).total_seconds()
            megapixels = sum(row["width"] * row["height"] for row in counted) / 1e6
            count = sum(
                len(
                    tiles.plan(
                        row["height"],
                        row["width"],
                        tile_px=shape.tile_px,
                        overlap_px=shape.overlap_px,
                    )
                )
                for row in counted
            )
            batches = max(count // TILE_BATCH, 1)
            with multiprocessing.get_context("spawn").Pool(1) as process:
                plain = process.apply(bare, (arguments.model, batches))
            plain *= count / TILE_BATCH / batches
            ratios.append(plain / seconds)
            print(
                f"{megapixels:.1f} megapixels, {count} tiles: bare {megapixels / plain:.2f}, "
                f"job {megapixels / seconds:.2f} megapixels/s, ratio {ratios[-1]:.2f}", flush=True,
            )  # fmt: skip
    print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
