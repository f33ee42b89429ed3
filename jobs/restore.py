"""A bucket of photos -> restored photos, each exactly once, and every one accounted for.

    deblur restore s3://holiday/ s3://holiday-sharp/ --model s3://models/box14/model

The plan is the inventory of SOURCE minus what the ledger says is done. Tasks fetch and decode packs
of photos, a pool of actors that each hold the model restores them, and tasks encode and put them
and then write the ledger: whatever is killed in between is done again, to the same bytes at the
same place.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from typing import Any

from cyclopts import Parameter

from deblur import keys, ledger, models, photo, precision
from deblur.errors import DeblurError, UsageError
from deblur.networks import network
from deblur.restorer import TILE_BATCH
from deblur.storage import Entry, Store, below
from jobs import restore_names, restore_plan
from jobs.progress import Progress, note, warn
from jobs.restore_estimate import estimate
from jobs.restore_report import Pages, Tally, account, warn_of
from jobs.restore_stages import Deliver, Fetch, Restore, Treatment
from jobs.runtime import (
    RETRIES,
    Cluster,
    bounded_retries,
    cluster,
    require_gpus,
    require_shared,
    working_nodes,
)

# A pack is passed on as soon as it is there; Ray Data would gather 128 MB of them first.
_BLOCK_BYTES = 1 << 20
# After so many the ledger's parts are merged, besides at the end. A photo of 8 megapixels or more is a part
# by itself, and a killed run would leave them all to the next one: 4 ms each, and three requests.
_MERGED_PHOTOS = 2000


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    source: str
    "Blurred photos, or a single one. Folder, file or s3://bucket/prefix."
    destination: str
    "Where the restored photos go, under the same names. Folder or s3://bucket/prefix."
    _: KW_ONLY
    model: str = "photo"
    "A name of `deblur models`, or a model that `deblur train` made (RUN/model). Folder or s3://bucket/prefix."
    limit: int | None = None
    "Restore at most so many photos, the first ones by name."
    dry_run: bool = False
    "Say what would be done and about how long it would take, and do nothing."
    retry_failed: bool = False
    "Try again what failed before."
    format: str = "keep"
    "Write all photos as jpeg, png, webp, tiff, ...; `keep` is each photo's own format."
    quality: int | None = None
    "Quality of JPEG, WebP and the like, 1 to 100; else that of each photo."
    suffix: str = ""
    "What to add to the names: with `-sharp`, trip/a.jpg becomes trip/a-sharp.jpg."
    skip_sharp: float | None = None
    "Skip photos sharper than this, 0 to 1: blurred 0.2 to 0.5; sharp 0.6 to 0.8 at 256 pixels, in full size from 0.35."
    copy_skipped: bool = False
    "Copy skipped photos unchanged; else they are left out."
    max_megapixels: float = photo.MAX_MEGAPIXELS
    "Fail photos that claim to have more, before they are decoded."
    no_guard: bool = False
    "Write also what the output guard takes for a mosaic or a shift of colours."
    allow_overlap: bool = False
    "Allow SOURCE and DESTINATION to lie in one another; where they are the same, originals are replaced."
    precision: str = "auto"
    "bfloat16, float32, or auto: bfloat16 where the hardware has it."
    gpu: bool = False
    "Restore on GPUs, one actor each."
    actors: int | None = None
    "Actors that hold the model; else one a GPU with --gpu, one a node without."
    cluster: Cluster = Cluster()


def run(options: Options) -> dict[str, Any]:
    """Restore what is missing and return the summary."""
    check(options)
    source, alone, destination = restore_plan.places(options.source, options.destination)
    model = models.open_model(options.model)
    if not options.allow_overlap:
        restore_plan.refuse_overlap(source, destination, alone)
    card = models.read_card(model)
    settings = _settings(options, card)
    treatment = _treatment(options, card.model_id, ledger.settings_id(settings))

    if alone is None:
        note(f"listing {source.uri}")
    plan = restore_plan.plan(
        source,
        destination,
        treatment,
        alone=alone,
        limit=options.limit,
        retry_failed=options.retry_failed,
        probe=not options.dry_run,
    )
    note(
        f"{len(plan.inventory)} photos ({plan.others} other files are left alone); "
        f"{len(plan.todo)} to restore now, {plan.todo.size_bytes / 1e6:.1f} MB"
    )
    summary: dict[str, Any] = {
        "job": "restore",
        "source": f"{source.uri}/{keys.shown(alone.key)}" if alone else source.uri,
        "destination": destination.uri,
        "model": card.name,
        "model_id": card.model_id,
        "photos": len(plan.inventory),
    }
    if options.dry_run:
        refused = [(entry.key, why) for entry, why in plan.refused]
        warn_of(refused, "a run lists them in the ledger")
        return summary | {"dry_run": True} | estimate(source, destination, plan, card.model_id)
    if not plan.todo and not plan.refused:
        return summary | account(plan, Tally(), 0.0)

    started = time.perf_counter()
    destination.make_ready()
    restore_names.remember(source, destination)
    tally = Tally()
    for outcome in restore_plan.write_refused(destination, treatment, plan):
        tally.add(outcome)
    with cluster(options.cluster):
        require_shared([source, model], destination)
        with (
            Progress("restore", len(plan.todo), "photos") as progress,
            ThreadPoolExecutor(1) as thread,
        ):
            for outcome in _restore(plan.todo, source, destination, model, options, treatment):
                tally.add(outcome)
                progress.advance()
                if progress.done % _MERGED_PHOTOS == 0:
                    thread.submit(_compact, destination, merged=False)
        summary |= account(plan, tally, time.perf_counter() - started)
        _compact(destination)
        page = Pages(source, destination, card, settings).write(plan, tally, summary)
    if lost := len(plan.todo) - progress.done:
        raise DeblurError(
            f"of {lost} photos nobody said what became of them: the same command does them"
        )
    return summary | ({"report": page} if page else {})


def _compact(destination: Store, *, merged: bool = True) -> None:
    """Keep the ledger quick to read. Nothing is lost where that fails."""
    try:
        ledger.compact(destination, merged=merged)
    except (OSError, DeblurError) as error:
        warn(f"the ledger's parts could not be merged: {error}")


def _settings(options: Options, card: models.Card) -> dict[str, Any]:
    """Return everything besides the model that the outputs' names and bytes depend on."""
    settings = {
        "precision": options.precision,
        "tiles": list(network(card.network).tiling),
        "ramp": "half of the overlap",
        "batch": TILE_BATCH,
    }
    chosen = {
        "format": _format(options),
        "quality": options.quality,
        "suffix": options.suffix or None,
        "skip_sharp": options.skip_sharp,
        "copy_skipped": options.copy_skipped if options.skip_sharp is not None else None,
    }
    return settings | {name: value for name, value in chosen.items() if value is not None}


def _format(options: Options) -> str | None:
    """Return Pillow's name of the format: `jpg` is `jpeg`."""
    return photo.FORMATS.get(f".{options.format}".lower())


def _treatment(options: Options, model_id: str, settings_id: str) -> Treatment:
    return Treatment(
        model_id,
        settings_id,
        format=_format(options),
        quality=options.quality,
        suffix=options.suffix,
        skip_sharp=options.skip_sharp,
        copy_skipped=options.copy_skipped,
        guard=not options.no_guard,
        max_megapixels=options.max_megapixels,
    )


# === Map ===


def _restore(
    todo: Sequence[Entry],
    source: Store,
    destination: Store,
    model: Store,
    options: Options,
    treatment: Treatment,
) -> Iterator[dict[str, Any]]:
    if not todo:
        return
    import ray

    require_gpus(int(options.gpu), options.cluster)
    resources = ray.cluster_resources()
    # A cluster that has no GPU, or no core, has yet to grow.
    found = int(resources.get("GPU", 0)) if options.gpu else len(working_nodes())
    actors = options.actors or max(found, 1)
    fetch, deliver = _ends(source, destination, options, treatment)
    with bounded_retries():
        dataset = _pipeline(todo, fetch, model, deliver, options, actors)
    yield from dataset.iter_rows()


def _ends(
    source: Store, destination: Store, options: Options, treatment: Treatment
) -> tuple[Fetch, Deliver]:
    """Return the stages before the model and after it."""
    in_place = below(source, destination) == ""
    restored = restore_plan.restored_in_place(destination) if in_place else frozenset()
    return Fetch(source, treatment, restored), Deliver(destination, treatment, in_place=in_place)


def _pipeline(
    todo: Sequence[Entry],
    fetch: Fetch,
    model: Store,
    deliver: Deliver,
    options: Options,
    actors: int,
) -> Any:
    import ray.data

    groups = [{"chunk": chunk} for chunk in restore_plan.chunks(todo)]
    retries = {"max_retries": RETRIES}
    whole = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 0.5}
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = _BLOCK_BYTES
    with ray.data.DataContext.current(context):
        return (
            ray.data.from_items(groups, override_num_blocks=len(groups))
            .map_batches(fetch, batch_size=1, num_cpus=0.5, **retries)
            .map_batches(
                Restore,
                fn_constructor_args=(model, options.precision, int(options.gpu)),
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
                num_gpus=1 if options.gpu else None,
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
                # Half a core leaves room for the other stages even where there is one. For GPUs Ray wants
                # a number: one pack.
                **whole | ({"batch_size": 1} if options.gpu else {}),
            )
            .map_batches(deliver, **whole, **retries)
        )


def check(options: Options) -> None:
    """Raise UsageError if what is asked for cannot be; nothing has been looked at yet."""
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit}: expected 1 or more")
    if options.actors is not None and options.actors < 1:
        raise UsageError(f"--actors {options.actors}: expected 1 or more")
    precision.check(options.precision)
    if options.format != "keep" and f".{options.format}".lower() not in photo.FORMATS:
        known = sorted({name.lower() for name in photo.FORMATS.values()})
        raise UsageError(f"--format {options.format!r}: expected keep, {', '.join(known)}")
    if options.quality is not None and not 1 <= options.quality <= 100:
        raise UsageError(f"--quality {options.quality}: expected 1 to 100")
    if "/" in options.suffix or not options.suffix.isprintable():
        raise UsageError(f"--suffix {options.suffix!r}: expected a part of a file's name")
    if options.skip_sharp is not None and not 0 <= options.skip_sharp <= 1:
        raise UsageError(f"--skip-sharp {options.skip_sharp}: expected 0 to 1")
    if options.copy_skipped and options.skip_sharp is None:
        raise UsageError("--copy-skipped copies what --skip-sharp skips: give that, too")
    if not options.max_megapixels > 0:
        raise UsageError(f"--max-megapixels {options.max_megapixels}: expected more than 0")
