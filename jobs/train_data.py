"""What a training run sees: Ray Data decodes and jitters, in an order that is planned to the last
pair.

The coded pairs of all shards lie in Ray's object store. A plan of small blocks says which pairs
each worker sees in which steps; tasks on any node make them, and the split hands block j to worker
j mod N.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.train import DataConfig

from deblur import blur, pairs, photo
from deblur.errors import UsageError
from deblur.sampling import Order
from deblur.storage import Store

# The step that the data begins at: worker 0 writes it before anyone asks for data.
PROGRESS = "progress.json"

# A block holds this many pairs, or one batch: enough that a task's overhead of some 5 ms does not
# show beside 3 ms a pair.
_BLOCK_PAIRS = 16


def encoded(store: Store) -> Any:
    """Return the coded training pairs as a dataset in the object store."""
    filesystem, path = store.arrow()
    names = pairs.shards(store, "train")
    if not names:
        raise UsageError(f"{store.uri} says that it has training pairs, but its shards are gone")
    coded = ray.data.read_parquet([f"{path}/{name}" for name in names], filesystem=filesystem)
    return coded.select_columns(["key", "sharp", "blurred"]).materialize()


class Planned(DataConfig):
    """Gives each worker exactly the pairs that the order has for it, from the checkpoint's step on.

    Ray calls `configure` whenever workers start, also after a failure, when worker 0 has said where
    it stands.
    """

    def __init__(
        self, home: Store, global_batch: int, seed: int, total_steps: int, recipe: str
    ) -> None:
        super().__init__()
        self._home, self._recipe = home, recipe
        self._global_batch, self._seed, self._total_steps = global_batch, seed, total_steps

    def configure(
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        """Return an iterator for each worker."""
        start = json.loads(self._home.read(PROGRESS))["step"]
        index = Index(datasets["train"])
        order = Order(len(index), self._global_batch, self._seed)
        load = Load(index, order, world_size, start, self._total_steps, self._recipe)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = (
            True  # else blocks come as they are ready, to whoever asks
        )
        blocks = load.blocks * world_size
        batches = ray.data.range(blocks, override_num_blocks=blocks).map_batches(
            load, batch_size=None, num_cpus=0.5
        )
        splits = batches.streaming_split(world_size, equal=True)
        return [{"train": split} for split in splits]


class Index:
    """Where each pair lies in the object store, sorted by key, so that no one depends on how shards were cut."""

    def __init__(self, dataset: Any) -> None:
        self.refs: list[Any] = dataset.to_arrow_refs()
        keys = ray.get([_keys.remote(ref) for ref in self.refs])
        places = [
            (key, block, row) for block, found in enumerate(keys) for row, key in enumerate(found)
        ]
        self.places = sorted(places)

    def __len__(self) -> int:
        return len(self.places)


@ray.remote(num_cpus=0)
def _keys(table: Any) -> list[str]:
    keys: list[str] = table["key"].to_pylist()
    return keys


class Load:
    """Makes one block: decode, jitter, stack. Block j has a few steps of worker j mod `workers`."""

    def __init__(
        self, index: Index, order: Order, workers: int, start: int, stop: int, recipe: str
    ) -> None:
        self._index, self._order, self._workers = index, order, workers
        self._start, self._stop, self._mirror_shift = start, stop, blur.mirror_shift(recipe)
        self._steps = max(_BLOCK_PAIRS * workers // order.global_batch, 1)

    @property
    def blocks(self) -> int:
        """Blocks of each worker."""
        return -(-(self._stop - self._start) // self._steps)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the pictures of the blocks in a batch (it is always one)."""
        sharp: list[np.ndarray] = []
        blurred: list[np.ndarray] = []
        for block in batch["id"]:
            group, worker = divmod(int(block), self._workers)
            first = self._start + group * self._steps
            for step in range(first, min(first + self._steps, self._stop)):
                for row in self._order.rows(step, worker, self._workers):
                    pair = self._pair(int(row), self._order.epoch(step))
                    sharp.append(pair[0])
                    blurred.append(pair[1])
        return {"sharp": np.stack(sharp), "blurred": np.stack(blurred)}

    def _pair(self, row: int, epoch: int) -> Sequence[np.ndarray]:
        key, block, offset = self._index.places[row]
        table = ray.get(self._index.refs[block])  # shared memory, not a copy
        sharp, blurred = (
            photo.decode_lossless(table[name][offset].as_buffer()) for name in ("sharp", "blurred")
        )
        generator = pairs.jitter_generator(self._order.seed, key, epoch)
        return pairs.jitter(sharp, blurred, generator, mirror_shift=self._mirror_shift)
