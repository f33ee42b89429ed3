"""Photos a second of `deblur preprocess` against a bare loop of as many processes.

    python tests/benchmarks/preprocess.py PHOTOS [--rounds 5]

The bare loop decodes, crops, blurs and codes with OpenCV and the same coder, in a pool of processes
with one thread each, and writes nothing. The job also lists, hashes, plans, fetches, writes Parquet
and accounts. Both are warm: processes are up and have imported what they need. Rounds alternate;
the figure is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import cv2

from deblur.photo import encode_lossless
from jobs import preprocess, runtime

SIZE_PX = 256


def bare(path: str) -> int:
    """Make one pair the shortest way; return its bytes."""
    photo = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
    if photo is None or min(photo.shape[:2]) < SIZE_PX:
        return 0
    top, left = (photo.shape[0] - SIZE_PX) // 2, (photo.shape[1] - SIZE_PX) // 2
    sharp = photo[top : top + SIZE_PX, left : left + SIZE_PX].copy()
    return len(encode_lossless(sharp)) + len(encode_lossless(cv2.blur(sharp, (14, 14))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    processes = os.cpu_count() or 1
    paths = sorted(str(path) for path in Path(arguments.photos).rglob("*.jpg"))
    ratios = []
    with (
        multiprocessing.get_context("spawn").Pool(processes, cv2.setNumThreads, (1,)) as pool,
        runtime.cluster(runtime.Cluster()),
        tempfile.TemporaryDirectory() as folder,
    ):
        for round_ in range(arguments.rounds + 1):  # the first warms both up
            started = time.perf_counter()
            pairs = sum(size > 0 for size in pool.imap_unordered(bare, paths, chunksize=16))
            bare_rate = pairs / (time.perf_counter() - started)

            target = Path(folder) / "pairs"
            options = preprocess.Options(arguments.photos, str(target), train=100_000, test=100_000)
            started = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                summary = preprocess.run(options)
            rate = (summary["train"] + summary["test"]) / (time.perf_counter() - started)
            shutil.rmtree(target)
            if round_:
                ratios.append(rate / bare_rate)
                print(
                    f"bare {bare_rate:6.1f} photos/s, job {rate:6.1f} photos/s, ratio {ratios[-1]:.2f}",
                    flush=True,
                )
    print(f"{pairs} photos, {processes} processes: median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
