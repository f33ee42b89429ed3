"""The source of all randomness: generators seeded by (seed, key of the item, purpose).

What an item draws never depends on which worker handles it, in which order, or how often it is
retried.
"""

from __future__ import annotations

import hashlib

import numpy as np


def digest(seed: int, key: str, purpose: str) -> bytes:
    """Return 32 bytes that depend on the seed, the item's key and the purpose alone."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{key}".encode("utf-8", "surrogatepass")).digest()


def generator(seed: int, key: str, purpose: str) -> np.random.Generator:
    """Return the generator of one item for one purpose."""
    return np.random.default_rng(np.frombuffer(digest(seed, key, purpose), dtype=np.uint32))
