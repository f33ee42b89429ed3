"""The order in which a training run sees its photos.

Each epoch is a permutation drawn from the seed, cut into global batches. The last one is filled up
from the epoch's beginning, so no photo is dropped, no batch is short, and every worker makes the
same number of steps. Which photos a step sees depends on the global batch alone, never on how many
workers share it; a worker whose share is smaller than another's fills it up with photos of no
weight, so that all have one shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deblur import seeds


@dataclass(frozen=True)
class Share:
    """A replica's part of a global batch.

    Attributes:
        rows: (n,) which photos; n is the same for all replicas.
        weights: (n,) float32, 1 / global batch, or 0 for what only fills up. All replicas' sum to 1.
    """

    rows: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Order:
    """The order of `photos` rows in global batches of `global_batch`.

    Steps count from 0 through all epochs.
    """

    photos: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what has no order."""
        if self.photos < 1 or self.global_batch < 1:
            raise ValueError(f"photos={self.photos}, global_batch={self.global_batch}")

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every photo at least once."""
        return -(-self.photos // self.global_batch)

    def epoch(self, step: int) -> int:
        """Return the epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """Return the (global_batch,) rows of a step."""
        start = step % self.steps_per_epoch * self.global_batch
        permutation = _permutation(self.photos, self.seed, self.epoch(step))
        return permutation[np.arange(start, start + self.global_batch) % self.photos]

    def share(self, step: int, replica: int, replicas: int) -> Share:
        """Return one replica's part of a step: as even as can be, and of one length for all.

        Raises:
            ValueError: if there is no such replica.
        """
        if not 0 <= replica < replicas:
            raise ValueError(f"replica {replica} of {replicas}")
        rows = self.rows(step)
        bounds = [self.global_batch * index // replicas for index in (replica, replica + 1)]
        mine = rows[slice(*bounds)]
        length = -(-self.global_batch // replicas)
        weights = np.zeros(length, np.float32)
        weights[: len(mine)] = 1 / self.global_batch
        return Share(np.resize(mine if len(mine) else rows, length), weights)


@lru_cache(maxsize=2)
def _permutation(photos: int, seed: int, epoch: int) -> np.ndarray:
    return seeds.generator(seed, str(epoch), "order").permutation(photos)
