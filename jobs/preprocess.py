"""Photos -> blurred/sharp pairs. Plan shards, map them over workers, account for every photo.

    deblur preprocess places365/ pairs/ --categories castle,forest,mountain,skyscraper

A shard holds up to 64 pairs. Which photos it holds is decided before any work starts, so that any
number of workers writes the same bytes, and a rerun makes only the shards that are missing. Photos
that are rejected are replaced by the next ones of their category, in further shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

from cyclopts import Parameter

from deblur import copies, keys, pairs, places365
from deblur.errors import UsageError
from deblur.storage import Store, open_store
from jobs.preprocess_shards import Shard, ShardMaker, bundles
from jobs.progress import Progress, counts, note, warn
from jobs.runtime import RETRIES, Cluster, bounded_retries, cluster, require_shared

_SPLITS = ("train", "test")
SHARD_PAIRS = 64  # 8 MB of coded 256x256 pairs: one good-sized object, a few seconds of work


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
    pools, left_out, ignored = select(source, options)
    plan_id = _plan_id(options, pools)
    finished = {name for split in _SPLITS for name in pairs.shards(destination, split)}
    _refuse_other_pairs(destination, finished, plan_id)
    destination.make_ready()

    made: dict[str, pairs.ShardFacts] = {}
    rejected = [(key, split, why) for key, (split, why) in left_out.items()]
    total = sum(pool.wanted for pool in pools)
    with ExitStack() as stack, Progress("preprocess", total, "photos") as progress:
        taken = dict.fromkeys(pools, 0)
        wanted = {pool: pool.wanted for pool in pools}
        while any(wanted.values()):
            shards = list(plan(pools, taken, wanted, made))
            splits = {key: shard.split for shard in shards for key, _ in shard.photos}
            results: dict[str, pairs.ShardFacts] = {}
            there = [shard for shard in shards if shard.name in finished]
            found = pairs.shard_facts(destination, (shard.name for shard in there))
            for shard, facts in zip(there, found, strict=True):
                if facts is not None and facts.plan_id == plan_id:
                    results[shard.name] = facts
                    progress.advance(len(shard.photos))
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

    dataset = _account(options, source, destination, plan_id, pools, made, rejected)
    _warn_of_shortage(options, dataset, rejected, ignored)
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


# === Plan ===


def select(
    source: Store, options: Options
) -> tuple[list[places365.Pool], dict[str, tuple[str, str]], int]:
    """Return the pools, what is left out (key -> (split, reason)), and how many files are no photos."""
    entries = {entry.key: entry for entry in source.list()}
    nameless = [key for key in entries if places365.is_photo(key) and keys.nameless(key)]
    left_out = {keys.shown(key): ("", keys.NOT_UTF8) for key in nameless}
    for key in nameless:
        del entries[key]
    lists = {
        key: source.read(key).decode()
        for key in entries
        if key.rsplit("/", 1)[-1] in places365.LIST_FILES
    }
    candidates = places365.candidates(entries, lists)
    if not candidates:
        raise UsageError(
            f"{source.uri} has no photos: {len(entries)} files, none of which ends in "
            f"{', '.join(sorted(places365.PHOTO_EXTENSIONS))}"
        )
    wanted = [name.strip() for name in options.categories.split(",") if name.strip()]
    chosen = places365.choose(candidates, wanted)
    pools = places365.pools(chosen, train=options.train, test=options.test, seed=options.seed)
    sizes = {key: entries[key].size_bytes for pool in pools for key in pool.keys}
    pools, duplicates = copies.without_copies(pools, _contents(source, sizes))
    photos = sum(map(places365.is_photo, entries))
    note(
        f"{photos} photos; chose {sum(pool.wanted for pool in pools if pool.split == 'train')} to train on "
        f"and {sum(pool.wanted for pool in pools if pool.split == 'test')} to test on"
    )
    return pools, left_out | duplicates, len(entries) - photos - len(lists)


def _contents(source: Store, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the SHA-256 of the photos that may have a copy. Of places365, whose files are small, that is most."""
    suspects = copies.suspects(sizes)
    found: dict[str, str] = {}
    if not suspects:
        return found
    with Progress("look for copies", len(suspects), "photos of equal size") as progress:
        for key, digest in copies.contents(source, suspects):
            found[key] = digest
            progress.advance()
    return found


def plan(
    pools: Sequence[places365.Pool],
    taken: Mapping[places365.Pool, int],
    wanted: Mapping[places365.Pool, int],
    made: Mapping[str, pairs.ShardFacts],
) -> Iterator[Shard]:
    """Yield the shards of one round: the next wanted photos of each pool, categories in turn."""
    for split in _SPLITS:
        columns = [
            [(key, pool.category) for key in pool.keys[taken[pool] : taken[pool] + wanted[pool]]]
            for pool in pools
            if pool.split == split
        ]
        length = max(map(len, columns), default=0)
        photos = [
            column[index] for index in range(length) for column in columns if index < len(column)
        ]
        first = sum(name.startswith(f"{split}/") for name in made)
        for number, start in enumerate(range(0, len(photos), SHARD_PAIRS), start=first):
            yield Shard(
                f"{split}/{number:05d}.parquet", split, tuple(photos[start : start + SHARD_PAIRS])
            )


def _plan_id(options: Options, pools: Sequence[places365.Pool]) -> str:
    """Return a hash of everything that decides the bytes of the shards."""
    decisive = [
        pairs.SCHEMA_VERSION, options.blur, options.size, options.seed, SHARD_PAIRS, [asdict(pool) for pool in pools],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decisive).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _refuse_other_pairs(destination: Store, finished: Set[str], plan_id: str) -> None:
    for facts in pairs.shard_facts(destination, sorted(finished)[:1]):
        if facts is not None and facts.plan_id != plan_id:
            raise UsageError(
                f"{destination.uri} holds pairs made with other options or from other photos; "
                "give another place, or empty this one"
            )


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
    pools: Sequence[places365.Pool],
    made: Mapping[str, pairs.ShardFacts],
    rejected: Sequence[tuple[str, str, str]],
) -> pairs.Dataset:
    # A category of which no photo can be used is there as well, with none.
    totals = {
        split: {pool.category: 0 for pool in pools if pool.split == split and pool.wanted}
        for split in _SPLITS
    }
    for name, facts in sorted(made.items()):
        split = totals[name.split("/")[0]]
        for category, count in facts.categories.items():
            split[category] = split.get(category, 0) + count
    if not any(totals["train"].values()) and not any(totals["test"].values()):
        reasons = "; ".join(f"{key}: {why}" for key, _, why in rejected[:3])
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
    if options.size < 32:
        raise UsageError(f"--size {options.size}: a crop needs at least 32 pixels a side")
    if options.train < 0 or options.test < 0 or options.train + options.test == 0:
        raise UsageError(
            f"--train {options.train} --test {options.test}: expected counts of 0 or more, not both 0"
        )
