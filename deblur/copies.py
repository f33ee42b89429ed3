"""Photos of the same content: each is kept once, so that no test photo is ever trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from deblur import ahead
from deblur.places365 import Pool
from deblur.storage import Store

_THREADS = 32  # reads at a time: they wait for the store
_READ_BYTES = 1 << 30  # that they may hold at once
_AHEAD = 4096  # reads that are asked for at once; each takes 2 kB meanwhile


def suspects(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the photos that may have a copy, with their size in bytes: those of the same as another's."""
    by_size = defaultdict(list)
    for key, size in sizes.items():
        by_size[size].append(key)
    return {key: size for size, keys in by_size.items() if len(keys) > 1 for key in keys}


def contents(source: Store, suspects: Mapping[str, int]) -> Generator[tuple[str, str], None, None]:
    """Yield each photo with its SHA-256, or "" if it cannot be read: whoever makes its pair says why."""

    def digest(key: str) -> str:
        try:
            return hashlib.sha256(source.read(key)).hexdigest()
        except (OSError, MemoryError):
            return ""

    largest = max(suspects.values(), default=1)
    with (
        ThreadPoolExecutor(min(max(_READ_BYTES // max(largest, 1), 1), _THREADS)) as threads,
        closing(ahead.results(threads, digest, suspects, _AHEAD)) as found,
    ):
        yield from zip(suspects, found, strict=True)


def without_copies(
    pools: Sequence[Pool], contents: Mapping[str, str]
) -> tuple[list[Pool], dict[str, tuple[str, str]]]:
    """Keep one of each content, a test photo rather than a training photo.

    Returns the pools without the copies, and key -> (split, reason) of the copies.
    """
    owner: dict[str, str] = {}
    copies: dict[str, tuple[str, str]] = {}
    for pool in sorted(pools, key=lambda pool: pool.split == "train"):
        for key in pool.keys:
            if content := contents.get(key):
                first = owner.setdefault(content, key)
                if first != key:
                    copies[key] = (pool.split, f"same content as {first}")
    kept = []
    for pool in pools:
        keys = tuple(key for key in pool.keys if key not in copies)
        if keys:
            kept.append(Pool(pool.category, pool.split, keys, min(pool.wanted, len(keys))))
    return kept, copies
