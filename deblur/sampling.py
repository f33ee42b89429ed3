"""The order in which a training run sees its pairs.

Each epoch is a permutation drawn from the seed, cut into global batches. The last one is filled up
from the epoch's beginning, so no pair is dropped, no batch is short, and every worker makes the
same number of steps. Which pairs a step sees depends on the global batch alone, never on how many
workers share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deblur import seeds


@dataclass(frozen=True)
class Order:
    """The order of `pairs` rows in global batches of `global_batch`.

    Steps count from 0 through all epochs.
    """

    pairs: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what has no order."""
        if self.pairs < 1 or self.global_batch < 1:
            raise ValueError(f"pairs={self.pairs}, global_batch={self.global_batch}")

    @property
    def steps_per_epoch(self) -> int:
        """Steps that see every pair at least once."""
        return -(-self.pairs // self.global_batch)

    def epoch(self, step: int) -> int:
        """Return the epoch that a step belongs to."""
        return step // self.steps_per_epoch

    def rows(self, step: int, worker: int = 0, workers: int = 1) -> np.ndarray:
        """Return the rows of one worker's equal share of a step's global batch.

        Raises:
            ValueError: if the workers cannot have equal shares: some rows would be nobody's.
        """
        if self.global_batch % workers or not 0 <= worker < workers:
            raise ValueError(f"worker {worker} of {workers}, global_batch={self.global_batch}")
        position = step % self.steps_per_epoch * self.global_batch
        share = self.global_batch // workers
        start = position + worker * share
        permutation = _permutation(self.pairs, self.seed, self.epoch(step))
        return permutation[np.arange(start, start + share) % self.pairs]


@lru_cache(maxsize=2)
def _permutation(pairs: int, seed: int, epoch: int) -> np.ndarray:
    return seeds.generator(seed, str(epoch), "order").permutation(pairs)
