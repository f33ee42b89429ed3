"""A bucket of photos -> restored photos, each exactly once, and every one accounted for.

    deblur restore s3://holiday/ s3://holiday-sharp/ --model s3://models/box14/model

The plan is the inventory of SOURCE minus what the ledger says is done. Tasks fetch and decode packs
of photos, a pool of actors that each hold the model restores them, and tasks encode and put them
and then write the ledger: whatever is killed in between is done again, to the same bytes at the
same place.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

from cyclopts import Parameter

from deblur import ledger, models, places365
from deblur.errors import UsageError
from deblur.networks import network
from deblur.restorer import TILE_BATCH
from deblur.storage import Entry, Store, open_store
from jobs.runtime import Cluster, Progress, cluster, note, warn

# Also what we may not be able to read: a photo in a format that we lack belongs in the ledger, not
# out of sight.
EXTENSIONS = places365.PHOTO_EXTENSIONS | {
    ".jpe",
    ".jfif",
    ".mpo",
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".jxl",
}

_CHUNK_PHOTOS = 32  # a task's worth of fetching: small photos come in groups,
_CHUNK_BYTES = 32 << 20  # large ones alone
# of a task or an actor whose process died; an error of one photo is a row, and is never retried
_RETRIES = 3


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    source: str
    "Blurred photos. Folder or s3://bucket/prefix."
    destination: str
    "Where the restored photos go, under the same names. Folder or s3://bucket/prefix."
    _: KW_ONLY
    model: str
    "A model that `deblur train` made (RUN/model). Folder or s3://bucket/prefix."
    limit: int | None = None
    "Restore at most so many photos, the first ones by name."
    dry_run: bool = False
    "Say what would be done, and do nothing."
    retry_failed: bool = False
    "Try again what failed before."
    precision: str = "auto"
    "bfloat16, float32, or auto: bfloat16 where the hardware has it."
    gpu: bool = False
    "Restore on GPUs, one actor each."
    actors: int | None = None
    "Actors that hold the model; else one a GPU with --gpu, one a node without."
    cluster: Cluster = Cluster()


def run(options: Options) -> dict[str, Any]:
    """Restore what is missing and return the summary."""
    _check(options)
    source, destination = open_store(options.source), open_store(options.destination)
    _refuse_overlap(source, destination)
    card = models.read_card(options.model)
    shape = network(card.network)
    settings = {"precision": options.precision, "tile": shape.tile_px, "overlap": shape.overlap_px}
    settings_id = ledger.settings_id(settings | {"batch": TILE_BATCH})

    note(f"listing {source.uri}")
    inventory, others = _inventory(source)
    done = ledger.done(
        destination,
        model_id=card.model_id,
        settings_id=settings_id,
        retry_failed=options.retry_failed,
    )
    todo = sorted(ledger.remaining(inventory, done), key=lambda entry: entry.key)[: options.limit]
    size_bytes = sum(entry.size_bytes for entry in todo)
    note(
        f"{len(inventory)} photos ({others} other files are left alone); "
        f"{len(todo)} to restore now, {size_bytes / 1e6:.1f} MB"
    )
    summary: dict[str, Any] = {
        "job": "restore",
        "source": source.uri,
        "destination": destination.uri,
        "model": card.name,
        "model_id": card.model_id,
        "photos": len(inventory),
    }
    if options.dry_run:
        return summary | {"dry_run": True, "to_restore": len(todo), "bytes": size_bytes}

    started = time.perf_counter()
    outcomes: list[dict[str, Any]] = []
    if todo:
        destination.make_ready()
        with cluster(options.cluster), Progress("restore", len(todo), "photos") as progress:
            for outcome in _restore(todo, source, destination, options, card.model_id, settings_id):
                outcomes.append(outcome)
                progress.advance()
    return summary | _account(inventory, done, outcomes, time.perf_counter() - started)


# === Plan ===


def _inventory(source: Store) -> tuple[list[Entry], int]:
    """Return the photos of SOURCE, and how many files there are besides."""
    found, others = [], 0
    for entry in source.list():
        if entry.key.startswith("_deblur/"):
            continue
        if os.path.splitext(entry.key)[1].lower() in EXTENSIONS:
            found.append(entry)
        else:
            others += 1
    if not found:
        raise UsageError(
            f"{source.uri} has no photos: {others} files, none of which ends in {', '.join(sorted(EXTENSIONS))}"
        )
    return found, others


def _refuse_overlap(source: Store, destination: Store) -> None:
    inner, outer = destination.uri.rstrip("/") + "/", source.uri.rstrip("/") + "/"
    if inner.startswith(outer) or outer.startswith(inner):
        raise UsageError(
            f"SOURCE {source.uri} and DESTINATION {destination.uri} lie in one another: "
            "restored photos would be taken for "
            "new ones, or replace their originals; give a DESTINATION elsewhere"
        )


def chunks(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield groups of photos that one task fetches."""
    group: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        if group and (len(group) == _CHUNK_PHOTOS or size_bytes + entry.size_bytes > _CHUNK_BYTES):
            yield group
            group, size_bytes = [], 0
        group.append(entry)
        size_bytes += entry.size_bytes
    if group:
        yield group


# === Map ===


def _restore(
    todo: Sequence[Entry],
    source: Store,
    destination: Store,
    options: Options,
    model_id: str,
    settings_id: str,
) -> Iterator[dict[str, Any]]:
    import ray
    from ray.util.annotations import RayDeprecationWarning

    groups = [{"chunk": chunk} for chunk in chunks(todo)]
    resources = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    actors = options.actors or int(resources.get("GPU", 0) if options.gpu else nodes)
    if actors < 1:
        raise UsageError("--gpu: this cluster has no GPU")
    with warnings.catch_warnings():
        # Bounds on retries have no named parameters in the Ray that we pin, and its default is to
        # retry for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = _pipeline(groups, source, destination, options, actors, model_id, settings_id)
    yield from dataset.iter_rows()


def _pipeline(
    groups: list[dict[str, Any]],
    source: Store,
    destination: Store,
    options: Options,
    actors: int,
    model_id: str,
    settings_id: str,
) -> Any:
    import ray.data

    from jobs.restore_stages import Deliver, Fetch, Restore

    retries = {"max_retries": _RETRIES}
    return (
        ray.data.from_items(groups, override_num_blocks=len(groups))
        .map_batches(Fetch(source), batch_size=1, num_cpus=0.5, **retries)
        .map_batches(
            Restore,
            fn_constructor_args=(options.model, options.precision),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            batch_size=1,
            num_cpus=0.5,  # leaves room for the other stages even where there is one core
            num_gpus=1 if options.gpu else None,
            max_restarts=_RETRIES,
            max_task_retries=_RETRIES,
        )
        .map_batches(
            Deliver(destination, model_id, settings_id), batch_size=1, num_cpus=0.5, **retries
        )
    )


# === Account ===


def _account(
    inventory: Sequence[Entry],
    done: Mapping[str, tuple[str, str]],
    outcomes: Sequence[Mapping[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    """Return the state of the whole inventory, and what this run has added to it."""
    status = {
        entry.key: done[entry.key][1]
        for entry in inventory
        if done.get(entry.key, ("",))[0] == entry.etag
    }
    status |= {outcome["key"]: outcome["status"] for outcome in outcomes}
    tally = {name: list(status.values()).count(name) for name in ("restored", "skipped", "failed")}
    failures = {
        outcome["key"]: outcome["reason"] for outcome in outcomes if outcome["status"] == "failed"
    }
    for key, why in list(failures.items())[:10]:
        warn(f"{key}: {why}")
    if len(failures) > 10:
        warn(f"and {len(failures) - 10} more failures; they are in {ledger.FOLDER}")
    if earlier := tally["failed"] - len(failures):
        warn(f"{earlier} photos failed in an earlier run; --retry-failed tries them again")
    megapixels = sum(outcome["megapixels"] for outcome in outcomes)
    return {
        **tally,
        "not_done": len(inventory) - sum(tally.values()),
        "this_run": {
            "restored": sum(outcome["status"] == "restored" for outcome in outcomes),
            "failed": len(failures),
            "megapixels": round(megapixels, 2),
            "seconds": round(seconds, 1),
        },
    }


def _check(options: Options) -> None:
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"--limit {options.limit}: expected 1 or more")
    if options.actors is not None and options.actors < 1:
        raise UsageError(f"--actors {options.actors}: expected 1 or more")
    if options.precision not in {"auto", "bfloat16", "float32"}:
        raise UsageError(f"--precision {options.precision!r}: expected auto, bfloat16 or float32")
