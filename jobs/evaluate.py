"""Models and classical methods on test pairs -> figures and a report.

    deblur evaluate pairs/ report/ --model run/model

Every method sees the same 8-bit blurred photos and is rounded to 8 bits before it is measured.
Seconds are those of one actor that has the node's cores, one method after the other, after a
warm-up; decoding is not in them. NumPy has one core of these, as Ray tells it to.
"""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from deblur import models, pairs, precision, report
from deblur.errors import DeblurError, UsageError
from deblur.storage import Store, open_store
from jobs.evaluate_figures import Result, examples, figures
from jobs.evaluate_methods import Choice, Evaluate, prior_of, row_names
from jobs.progress import Progress, note
from jobs.runtime import (
    RETRIES,
    Cluster,
    bounded_retries,
    cluster,
    require_gpus,
    require_shared,
    versions,
)

PAGE = "report.html"
FIGURES = "evaluation.json"
PHOTOS = "photos.parquet"


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    pairs: str
    "Pairs that `deblur preprocess` made. Folder or s3://bucket/prefix."
    report: str
    "Where the report goes. Folder or s3://bucket/prefix."
    _: KW_ONLY
    model: tuple[str, ...] = ()
    "A model to measure, by name, folder or s3://bucket/prefix; give it again for more."
    baselines: Annotated[bool, Parameter(negative="--no-baselines")] = True
    "Measure unsharp masking, Richardson-Lucy and the Wiener filter too."
    limit: int | None = None
    "Measure on so many test pairs at most."
    precision: str = "auto"
    "bfloat16, float32, or auto: bfloat16 where the hardware has it."
    gpu: bool = False
    "Run the models on a GPU."
    examples: int = 8
    "Photos shown in the report."
    cluster: Cluster = Cluster()


def check(options: Options) -> None:
    """Raise UsageError if what is asked for cannot be; nothing has been looked at yet."""
    precision.check(options.precision)
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit}: expected 1 or more")
    if options.examples < 0:
        raise UsageError(f"--examples {options.examples}: expected 0 or more")


def run(options: Options) -> dict[str, Any]:
    """Measure, write the report and return the summary."""
    check(options)
    source, destination = open_store(options.pairs), open_store(options.report)
    dataset = pairs.read_dataset(source)
    shards = pairs.shards(source, "test")
    if not shards or not dataset.total("test"):
        raise UsageError(f"{source.uri} has no test pairs")
    stores = [models.open_model(name) for name in options.model]
    cards = [models.read_card(store) for store in stores]
    names = row_names([card.name for card in cards], [store.uri for store in stores])
    by_name = dict(zip(names, stores, strict=True))
    chosen = Choice(by_name, options.baselines, options.precision, int(options.gpu))
    destination.make_ready()
    total = min(dataset.total("test"), options.limit or sys.maxsize)
    note(f"measuring on {total} test pairs of {dataset.recipe}")
    started = time.perf_counter()
    with cluster(options.cluster), Progress("evaluate", total, "photos") as progress:
        require_shared([source, *stores])
        results = list(_measure(shards, source, dataset, chosen, options, total, progress))
    seconds = time.perf_counter() - started
    named = dict(zip(names, cards, strict=True))
    evaluation = _evaluation(results, dataset, options, source, named, seconds)
    _write(destination, evaluation, results)
    _print_table(evaluation)
    return {
        "job": "evaluate",
        "pairs": source.uri,
        "photos": evaluation.photos,
        "report": f"{destination.uri}/{PAGE}",
        "methods": {
            method.name: {"psnr": round(method.psnr, 3), "ssim": round(method.ssim, 4)}
            for method in evaluation.methods
        },
    }


# === Map ===


def _measure(
    shards: Sequence[str],
    source: Store,
    dataset: pairs.Dataset,
    chosen: Choice,
    options: Options,
    total: int,
    progress: Progress,
) -> Iterator[Result]:
    import ray.data

    require_gpus(int(options.gpu), options.cluster)
    rows = []
    left = total
    for name, facts in zip(shards, pairs.shard_facts(source, shards), strict=True):
        if left == 0:
            break
        if facts is None:
            raise DeblurError(
                f"{source.uri}/{name} is damaged: run the `deblur preprocess` that made it again"
            )
        if count := min(left, facts.pairs):
            rows.append({"shard": name, "count": count})
        left -= count
    if left:
        raise DeblurError(
            f"{source.uri} has {total - left} of the {total} test pairs that are to be measured: run the "
            "`deblur preprocess` that made them again"
        )
    with bounded_retries():
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Evaluate,
            fn_constructor_args=(source, dataset, chosen, options.examples / max(total, 1)),
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=1,
            num_cpus=1,
            num_gpus=1 if options.gpu else None,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
    for row in done.iter_rows():
        progress.advance(len(row["result"].keys))
        yield row["result"]


# === Account ===


def _evaluation(
    results: Sequence[Result],
    dataset: pairs.Dataset,
    options: Options,
    source: Store,
    cards: Mapping[str, models.Card],
    seconds: float,
) -> report.Evaluation:
    facts = {
        "Pairs": f"{source.uri}, {dataset.total('train')} to train on, {dataset.total('test')} to test on",
        "Fingerprint of the pairs": dataset.fingerprint,
        "Blur": dataset.recipe,
        **({"Prior of the Wiener filter": prior_of(dataset)} if options.baselines else {}),
        **{
            f"Model {name}": f"{card.network}, {card.steps} steps, id {card.model_id}"
            for name, card in cards.items()
        },
        "Machine": "; ".join(sorted({result.machine for result in results})),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    return report.Evaluation(
        title="How sharp it gets",
        pairs=source.uri,
        photos=sum(len(result.keys) for result in results),
        recipe=dataset.recipe,
        methods=figures(results),
        examples=examples(results, options.examples),
        facts=facts,
        seconds=seconds,
    )


def _write(destination: Store, evaluation: report.Evaluation, results: Sequence[Result]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = {
        "pairs": evaluation.pairs,
        "photos": evaluation.photos,
        "recipe": evaluation.recipe,
        "methods": [
            {
                "name": method.name,
                "psnr": method.psnr,
                "ssim": method.ssim,
                "sharpness": None if math.isnan(method.sharpness) else method.sharpness,
                "psnr_interval": list(method.interval) if method.interval else None,
                "seconds_per_megapixel": method.seconds_per_megapixel,
                "better_than": dict(method.wins),
                "by_category": _named(method.by_category),
                "by_blur": _named(method.by_blur),
            }
            for method in evaluation.methods
        ],
        "facts": dict(evaluation.facts),
    }
    rows = [
        {
            "key": key,
            "category": category,
            "blur": blurred,
            "method": name,
            **score._asdict(),
        }
        for result in results
        for name, scores in result.scores.items()
        for key, category, blurred, score in zip(
            result.keys, result.categories, result.blurs, scores, strict=True
        )
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    destination.put(PHOTOS, buffer.getbuffer())
    destination.put(FIGURES, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    destination.put(PAGE, report.evaluate_page(evaluation).encode())


def _named(groups: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {name: {"psnr": psnr, "ssim": ssim} for name, (psnr, ssim) in groups.items()}


def _print_table(evaluation: report.Evaluation) -> None:
    width = max(len(method.name) for method in evaluation.methods)
    note(f"{'method':{width}}  PSNR dB  (95 % interval)   SSIM   sharpness  s/megapixel")
    for method in evaluation.methods:
        spent = (
            f"{method.seconds_per_megapixel:11.3f}"
            if method.seconds_per_megapixel is not None
            else f"{'-':>11}"
        )
        sharpness = "-" if math.isnan(method.sharpness) else f"{method.sharpness:.0%}"
        low_to_high = "({:.2f} to {:.2f})".format(*method.interval) if method.interval else ""
        note(
            f"{method.name:{width}}  {method.psnr:7.2f}  {low_to_high:16}  "
            f"{method.ssim:5.3f}  {sharpness:>9}  {spent}"
        )
