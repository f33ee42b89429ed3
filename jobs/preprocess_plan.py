"""What `deblur preprocess` has before it: which photos, in which shards, and which of these are made.

All of it is decided before any work starts, so that any number of workers writes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from deblur import copies, keys, pairs, places365
from deblur.errors import UsageError
from deblur.storage import Store
from jobs.preprocess_shards import Shard
from jobs.progress import Progress, note

if TYPE_CHECKING:
    from jobs.preprocess import Options

SPLITS = ("train", "test")
SHARD_PAIRS = 64  # 8 MB of coded 256x256 pairs: one good-sized object, a few seconds of work


@dataclass(frozen=True)
class Selection:
    """Which photos serve.

    Attributes:
        pools: what supplies the photos.
        sizes: of the pools' photos, in bytes, by key.
        categories: those wanted, also where they have no photo left for a split.
        left_out: key -> (split, reason) of photos that cannot serve, which nobody has to read for that.
        ignored: how many files are no photos.
    """

    pools: Sequence[places365.Pool]
    sizes: Mapping[str, int]
    categories: Sequence[str]
    left_out: Mapping[str, tuple[str, str]]
    ignored: int


def select(source: Store, destination: Store, options: Options) -> Selection:
    """List the source and choose. The destination is known to take objects before contents are compared."""
    entries = {entry.key: entry for entry in source.list()}
    photos = [key for key in entries if places365.is_photo(key)]
    nameless = [key for key in photos if keys.nameless(key)]
    if not photos:
        raise UsageError(
            f"{source.uri} has no photos: {len(entries)} files, none of which ends in "
            f"{', '.join(sorted(places365.PHOTO_EXTENSIONS))}"
        )
    if len(nameless) == len(photos):
        raise UsageError(f"the name of none of the {len(photos)} photos of {source.uri} is UTF-8")
    ignored = len(entries) - len(photos)
    for key in nameless:
        del entries[key]
    lists = {key: _text(source, key) for key in entries if _name(key) in places365.LIST_FILES}
    candidates = places365.candidates(entries, lists)
    if outside := len(photos) - len(nameless) - len(candidates):
        placed = {candidate.key for candidate in candidates}
        example = next(key for key in photos if key in entries and key not in placed)
        note(
            f"{outside} of {len(photos)} photos are left out, such as {keys.printable(example)}: they are not "
            "in the folders of the layout that was found (places365's, or train/ and test/)"
        )
    wanted = [name.strip() for name in options.categories.split(",") if name.strip()]
    chosen = places365.choose(candidates, wanted)
    pools = places365.pools(chosen, train=options.train, test=options.test, seed=options.seed)
    sizes = {key: entries[key].size_bytes for pool in pools for key in pool.keys}
    destination.make_ready()
    pools, duplicates = copies.without_copies(pools, _contents(source, sizes))
    counts = {split: sum(pool.wanted for pool in pools if pool.split == split) for split in SPLITS}
    note(
        f"{len(photos)} photos; chose {counts['train']} to train on and {counts['test']} to test on"
    )
    left_out = {keys.shown(key): ("", keys.NOT_UTF8) for key in nameless} | duplicates
    categories = sorted({candidate.category for candidate in chosen})
    return Selection(pools, sizes, categories, left_out, ignored - len(lists))


def _name(key: str) -> str:
    return key.rsplit("/", 1)[-1]


def _text(source: Store, key: str) -> str:
    try:
        return source.read(key).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{source.uri}/{key} is no UTF-8 text: put the official list there, or take the file away"
        ) from error


def _contents(source: Store, sizes: Mapping[str, int]) -> dict[str, str]:
    """Return the SHA-256 of the photos that may have a copy. Of places365, whose files are small, that is most."""
    suspects = copies.suspects(sizes)
    found: dict[str, str] = {}
    if not suspects:
        return found
    with (
        Progress("look for copies", len(suspects), "photos of equal size") as progress,
        closing(copies.contents(source, suspects)) as read,
    ):
        for key, digest in read:
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
    for split in SPLITS:
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


def identify(options: Options, selection: Selection) -> str:
    """Return a hash of everything that decides the bytes of the shards.

    Photos have their size in it: cameras give all cards the same names.
    """
    decisive = [
        pairs.SCHEMA_VERSION, options.blur, options.size, options.seed, SHARD_PAIRS,
        [asdict(pool) for pool in selection.pools], selection.sizes,
    ]  # fmt: skip
    text = json.dumps(decisive, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def finished_shards(destination: Store, plan_id: str) -> dict[str, pairs.ShardFacts | None]:
    """Return the shards that are there: None for one that has to be made again, or to go.

    Raises:
        UsageError: if one has pairs of another plan.
    """
    names = [name for split in SPLITS for name in pairs.shards(destination, split)]
    found = dict(zip(names, pairs.shard_facts(destination, names), strict=True))
    for facts in found.values():
        if facts is not None and facts.pairs and facts.plan_id != plan_id:
            raise UsageError(
                f"{destination.uri} holds pairs made with other options or from other photos; "
                "give another place, or empty this one"
            )
    return {
        name: facts if facts is not None and facts.plan_id == plan_id else None
        for name, facts in found.items()
    }
