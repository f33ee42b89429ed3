"""Megapixels a second of models, side by side: tiles cut, run through the network and merged.

    python -m tests.benchmarks.restorer PHOTOS BASELINE MODEL... [--photos 4] [--rounds 3]

Photos are decoded before, and the first round is a warm-up. Every model takes its turn in each round,
in the precision that this machine has; the ratio is that to the first model, round by round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from deblur import models, photo
from deblur.precision import policy
from deblur.restorer import Restorer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    files = sorted(Path(arguments.folder).rglob("*.jpg"))[: arguments.photos]
    pictures = [photo.decode(file.read_bytes()).pixels for file in files]
    megapixels = sum(picture.shape[0] * picture.shape[1] for picture in pictures) / 1e6
    dtype_policy = policy("auto")
    restorers = {
        name: Restorer(models.load(models.open_model(name), dtype_policy), dtype_policy)
        for name in arguments.models
    }
    print(f"{len(pictures)} photos of {megapixels:.1f} megapixels in all, {dtype_policy}")
    seconds: dict[str, list[float]] = {name: [] for name in restorers}
    for number in range(arguments.rounds + 1):
        for name, restorer in restorers.items():
            started = time.perf_counter()
            for _ in restorer.restore(pictures):
                pass
            if number:
                seconds[name].append(time.perf_counter() - started)
    first = seconds[arguments.models[0]]
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(first, taken, strict=True))
        rate = megapixels / statistics.median(taken)
        print(f"{name}: {rate:.2f} megapixels a second, {ratio:.2f} times those of the first")


if __name__ == "__main__":
    main()
