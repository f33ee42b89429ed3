"""Photos a second that one core makes for training, and what that means for accelerators.

    python tests/benchmarks/train_input.py PHOTOS [--size 256] [--seconds 5]

PHOTOS is a folder of sharp photos. Their middles are made into pairs first. One process with one
thread decodes and draws examples; reading from disk, Ray and stacking are not in it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rate(make: Callable[[int], object], seconds: float) -> float:
    """Return calls a second: the median of five stretches, after one of warm-up."""
    rates = []
    for stretch in range(6):
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / 5:
            make(1000 * stretch + count)
            count += 1
        rates.append(count / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5)
    arguments = parser.parse_args()

    import cv2
    from PIL import Image

    from deblur import blur, pairs, photo, pictures

    cv2.setNumThreads(1)
    paths = sorted(path for path in Path(arguments.photos).rglob("*.jpg"))[:64]
    files = [path.read_bytes() for path in paths]
    decoded = [photo.decode(data).pixels for data in files]
    large = [one for one in decoded if min(one.shape[:2]) >= arguments.size]
    megapixels = statistics.mean(one.shape[0] * one.shape[1] for one in large) / 1e6
    print(
        f"{len(large)} photos of {megapixels:.2f} megapixels on average, crops of {arguments.size}"
    )
    crops = [pairs.centre_crop(one, arguments.size) for one in large]
    coded = [pictures.encode_lossless(crop) for crop in crops]
    jpegs = []
    for one in large:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "JPEG", quality=95)
        jpegs.append(buffer.getvalue())
    for recipe in blur.RECIPES:
        for name, make in _ways(recipe, arguments.size, crops, coded, jpegs).items():
            print(f"{recipe:9} {name:21} {rate(make, arguments.seconds):7.1f} a second and core")


def _ways(
    recipe: str, size_px: int, crops: list[Any], coded: list[bytes], jpegs: list[bytes]
) -> dict[str, Callable[[int], object]]:
    """Return what makes an example of an epoch: stored pairs, sharp crops, whole photos."""
    from deblur import blur, photo, pictures
    from deblur.examples import Maker

    maker, numbers = Maker(recipe, size_px, 0), itertools.cycle(range(len(crops)))
    blurred = [
        pictures.encode_lossless(blur.degrade(crop, blur.draw(recipe, seed=0, key=str(index))))
        for index, crop in enumerate(crops)
    ]

    def stored(epoch: int) -> object:
        index = next(numbers)
        both = (pictures.decode_lossless(each[index]) for each in (coded, blurred))
        return maker.of_pair(*both, str(index), epoch)

    def anew(epoch: int) -> object:
        index = next(numbers)
        return maker.of_photo(pictures.decode_lossless(coded[index]), str(index), epoch)

    def whole(epoch: int) -> object:
        index = next(numbers)
        return maker.of_photo(photo.decode(jpegs[index]).pixels, str(index), epoch)

    return {"stored pairs": stored, "pairs, blurred anew": anew, "photos, blurred anew": whole}


if __name__ == "__main__":
    main()
