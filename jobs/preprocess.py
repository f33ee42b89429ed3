"""Photos -> blurred/sharp pairs. Plan shards, map them over workers, account for every photo.

    deblur preprocess places365/ pairs/ --categories castle,forest,mountain,skyscraper

A shard holds up to 64 pairs. Which photos it holds is decided before any work starts, so that any
number of workers writes the same bytes, and a rerun makes only the shards that are missing. Photos
that are rejected are replaced by the next ones of their category, in further shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from typing import Any

from cyclopts import Parameter

from deblur import keys, pairs, pictures
from deblur.errors import UsageError
from deblur.storage import Store, open_store
from jobs.preprocess_plan import SPLITS, Selection, finished_shards, identify, plan, select
from jobs.preprocess_shards import Shard, ShardMaker, bundles
from jobs.progress import Progress, counts, note, warn
from jobs.runtime import RETRIES, Cluster, bounded_retries, cluster, require_shared


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    source: str
    "Sharp photos: places365 as distributed, a folder a category, or any tree. Folder or s3://bucket/prefix."
    pairs: str
    "Where the pairs go. Folder or s3://bucket/prefix."
    _: KW_ONLY
    categories: str = ""
    "Comma-separated categories; none means all. `forest` takes nested ones (forest/broadleaf) with it."
    train: int = 250
    "Training photos a category."
    test: int = 150
    "Test photos a category."
    size: int = 256
    "Side of the centre crop in pixels."
    blur: str = "box14"
    "Recipe: box14 (the report's), box14-jpeg, gaussian, motion, defocus, or photo (a realistic mixture)."
    seed: int = 0
    "Decides the selection and every drawn blur."
    cluster: Cluster = Cluster()


def run(options: Options) -> dict[str, Any]:
    """Make the pairs and return the summary."""
    check(options)
    source, destination = open_store(options.source), open_store(options.pairs)
    note(f"listing {source.uri}")
    selection = select(source, destination, options)
    pools = selection.pools
    plan_id = identify(options, selection)
    finished = finished_shards(destination, plan_id)

    made: dict[str, pairs.ShardFacts] = {}
    rejected = [(key, split, why) for key, (split, why) in selection.left_out.items()]
    total = sum(pool.wanted for pool in pools)
    with ExitStack() as stack, Progress("preprocess", total, "photos") as progress:
        taken = dict.fromkeys(pools, 0)
        wanted = {pool: pool.wanted for pool in pools}
        while any(wanted.values()):
            shards = list(plan(pools, taken, wanted, made))
            splits = {key: shard.split for shard in shards for key, _ in shard.photos}
            results: dict[str, pairs.ShardFacts] = {}
            for shard in shards:
                if facts := finished.get(shard.name):
                    results[shard.name] = facts
                    progress.begin_at(progress.done + len(shard.photos))
            if missing := [shard for shard in shards if shard.name not in results]:
                # Ray starts when there is work for it.
                stack.enter_context(cluster(options.cluster))
                require_shared([source], destination)
                maker = ShardMaker(
                    source,
                    destination,
                    recipe=options.blur,
                    seed=options.seed,
                    size_px=options.size,
                    plan_id=plan_id,
                )
                results |= dict(_make(missing, maker, progress))
            made |= results
            failed = {key: why for facts in results.values() for key, why in facts.rejected.items()}
            rejected += [(key, splits[key], why) for key, why in failed.items()]
            for pool in pools:
                tried = pool.keys[taken[pool] : taken[pool] + wanted[pool]]
                taken[pool] += len(tried)
                # The next round replaces what was rejected, as far as the category has more.
                wanted[pool] = min(
                    sum(key in failed for key in tried), len(pool.keys) - taken[pool]
                )
            progress.total = progress.done + sum(wanted.values())

    for name in finished.keys() - made.keys():  # damaged, or of photos none of which could be used
        destination.delete(name)
    dataset = _account(options, source, destination, plan_id, selection, made, rejected)
    _warn_of_shortage(options, dataset, rejected, selection.ignored)
    return {
        "job": "preprocess",
        "pairs": destination.uri,
        "train": dataset.total("train"),
        "test": dataset.total("test"),
        "by_category": dataset.counts,
        "rejected": dataset.rejected,
        "recipe": dataset.recipe,
        "fingerprint": dataset.fingerprint,
    }


# === Map ===


def _make(
    shards: Sequence[Shard], maker: ShardMaker, progress: Progress
) -> Iterator[tuple[str, pairs.ShardFacts]]:
    """Make shards on all workers and yield what each says of itself."""
    import ray
    import ray.data

    cores = int(ray.cluster_resources().get("CPU", 1))
    rows = [{"shards": bundle} for bundle in bundles(shards, max(cores, 1))]
    with bounded_retries():
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            maker, batch_size=None, num_cpus=1, max_retries=RETRIES
        )
    for row in dataset.iter_rows():
        progress.advance(row["photos"])
        yield row["name"], pairs.ShardFacts(**json.loads(row["facts"]))


# === Account ===


def _account(
    options: Options,
    source: Store,
    destination: Store,
    plan_id: str,
    selection: Selection,
    made: Mapping[str, pairs.ShardFacts],
    rejected: Sequence[tuple[str, str, str]],
) -> pairs.Dataset:
    # A category of which no photo can be used is there as well, with none.
    wanted = dict(zip(SPLITS, (options.train, options.test), strict=True))
    totals = {
        split: dict.fromkeys(selection.categories if wanted[split] else (), 0) for split in SPLITS
    }
    for name, facts in sorted(made.items()):
        split = totals[name.split("/")[0]]
        for category, count in facts.categories.items():
            split[category] = split.get(category, 0) + count
    if not any(totals["train"].values()) and not any(totals["test"].values()):
        reasons = "; ".join(f"{keys.printable(key)}: {why}" for key, _, why in rejected[:3])
        raise UsageError(
            f"none of the {len(rejected)} photos of {source.uri} can be used: {reasons}"
        )
    dataset = pairs.Dataset(
        source=source.uri,
        recipe=options.blur,
        seed=options.seed,
        size_px=options.size,
        counts={split: dict(sorted(count.items())) for split, count in totals.items()},
        rejected=len(rejected),
        fingerprint=f"{sum(int(facts.fingerprint, 16) for facts in made.values()) % (1 << 256):064x}",
        plan_id=plan_id,
    )
    pairs.write_rejected(destination, rejected)
    pairs.write_dataset(destination, dataset)
    return dataset


def _warn_of_shortage(
    options: Options, dataset: pairs.Dataset, rejected: Sequence[tuple[str, str, str]], ignored: int
) -> None:
    for split, wanted in (("train", options.train), ("test", options.test)):
        short = {name: count for name, count in dataset.counts[split].items() if count < wanted}
        if short:
            warn(f"fewer than the {wanted} {split} photos wanted: {counts(short)}")
    if rejected:
        warn(f"{len(rejected)} photos became no pair; {pairs.REJECTED} says why")
    if ignored:
        note(f"{ignored} files that are no photos were passed over")


def check(options: Options) -> None:
    """Raise UsageError if what is asked for cannot be; nothing has been looked at yet."""
    from deblur import blur

    if options.blur not in blur.RECIPES:
        raise UsageError(f"there is no blur {options.blur!r}; there are {', '.join(blur.RECIPES)}")
    if not 32 <= options.size <= pictures.MOST_SIDE_PX:
        raise UsageError(
            f"--size {options.size}: a crop has 32 to {pictures.MOST_SIDE_PX} pixels a side"
        )
    if options.train < 0 or options.test < 0 or options.train + options.test == 0:
        raise UsageError(
            f"--train {options.train} --test {options.test}: expected counts of 0 or more, not both 0"
        )
