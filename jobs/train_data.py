"""What a training run sees: Ray's tasks decode and draw, in an order that is planned to the last photo.

The coded photos lie in Ray's object store. Each worker knows which photos it sees in which steps;
tasks on any node make blocks of them, a few ahead of the training.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import ray

from deblur import photo, seeds
from deblur.examples import Example, Maker
from deblur.sampling import Order
from jobs.runtime import working_nodes
from jobs.train_pieces import TASK_CPUS, Pieces

# A block holds this many photos, or one batch: so the overhead of a task, 5 ms or more, does not show.
_BLOCK_PHOTOS = 64


class Place(NamedTuple):
    """Where a photo lies: in which piece, and in which of its rows."""

    key: str
    piece: int
    row: int


class Batch(NamedTuple):
    """What one worker sees in one step.

    Attributes:
        sharp, blurred: (B, H, W, 3) uint8.
        weights: (B,) float32, see `sampling.Share`.
    """

    sharp: np.ndarray
    blurred: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Album:
    """The photos of a run, coded, in the object store.

    Attributes:
        pieces: the photos.
        maker: makes examples of them.
        held_out: how many serve for validation, and not for training.
    """

    pieces: Pieces
    maker: Maker
    held_out: int

    @cached_property
    def _places(self) -> list[Place]:
        """Sorted by a hash of the key: no one depends on how shards were cut, or on the names."""
        places = [
            Place(key, piece, row)
            for piece, keys in enumerate(ray.get(self.pieces.keys))
            for row, key in enumerate(keys)
        ]
        return sorted(places, key=lambda place: seeds.digest(0, place.key, "held out"))

    @property
    def training(self) -> list[Place]:
        """The photos to train on."""
        return self._places[self.held_out :]

    def validation(self) -> Iterator[Example]:
        """Yield what to validate on: the same for every run on these photos."""
        return self.glimpse(self.held_out)

    def glimpse(self, count: int) -> Iterator[Example]:
        """Yield so many photos, those held out first, as they are validated on."""
        for place in self._places[:count]:
            sharp, blurred = _pictures(ray.get(self.pieces.refs[place.piece]), place.row)
            if blurred is None:
                yield self.maker.held_out(sharp, place.key)
            else:
                yield self.maker.held_out_pair(sharp, blurred)


def example(maker: Maker, table: Any, place: Place, epoch: int) -> Example:
    """Return what an epoch sees of a photo of a table: in shared memory, of which nothing is copied."""
    sharp, blurred = _pictures(table, place.row)
    if blurred is None:
        return maker.of_photo(sharp, place.key, epoch)
    return maker.of_pair(sharp, blurred, place.key, epoch)


def _pictures(table: Any, row: int) -> tuple[np.ndarray, np.ndarray | None]:
    sharp, blurred = (
        _decoded(table[name][row].as_buffer()) if name in table.column_names else None
        for name in ("sharp", "blurred")
    )
    assert sharp is not None
    return sharp, blurred


def _decoded(data: Any) -> np.ndarray:
    if bytes(data[:4]) == b"RIFF":  # as pairs are coded: OpenCV's is the faster
        return photo.decode_lossless(data)
    return photo.to_uint8(photo.decode(data.to_pybytes()).pixels)


def cores() -> list[float]:
    """Return the cores of each of the cluster's nodes that has some."""
    return [node["Resources"]["CPU"] for node in working_nodes()]


def blocks_ahead(nodes: Sequence[float], workers: int, cpus: float) -> int:
    """Return how many blocks a worker asks for ahead: as its share of the free cores makes at a time, and one.

    Args:
        nodes: cores of each node.
        workers: how many there are.
        cpus: that each of them has reserved.
    """
    return math.ceil(max(sum(nodes) - workers * cpus, 0) / TASK_CPUS / workers) + 1


class Feed:
    """The batches of one worker: Ray's tasks decode and draw them, some way ahead of the training.

    Not Ray Data's `streaming_split`: its coordinator waits busily while its buffers are full, and
    fills the object store with what is not needed yet. wiener-box14, 4 crops of 128 px a step, two
    cores: 4.6 steps a second with it, 10.4 without.
    """

    def __init__(
        self, album: Album, order: Order, workers: int, worker: int, replicas: int, ahead: int
    ) -> None:
        """Say whose batches.

        Args:
            album: the photos.
            order: in which they are seen.
            workers: how many share a step.
            worker: which of them this is.
            replicas: of each worker; their shares follow one another in its batch.
            ahead: blocks that are asked for ahead of the one in use.
        """
        self._album, self._order, self._places = album, order, album.training
        self._replicas = range(worker * replicas, (worker + 1) * replicas)
        self._all_replicas, self._ahead = workers * replicas, ahead
        self._steps_a_block = max(_BLOCK_PHOTOS * workers // order.global_batch, 1)

    def keys(self, step: int) -> list[str]:
        """Return the keys of the photos that all workers together see in a step."""
        return [self._places[int(row)].key for row in self._order.rows(step)]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of the steps from `start` to `stop`."""
        firsts = range(start, stop, self._steps_a_block)
        blocks = (self._block(first, min(first + self._steps_a_block, stop)) for first in firsts)
        pending = deque(itertools.islice(blocks, self._ahead))
        while pending:
            # So that what other nodes have made is on its way here before it is needed.
            ray.wait(list(pending), num_returns=len(pending), timeout=0, fetch_local=True)
            block = ray.get(pending.popleft())
            pending.extend(itertools.islice(blocks, 1))
            yield from block

    def _block(self, first: int, stop: int) -> ray.ObjectRef:
        """Begin to make the batches of some steps."""
        steps = []
        for step in range(first, stop):
            shares = [
                self._order.share(step, replica, self._all_replicas) for replica in self._replicas
            ]
            places = [self._places[int(row)] for share in shares for row in share.rows]
            weights = np.concatenate([share.weights for share in shares])
            steps.append((self._order.epoch(step), places, weights))
        numbers = sorted({place.piece for _, places, _ in steps for place in places})
        tables = [self._album.pieces.refs[number] for number in numbers]
        return _made.remote(self._album.maker, steps, numbers, *tables)


@ray.remote(num_cpus=TASK_CPUS)
def _made(
    maker: Maker,
    steps: Sequence[tuple[int, Sequence[Place], np.ndarray]],
    numbers: Sequence[int],
    # Not asked for in here: Ray starts another process for each task that waits.
    *tables: Any,
) -> list[Batch]:
    cv2.setNumThreads(1)
    table_of = dict(zip(numbers, tables, strict=True))
    batches = []
    for epoch, places, weights in steps:
        examples = [example(maker, table_of[place.piece], place, epoch) for place in places]
        sharp, blurred = (np.stack(pictures) for pictures in zip(*examples, strict=True))
        batches.append(Batch(sharp, blurred, weights))
    return batches
