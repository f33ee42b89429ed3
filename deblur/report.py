"""The HTML report: one page with its styles, script and pictures inside, which fetches nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import jinja2

from deblur import metrics
from deblur.gallery import Comparison

BLURRED = "blurred"
"""The name of the method that does nothing: gains are over its figures."""

_SIGNATURES = (  # (offset, bytes, type)
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (8, b"WEBP", "image/webp"),
)


@dataclass(frozen=True)
class MethodFigures:
    """The mean figures of one method over all photos.

    Attributes:
        name: the method.
        psnr, ssim: means.
        seconds_per_megapixel: time of the method alone.
        by_category: (PSNR, SSIM) of each category.
        interval: of the mean PSNR, 95 %, by bootstrap over the photos; None of a single one.
        by_blur: the same of each kind and strength of blur.
        wins: other method -> share of the photos that have a higher PSNR than with it.
        sharpness: as a share of the sharp photos'.
    """

    name: str
    psnr: float
    ssim: float
    seconds_per_megapixel: float | None
    by_category: Mapping[str, tuple[float, float]]
    interval: tuple[float, float] | None = None
    by_blur: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    wins: Mapping[str, float] = field(default_factory=dict)
    sharpness: float = math.nan


@dataclass(frozen=True)
class Example:
    """One photo as each method restores it.

    `pictures` has JPEG, PNG or WebP files by caption, in order: blurred, each method, sharp; `psnr`
    has their figures by the same captions, where there are any; `remark` is why it is shown, if it
    was not drawn.
    """

    key: str
    category: str
    pictures: Mapping[str, bytes]
    psnr: Mapping[str, float]
    remark: str = ""


@dataclass(frozen=True)
class Evaluation:
    """All that the report of an evaluation shows."""

    title: str
    pairs: str
    photos: int
    recipe: str
    methods: Sequence[MethodFigures]
    examples: Sequence[Example]
    facts: Mapping[str, str]
    seconds: float


@dataclass(frozen=True)
class Restoration:
    """All that the report of a run of `deblur restore` shows.

    Attributes:
        source, destination, model: what was restored to where, with what.
        counts: photos of the source by what has become of them, in this run or before.
        this_run: "restored", "skipped", "failed", "megapixels" and "seconds" of this run.
        failures: (key, reason) of this run, the first ones of `failures_in_all`.
        comparisons: a few photos before and after.
        facts: what else there is to say.
    """

    source: str
    destination: str
    model: str
    counts: Mapping[str, int]
    this_run: Mapping[str, float]
    failures: Sequence[tuple[str, str]]
    failures_in_all: int
    comparisons: Sequence[Comparison]
    facts: Mapping[str, str]


def restore_page(restoration: Restoration) -> str:
    """Return the page that reports a run of `deblur restore`, as HTML."""
    return _render(
        "restore.html",
        restoration=restoration,
        photos=sum(restoration.counts.values()),
    )


def evaluate_page(evaluation: Evaluation) -> str:
    """Return the page that reports an evaluation, as HTML."""
    methods = evaluation.methods
    blurred = next((method for method in methods if method.name == BLURRED), None)
    gains = [
        method.psnr - blurred.psnr if blurred and method is not blurred else math.nan
        for method in methods
    ]
    ranked = [method for method in methods if method is not blurred and not math.isnan(method.psnr)]
    return _render(
        "evaluate.html",
        evaluation=evaluation,
        most_db=metrics.MOST_DB,
        rows=list(zip(methods, gains, strict=True)),
        best=max(ranked, key=lambda method: method.psnr, default=None),
        best_gain=_best(gains),
        best_psnr=_best(method.psnr for method in methods),
        best_ssim=_best(method.ssim for method in methods),
        categories=_names(method.by_category for method in methods),
        blurs=_names(method.by_blur for method in methods),
        rivals=[method.name for method in methods if any(method.name in m.wins for m in methods)],
    )


def _names(groups: Iterable[Mapping[str, object]]) -> list[str]:
    # Those without a name come last.
    return sorted({name for group in groups for name in group}, key=lambda name: (not name, name))


def _render(template: str, **context: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deblur"),
        autoescape=True,  # names of files and categories are anybody's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        decibels=lambda value: _number(value, 2),
        gain=lambda value: _number(value, 2, sign="+"),
        similarity=lambda value: _number(value, 3),
        speed=_speed,
        duration=_duration,
        data_uri=_data_uri,
        clip=_clip,
        count="{:,}".format,
        share=lambda value: f"{value:.1%}".replace("%", " %"),
        whole_share=lambda value: "–" if math.isnan(value) else f"{value:.0%}".replace("%", " %"),
    )
    return environment.get_template(template).render(context)


def _best(values: Iterable[float]) -> float:
    """Return the greatest value; NaN, which equals nothing, if there is none."""
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _number(value: float, decimals: int, sign: str = "-") -> str:
    """Write a number with a true minus and without a negative zero."""
    if math.isnan(value):
        return "–"
    rounded = round(value, decimals) + 0.0
    text = f"{rounded:{sign}.{decimals}f}"
    return text.replace("inf", "∞").replace("-", "−")


def _speed(seconds: float | None) -> str:
    """Write seconds a megapixel with about three digits."""
    if seconds is None:
        return "–"
    return _number(seconds, 3 if seconds < 1 else 2 if seconds < 10 else 1)


def _duration(seconds: float) -> str:
    """Write a time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, whole_minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {whole_minutes:02} min"
    return f"{minutes} min {whole_seconds:02} s"


def _clip(text: str, most: int = 240) -> str:
    """Shorten a text that may be of any length, in the middle: names differ at both ends."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} … {text[-most // 2 :]}"


def _data_uri(picture: bytes) -> str:
    """Return a picture as a URI that holds it."""
    for offset, signature, mime_type in _SIGNATURES:
        if picture.startswith(signature, offset):
            return f"data:{mime_type};base64,{base64.b64encode(picture).decode('ascii')}"
    raise ValueError(
        f"a picture of {len(picture)} bytes starts with {bytes(picture[:12])!r}: "
        "encode it as JPEG, PNG or WebP"
    )
