"""The unit of preprocessing: the photos that one file of pairs holds, and what makes it."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from deblur import ahead, pairs
from deblur.errors import PhotoError
from deblur.storage import Store, reason

# Of each worker: they hide a store's latency of some 30 ms behind 7 ms of work a photo.
_FETCH_THREADS = 8
# Some seven seconds: what a lost worker's task does again, and the step of the progress bar.
_BUNDLE_SHARDS = 16


@dataclass(frozen=True)
class Shard:
    """The unit of work: the photos that one file holds."""

    name: str
    split: str
    photos: tuple[tuple[str, str], ...]  # (key, category)


def bundles(shards: Sequence[Shard], workers: int) -> Iterator[list[Shard]]:
    """Yield what a task makes: many shards at first, single ones at the end.

    Between two tasks a core waits 0.2 s for Ray, and a shard takes 0.45 s, so one a task wastes a
    third; but if all were large, one worker would be left with the last. Guided self-scheduling
    (Polychronopoulos & Kuck 1987): two thirds of an even share of what is left.
    """
    start = 0
    while start < len(shards):
        count = min(max(2 * (len(shards) - start) // (3 * workers), 1), _BUNDLE_SHARDS)
        yield list(shards[start : start + count])
        start += count


class ShardMaker:
    """Makes one shard: fetch by threads, decode, crop, blur, code, put."""

    def __init__(
        self,
        source: Store,
        destination: Store,
        *,
        recipe: str,
        seed: int,
        size_px: int,
        plan_id: str,
    ) -> None:
        self._source, self._destination = source, destination
        self._recipe, self._seed, self._size_px = recipe, seed, size_px
        self._plan_id = plan_id

    def __call__(self, batch: Mapping[str, Sequence[Sequence[Shard]]]) -> dict[str, list[Any]]:
        """Make the shards of a batch and return a row about each."""
        rows: dict[str, list[Any]] = {"name": [], "photos": [], "facts": []}
        for shard in (shard for bundle in batch["shards"] for shard in bundle):
            facts = self.make(shard)
            rows["name"].append(shard.name)
            rows["photos"].append(len(shard.photos))
            rows["facts"].append(json.dumps(asdict(facts)))
        return rows

    def make(self, shard: Shard) -> pairs.ShardFacts:
        """Make one shard and write it."""
        import cv2

        cv2.setNumThreads(1)  # one worker, one core: the workers are the parallelism
        done: list[pairs.Pair] = []
        rejected: dict[str, str] = {}
        with ThreadPoolExecutor(_FETCH_THREADS) as threads:
            keys = (key for key, _ in shard.photos)
            fetched = ahead.results(threads, self._fetch, keys, 2 * _FETCH_THREADS)
            for (key, category), data in zip(shard.photos, fetched, strict=True):
                try:
                    if isinstance(data, OSError):
                        raise PhotoError(f"cannot be read: {reason(data)}")
                    done.append(
                        pairs.make_pair(
                            data, key=key, category=category, recipe=self._recipe,
                            seed=self._seed, size_px=self._size_px,
                        )
                    )  # fmt: skip
                except PhotoError as error:
                    rejected[key] = str(error)
        return pairs.write_shard(self._destination, shard.name, done, rejected, self._plan_id)

    def _fetch(self, key: str) -> bytes | OSError:
        try:
            return self._source.read(key)
        except MemoryError:
            return OSError(errno.ENOMEM, "the file is larger than the memory")
        except OSError as error:
            return error
