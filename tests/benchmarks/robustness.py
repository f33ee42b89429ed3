"""PSNR of a model where its blur is not quite what it was trained for, beside Wiener filters that know.

    python -m tests.benchmarks.robustness TRAINING_PHOTOS TEST_PHOTOS [--model box14] [--photos 60]

Of both folders the middle 256 x 256 pixels of photos serve, drawn by name; if they are the same
folder, of other photos. Three sweeps of a box of
14 x 14 pixels: its side, JPEG of the blurred photo, and noise. The Wiener filter is told the side,
its prior and its noise are those that are best on the training photos at that very point; the last
column is the filter that takes every photo for an exact box of 14. For `photo`, which does not know
boxes, the sweeps are of a Gaussian, of 2 pixels where its width is not what varies.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from deblur import blur, classical, metrics, models, pairs, photo, pictures, seeds
from deblur.precision import policy
from deblur.restorer import Restorer

SIZE_PX = 256
NOISES = np.array([1 / 12, 0.3, 1, 2, 4, 8, 16, 32, 64, 128]) / 255**2
Blurring = Callable[[np.ndarray, int], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("training_photos")
    parser.add_argument("test_photos")
    parser.add_argument("--model", default="box14")
    parser.add_argument("--photos", type=int, default=60)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    training = crops(arguments.training_photos, arguments.photos)
    same = arguments.test_photos == arguments.training_photos
    test = crops(arguments.test_photos, arguments.photos * (1 + same))[-arguments.photos :]
    dtype_policy = policy("auto")
    model = models.load(models.open_model(arguments.model), dtype_policy)
    restorer = Restorer(model, dtype_policy)
    boxes = model.card.recipe.startswith("box14")
    print(f"{model.card.name}, id {model.card.model_id}, {dtype_policy}; {len(test)} test photos")
    last = "Wiener of an exact " + ("box of 14" if boxes else "Gaussian of 2")
    print(f"{'':14}  blurred  {model.card.name:>7}   Wiener  {last}")
    plain = _wiener(_box(14) if boxes else _gaussian(2.0), training, NOISES[0])
    for name, kernel, degrade in _sweeps(boxes):
        blurred = [degrade(one, index) for index, one in enumerate(test)]
        tuned = _tuned(kernel, training, degrade)
        figures = [
            _psnr(blurred, test),
            _psnr(list(restorer.restore(blurred)), test),
            _psnr([_filtered(tuned, one) for one in blurred], test),
            _psnr([_filtered(plain, one) for one in blurred], test),
        ]
        print(f"{name:14}  " + "  ".join(f"{value:7.2f}" for value in figures), flush=True)


def crops(folder: str, count: int) -> list[np.ndarray]:
    """Return the middles of photos that are large enough, drawn by name."""
    paths = sorted(Path(folder).rglob("*.jpg"), key=lambda path: seeds.digest(0, path.name, "crop"))
    found: list[np.ndarray] = []
    for path in paths:
        pixels = photo.to_uint8(photo.decode(path.read_bytes()).pixels)
        if min(pixels.shape[:2]) >= SIZE_PX:
            found.append(pairs.centre_crop(pixels, SIZE_PX))
        if len(found) == count:
            break
    return found


def _sweeps(boxes: bool) -> Iterator[tuple[str, np.ndarray, Blurring]]:
    """Yield name, the kernel's taps, and what is done to a photo of a number."""
    sizes = (6, 10, 12, 13, 14, 15, 16, 20, 24) if boxes else (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    make, middle = (_box, 14) if boxes else (_gaussian, 2.0)
    for size in sizes:
        taps = make(size)  # type: ignore[operator]
        yield (
            f"{'side' if boxes else 'sigma'} {size}",
            taps,
            lambda one, _, taps=taps: _blurred(one, taps),
        )
    taps = make(middle)  # type: ignore[operator]
    for quality in (100, 95, 90, 80, 70, 60, 50):
        yield (
            f"JPEG {quality}",
            taps,
            lambda one, _, quality=quality: _jpeg(_blurred(one, taps), quality),
        )
    for sigma in (0.5, 1, 2, 4, 8):
        yield (
            f"noise {sigma}",
            taps,
            lambda one, index, sigma=sigma: _noisy(_blurred(one, taps), sigma, index),
        )


def _box(side: int) -> np.ndarray:
    # As cv2.blur has it: an even side reaches one pixel further to the left.
    return np.append(np.ones(side), np.zeros(1 - side % 2)).astype(np.float32) / side


def _gaussian(sigma: float) -> np.ndarray:
    taps = blur.separable(blur.Degradation("gaussian", {"sigma_px": sigma}))
    assert taps is not None
    return taps


def _blurred(sharp: np.ndarray, taps: np.ndarray) -> np.ndarray:
    filtered = cv2.sepFilter2D(
        sharp.astype(np.float32), -1, taps, taps, borderType=cv2.BORDER_REFLECT_101
    )
    return cv2.convertScaleAbs(filtered)


def _jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])


def _noisy(picture: np.ndarray, sigma: float, index: int) -> np.ndarray:
    noise = seeds.generator(0, str(index), "noise").standard_normal(picture.shape, np.float32)
    return np.rint(np.clip(picture + np.float32(sigma) * noise, 0, 255)).astype(np.uint8)


def _wiener(
    taps: np.ndarray, training: Sequence[np.ndarray], noise: float
) -> classical.SeparableWiener:
    return classical.SeparableWiener.fit(taps, training, noise)


def _tuned(
    taps: np.ndarray, training: Sequence[np.ndarray], degrade: Blurring
) -> classical.SeparableWiener:
    """Return the filter of the noise that is best on the training photos."""
    blurred = [degrade(one, 1000 + index) for index, one in enumerate(training)]
    filters = [_wiener(taps, training, noise) for noise in NOISES]
    return max(
        filters, key=lambda one: _psnr([_filtered(one, picture) for picture in blurred], training)
    )


def _filtered(wiener: classical.SeparableWiener, blurred: np.ndarray) -> np.ndarray:
    return pictures.of_unit(wiener(blurred * np.float32(1 / 255)))


def _psnr(restored: Sequence[np.ndarray], sharp: Sequence[np.ndarray]) -> float:
    scores = [metrics.psnr(a, b, data_range=255) for a, b in zip(restored, sharp, strict=True)]
    return float(np.mean(scores))


if __name__ == "__main__":
    main()
