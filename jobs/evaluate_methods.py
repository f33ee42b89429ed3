"""What `deblur evaluate` measures, and the actor that measures it on shards of test pairs."""

from __future__ import annotations

import itertools
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deblur import blur, classical, metrics, models, pairs, photo, pictures, report
from deblur.storage import Store
from jobs.evaluate_figures import SHARP, WIENER, Result, Scores, extremes, gains, is_example

PRIOR_PHOTOS = 200  # the second moments of 100 photos are within 0.1 dB of those of 300
_LEAST_SHARPNESS = 0.01  # less is a photo without any edge, which nothing can be a share of
_UNSHARP = "unsharp mask"
_LUCY = "Richardson-Lucy (kernel known)"

Method = Callable[[Sequence[np.ndarray], Sequence[blur.Degradation]], list[np.ndarray]]


@dataclass(frozen=True)
class Choice:
    """What is measured.

    Attributes:
        models: by the name of their row, of `row_names`.
        baselines: whether the classical methods are.
        precision: of the models.
        gpus: that they compute on.
    """

    models: Mapping[str, Store]
    baselines: bool
    precision: str
    gpus: int


def row_names(names: Sequence[str], uris: Sequence[str]) -> list[str]:
    """Return a name for each model that neither another one nor a baseline has: its own, or its place."""
    taken = {report.BLURRED, _UNSHARP, _LUCY, WIENER, SHARP}
    chosen = []
    for name, uri in zip(names, uris, strict=True):
        numbered = (f"{uri} ({number})" for number in itertools.count(2))
        chosen.append(
            next(one for one in itertools.chain((name, uri), numbered) if one not in taken)
        )
        taken.add(chosen[-1])
    return chosen


class Evaluate:
    """Holds the methods and measures them on shards."""

    def __init__(
        self, source: Store, dataset: pairs.Dataset, chosen: Choice, example_share: float
    ) -> None:
        self._source, self._share = source, example_share
        self._machine = _machine(chosen)
        self._methods = dict(_methods(source, dataset, chosen))
        warm = np.full((dataset.size_px, dataset.size_px, 3), 128, np.uint8)
        recipe = blur.draw(dataset.recipe, seed=0, key="warm-up")
        for method in self._methods.values():
            method([warm], [recipe])

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Return the results of the shards in a batch."""
        results = np.empty(len(batch["shard"]), dtype=object)
        for index, (name, count) in enumerate(zip(batch["shard"], batch["count"], strict=True)):
            results[index] = self._measure(
                pairs.read_shard(self._source.read(str(name)))[: int(count)]
            )
        return {"result": results}

    def _measure(self, rows: Sequence[pairs.Pair]) -> Result:
        sharp = [photo.decode_lossless(row.sharp) for row in rows]
        blurred = [photo.decode_lossless(row.blurred) for row in rows]
        recipes = [blur.Degradation.from_json(row.recipe) for row in rows]
        own = [metrics.sharpness(one) for one in sharp]
        scores: dict[str, list[Scores]] = {}
        seconds: dict[str, float] = {}
        outputs: dict[str, list[np.ndarray]] = {}
        for name, method in self._methods.items():
            started = time.perf_counter()
            restored = method(blurred, recipes)
            seconds[name] = time.perf_counter() - started
            scores[name] = [
                Scores(
                    metrics.psnr_8bit(a, b),
                    metrics.ssim(a, b, data_range=255),
                    metrics.sharpness(a) / whole if whole >= _LEAST_SHARPNESS else math.nan,
                )
                for a, b, whole in zip(restored, sharp, own, strict=True)
            ]
            outputs[name] = restored
        outputs[SHARP] = sharp
        shown = {index for index, row in enumerate(rows) if is_example(row.key, self._share)}
        shown |= set(extremes(gains(scores)))
        megapixels = sum(picture.shape[0] * picture.shape[1] for picture in sharp) / 1e6
        return Result(
            [row.key for row in rows],
            [row.category for row in rows],
            [group(recipe) for recipe in recipes],
            scores,
            seconds,
            megapixels,
            {
                rows[index].key: {name: _picture(made[index]) for name, made in outputs.items()}
                for index in sorted(shown)
            },
            self._machine,
        )


def group(recipe: blur.Degradation) -> str:
    """Return the kind of a blur, and whether it is a weak one."""
    kind = recipe.parameters.get("blur", {}).get("kind", recipe.recipe)
    if kind == "none":
        return "not blurred"
    spread = _spread_px(blur.psf(recipe))
    least = max((edge for edge in _SPREADS_PX if edge <= spread), default=0)
    above = [edge for edge in _SPREADS_PX if edge > spread]
    return f"{kind}, " + (f"{least} to {above[0]} px" if above else f"{least} px and more")


def _spread_px(psf: np.ndarray) -> float:
    """Return a PSF's standard deviation, the mean of all directions."""
    place = np.arange(len(psf))
    variances = [
        profile @ place**2 - (profile @ place) ** 2
        for profile in (psf.sum(axis=0), psf.sum(axis=1))
    ]
    return float(np.sqrt(max(sum(variances) / 2, 0)))


# Standard deviations that tell weak blurs from strong ones: 4 is that of box14.
_SPREADS_PX = (2, 4)


def _methods(source: Store, dataset: pairs.Dataset, chosen: Choice) -> Iterator[tuple[str, Method]]:
    yield report.BLURRED, lambda blurred, _: list(blurred)
    if chosen.baselines:
        yield (
            _UNSHARP,
            lambda blurred, _: [pictures.of_unit(classical.unsharp(_unit(one))) for one in blurred],
        )
        yield _LUCY, _lucy
        yield WIENER, _wiener(source, dataset)
    if chosen.models:
        from deblur.precision import use_gpus

        use_gpus(chosen.gpus)  # once: TensorFlow takes no more settings when it has computed
    for name, store in chosen.models.items():
        yield name, _model(store, chosen.precision)


def _lucy(blurred: Sequence[np.ndarray], recipes: Sequence[blur.Degradation]) -> list[np.ndarray]:
    return [
        pictures.of_unit(classical.richardson_lucy(_unit(one), blur.psf(recipe)))
        for one, recipe in zip(blurred, recipes, strict=True)
    ]


def _wiener(source: Store, dataset: pairs.Dataset) -> Method:
    """The exact operator where the kernel is one and separable, with a prior from training photos; else one a photo."""
    fixed, kernel = _fixed(dataset.recipe)
    sharps = list(_training_photos(source)) if kernel is not None else []
    if kernel is None or not sharps:

        def by_kernel(
            blurred: Sequence[np.ndarray], recipes: Sequence[blur.Degradation]
        ) -> list[np.ndarray]:
            return [
                pictures.of_unit(
                    classical.wiener(_unit(one), blur.psf(recipe), blur.noise_variance(recipe))
                )
                for one, recipe in zip(blurred, recipes, strict=True)
            ]

        return by_kernel
    exact = classical.SeparableWiener.fit(kernel, sharps, blur.noise_variance(fixed))
    return lambda blurred, _: [pictures.of_unit(exact(_unit(one))) for one in blurred]


def prior_of(dataset: pairs.Dataset) -> str:
    """Say what the Wiener filter takes photos for."""
    _, kernel = _fixed(dataset.recipe)
    count = min(dataset.total("train"), PRIOR_PHOTOS)
    return f"{count} training photos" if kernel is not None and count else "natural photos' 1 / f²"


def _fixed(recipe: str) -> tuple[blur.Degradation, np.ndarray | None]:
    """Return a blur of the recipe, and its separable kernel if all photos have that one."""
    fixed = blur.draw(recipe, seed=0, key="")
    return fixed, None if fixed.parameters else blur.separable(fixed)


def _training_photos(source: Store) -> Iterator[np.ndarray]:
    count = 0
    for name in pairs.shards(source, "train"):
        for row in pairs.read_shard(source.read(name)):
            if count == PRIOR_PHOTOS:
                return
            count += 1
            yield photo.decode_lossless(row.sharp)


def _model(store: Store, precision: Any) -> Method:
    from deblur.precision import policy
    from deblur.restorer import Restorer

    dtype_policy = policy(precision)
    restorer = Restorer(models.load(store, dtype_policy), dtype_policy)
    return lambda blurred, _: list(restorer.restore(blurred))


def _machine(chosen: Choice) -> str:
    """Say what computes here, and how."""
    said = f"{platform.machine()}, Python {platform.python_version()}"
    if not chosen.models:
        return said
    from deblur.precision import device, policy

    precision: Any = chosen.precision
    return f"{said}; models on {device()}, {policy(precision)}"


def _unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32) * np.float32(1 / 255)


def _picture(pixels: np.ndarray) -> bytes:
    return photo.encode(photo.Photo(pixels, format="JPEG"))
