"""What an evaluation's results come to: means, intervals, groups, and which photos stand for them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from deblur import report, seeds

WIENER = "Wiener (kernel known)"
SHARP = "sharp"  # the caption of what was blurred
_REMARKS = ("gains most", "gains least", "median gain")
_DRAWS, _DRAWS_AT_A_TIME = 2000, 50  # of the bootstrap


class Scores(NamedTuple):
    """One photo's by one method.

    Attributes:
        psnr: `metrics.psnr_8bit`, in dB.
        ssim: -1 to 1.
        sharpness: `metrics.sharpness` as a share of the sharp photo's. It looks at no other photo,
            and tells detail that PSNR does not reward, invented detail and noise included. NaN where the
            sharp photo has no edge.
    """

    psnr: float
    ssim: float
    sharpness: float


@dataclass(frozen=True)
class Result:
    """One shard's: scores by method, in the order of the photos, and seconds and megapixels by method.

    `pictures` has, of a few photos, their files by key and caption; `machine` says what computed.
    """

    keys: list[str]
    categories: list[str]
    blurs: list[str]
    scores: dict[str, list[Scores]]
    seconds: dict[str, float]
    megapixels: float
    pictures: dict[str, dict[str, bytes]]
    machine: str


def figures(results: Sequence[Result]) -> list[report.MethodFigures]:
    """Return the figures of each method, over all photos of the results."""
    categories = [category for result in results for category in result.categories]
    blurs = [blurred for result in results for blurred in result.blurs]
    names = list(results[0].scores)
    megapixels = sum(result.megapixels for result in results)
    scores = {
        name: [score for result in results for score in result.scores[name]] for name in names
    }
    rivals = [name for name in (report.BLURRED, WIENER) if name in scores]
    return [
        report.MethodFigures(
            name,
            *_mean(scores[name]),
            sharpness=_mean_share([score.sharpness for score in scores[name]]),
            interval=_interval([score.psnr for score in scores[name]]),
            seconds_per_megapixel=None
            if name == report.BLURRED
            else sum(result.seconds[name] for result in results) / megapixels,
            by_category=_grouped(categories, scores[name]),
            by_blur=_grouped(blurs, scores[name]),
            wins={
                rival: _wins(scores[name], scores[rival])
                for rival in rivals
                if name not in rivals[: rivals.index(rival) + 1]
            },
        )
        for name in names
    ]


def gains(scores: Mapping[str, Sequence[Scores]]) -> list[float]:
    """Return by how many dB the last method betters each photo, which is the last model if there is one."""
    last = list(scores)[-1]
    return [
        after.psnr - before.psnr
        for before, after in zip(scores[report.BLURRED], scores[last], strict=True)
    ]


def examples(results: Sequence[Result], wanted: int) -> list[report.Example]:
    """Return where the last method gains most, the median and the least, and then drawn ones.

    Each shard has the pictures of its own extremes. For the median of all serves what comes next to it of these.
    """
    found = [
        report.Example(
            key=key,
            category=category,
            pictures=result.pictures[key],
            psnr={name: result.scores[name][index].psnr for name in result.scores},
        )
        for result in results
        for index, (key, category) in enumerate(zip(result.keys, result.categories, strict=True))
        if key in result.pictures
    ]
    last = list(results[0].scores)[-1]
    gain_of = {
        key: gain
        for result in results
        for key, gain in zip(result.keys, gains(result.scores), strict=True)
    }
    median = sorted(gain_of.values())[len(gain_of) // 2]
    gained = [gain_of[one.key] for one in found]
    most, _, least = extremes(gained)
    middle = int(np.argmin(np.abs(np.array(gained) - median)))
    special: dict[int, str] = {}
    if last != report.BLURRED:
        # Of one or two photos, the median is an extreme too.
        for place, word in zip((most, least, middle), _REMARKS, strict=True):
            special.setdefault(place, f"{last}: {word}")
    chosen = [
        replace(found[place], remark=special[place])
        for place in dict.fromkeys((most, middle, least))
        if place in special
    ]
    share = wanted / len(gain_of)
    others = [
        example
        for place, example in enumerate(found)
        if place not in special and is_example(example.key, share)
    ]
    chosen += sorted(others, key=lambda example: seeds.digest(0, example.key, "example"))
    return chosen[:wanted]


def is_example(key: str, share: float) -> bool:
    """Say whether a photo is one of twice this share: by its key, so no worker has to know the others' photos."""
    return bool(seeds.generator(0, key, "example").random() < 2 * share)


def extremes(values: Sequence[float]) -> list[int]:
    """Return where the largest value is, the median and the least."""
    order = np.argsort(values)
    return [int(order[-1]), int(order[len(order) // 2]), int(order[0])]


def _grouped(names: Sequence[str], scores: Sequence[Scores]) -> dict[str, tuple[float, float]]:
    """Return the mean scores of the photos of each name."""
    groups: dict[str, list[Scores]] = defaultdict(list)
    for name, score in zip(names, scores, strict=True):
        groups[name].append(score)
    return {name: _mean(group) for name, group in sorted(groups.items())}


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the mean's 95 % confidence interval: where the means lie of as many drawn from these (Efron 1979).

    One photo says nothing of others.
    """
    if len(values) < 2:
        return None
    rng, drawn = seeds.generator(0, "", "bootstrap"), np.asarray(values)
    means = [
        drawn[rng.integers(len(drawn), size=(_DRAWS_AT_A_TIME, len(drawn)))].mean(axis=1)
        for _ in range(_DRAWS // _DRAWS_AT_A_TIME)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _wins(mine: Sequence[Scores], theirs: Sequence[Scores]) -> float:
    """Return the share of photos that have the higher PSNR."""
    return float(np.mean([a.psnr > b.psnr for a, b in zip(mine, theirs, strict=True)]))


def _mean(scores: Sequence[Scores]) -> tuple[float, float]:
    psnr, ssim, _ = np.mean(scores, axis=0)
    return float(psnr), float(ssim)


def _mean_share(values: Sequence[float]) -> float:
    shares = [value for value in values if not math.isnan(value)]
    return float(np.mean(shares)) if shares else math.nan
