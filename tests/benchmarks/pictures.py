"""A picture of photos blurred by `box14`, what each method makes of them, and the sharp ones.

    python -m tests.benchmarks.pictures PHOTOS OUT.webp [--model box14]... [--long-side 1024]

A row a photo: 256 x 256 pixels of its middle, after it was made smaller by area. The Wiener filter knows
the kernel, and has the sample photos for its prior. docs/box14.webp was made so, of two CC0 photos of
budgie-backgrounds (casa-mila, roman-colosseum) that no model was trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from deblur import blur, classical, metrics, models, pairs, photo, pictures
from deblur.precision import policy
from deblur.restorer import Restorer

SIZE_PX, GAP_PX, LINE_PX = 256, 4, 22
SAMPLES = Path(__file__).parents[2] / "deblur" / "samples"
QUALITY = 90


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("out")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--long-side", type=int, default=1024)
    arguments = parser.parse_args()
    sharp = crops(Path(arguments.photos), arguments.long_side)
    drawn = blur.draw("box14", seed=0, key="")
    blurred = [blur.degrade(each, drawn) for each in sharp]
    wiener = classical.SeparableWiener.fit(
        blur.separable(drawn), crops(SAMPLES, arguments.long_side), blur.noise_variance(drawn)
    )
    columns = {
        "blurred": blurred,
        "Wiener": [pictures.of_unit(wiener(each.astype(np.float32) / 255)) for each in blurred],
    }
    dtype_policy = policy("auto")
    for name in arguments.model or ["box14"]:
        model = models.load(models.open_model(name), dtype_policy)
        columns[model.card.name] = list(Restorer(model, dtype_policy).restore(blurred))
    sheet = np.concatenate(
        [_column(name, shown, sharp) for name, shown in (columns | {"sharp": sharp}).items()],
        axis=1,
    )
    Image.fromarray(sheet).save(arguments.out, quality=QUALITY)


def crops(folder: Path, long_side: int) -> list[np.ndarray]:
    """Return the middles of the photos of a folder, by name."""
    found = []
    for file in sorted(folder.rglob("*.jpg")):
        pixels = photo.to_uint8(photo.decode(file.read_bytes()).pixels)
        scale = min(long_side / max(pixels.shape[:2]), 1.0)
        small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found.append(pairs.centre_crop(small, SIZE_PX))
    return found


def _column(name: str, shown: Sequence[np.ndarray], sharp: Sequence[np.ndarray]) -> np.ndarray:
    """Return pictures one below the other, each with its PSNR below it."""
    parts = []
    for picture, original in zip(shown, sharp, strict=True):
        line = np.full((LINE_PX, SIZE_PX, 3), 255, np.uint8)
        exact = np.array_equal(picture, original)
        text = name if exact else f"{name} {metrics.psnr(picture, original, data_range=255):.2f} dB"
        cv2.putText(line, text, (2, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        parts += [picture, line]
    column = np.concatenate(parts)
    return cv2.copyMakeBorder(column, 0, 0, 0, GAP_PX, cv2.BORDER_CONSTANT, value=(255, 255, 255))


if __name__ == "__main__":
    main()
