"""What a training run sees: Ray Data decodes and draws, in an order that is planned to the last photo.

The coded photos lie in Ray's object store. A plan of small blocks says which photos each worker
sees in which steps; tasks on any node make them, and the split hands block j to worker j mod N.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.train import DataConfig

from deblur import photo, seeds
from deblur.examples import Example, Maker
from deblur.sampling import Order
from deblur.storage import Store

# The step that the data begins at: worker 0 writes it before anyone asks for data.
PROGRESS = "progress.json"

# A block holds this many photos, or one batch. CPU time of all that feeds a step of 4 crops of 128 px
# (24 ms of decoding and drawing alone): 37 ms in blocks of 16, 33 in blocks of 64; and the first of
# 20,000 steps comes after 5 s, not 9.
_BLOCK_PHOTOS = 64


class Place(NamedTuple):
    """Where a photo lies: in which block of the object store, and in which of its rows."""

    key: str
    block: int
    row: int


@dataclass(frozen=True)
class Album:
    """The photos of a run, coded, in the object store.

    Attributes:
        refs: tables with `key`, `sharp`, and, if these are pairs whose blur stays, `blurred`.
        maker: makes examples of them.
        held_out: how many serve for validation, and not for training.
    """

    refs: Sequence[Any]
    maker: Maker
    held_out: int

    @cached_property
    def _places(self) -> list[Place]:
        """Sorted by a hash of the key: no one depends on how shards were cut, or on the names."""
        keys = ray.get([_keys.remote(ref) for ref in self.refs])
        places = [
            Place(key, block, row)
            for block, found in enumerate(keys)
            for row, key in enumerate(found)
        ]
        return sorted(places, key=lambda place: seeds.digest(0, place.key, "held out"))

    @property
    def training(self) -> list[Place]:
        """The photos to train on."""
        return self._places[self.held_out :]

    def validation(self) -> Iterator[Example]:
        """Yield what to validate on: the same for every run on these photos."""
        for place in self._places[: self.held_out]:
            sharp, blurred = self._pictures(place)
            if blurred is None:
                yield self.maker.held_out(sharp, place.key)
            else:
                yield Example(sharp, blurred)

    def example(self, place: Place, epoch: int) -> Example:
        """Return what an epoch sees of a photo."""
        sharp, blurred = self._pictures(place)
        if blurred is None:
            return self.maker.of_photo(sharp, place.key, epoch)
        return self.maker.of_pair(sharp, blurred, place.key, epoch)

    def _pictures(self, place: Place) -> tuple[np.ndarray, np.ndarray | None]:
        table = ray.get(self.refs[place.block])  # shared memory, not a copy
        sharp, blurred = (
            _decoded(table[name][place.row].as_buffer()) if name in table.column_names else None
            for name in ("sharp", "blurred")
        )
        assert sharp is not None
        return sharp, blurred


def _decoded(data: Any) -> np.ndarray:
    if bytes(data[:4]) == b"RIFF":  # as pairs are coded: OpenCV's is the faster
        return photo.decode_lossless(data)
    return photo.to_uint8(photo.decode(data.to_pybytes()).pixels)


@ray.remote(num_cpus=0)
def _keys(table: Any) -> list[str]:
    keys: list[str] = table["key"].to_pylist()
    return keys


class Planned(DataConfig):
    """Gives each worker exactly the photos that the order has for it, from the checkpoint's step on.

    Ray calls `configure` whenever workers start, also after a failure, when worker 0 has said where
    it stands.
    """

    def __init__(
        self, home: Store, album: Album, order: Order, total_steps: int, replicas_a_worker: int
    ) -> None:
        super().__init__()
        self._home, self._album, self._order = home, album, order
        self._total_steps, self._replicas = total_steps, replicas_a_worker

    def configure(
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, Any]]:
        """Return an iterator for each worker."""
        start = json.loads(self._home.read(PROGRESS))["step"]
        load = Load(self._album, self._order, start, self._total_steps, world_size, self._replicas)
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


class Load:
    """Makes one block: decode, draw, stack. Block j has a few steps of worker j mod `workers`.

    A worker has `replicas`, whose shares follow one another in its batch.
    """

    def __init__(
        self, album: Album, order: Order, start: int, stop: int, workers: int, replicas: int
    ) -> None:
        self._album, self._order, self._start, self._stop = album, order, start, stop
        self._workers, self._replicas = workers, replicas
        self._places = album.training
        self._steps = max(_BLOCK_PHOTOS * workers // order.global_batch, 1)

    @property
    def blocks(self) -> int:
        """Blocks of each worker."""
        return -(-(self._stop - self._start) // self._steps)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the examples of the blocks in a batch (it is always one)."""
        examples: list[Example] = []
        weights: list[np.ndarray] = []
        keys: list[str] = []
        for block in batch["id"]:
            group, worker = divmod(int(block), self._workers)
            first = self._start + group * self._steps
            for step in range(first, min(first + self._steps, self._stop)):
                epoch = self._order.epoch(step)
                for replica in range(worker * self._replicas, (worker + 1) * self._replicas):
                    share = self._order.share(step, replica, self._workers * self._replicas)
                    places = [self._places[int(row)] for row in share.rows]
                    examples += [self._album.example(place, epoch) for place in places]
                    keys += [place.key for place in places]
                    weights.append(share.weights)
        return {
            "sharp": np.stack([example.sharp for example in examples]),
            "blurred": np.stack([example.blurred for example in examples]),
            "weight": np.concatenate(weights),
            "key": keys,
        }
