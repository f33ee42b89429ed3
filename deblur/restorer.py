"""Restorer: loads once; photos in, photos out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from deblur import tiles
from deblur.models import Model
from deblur.networks import network

# Tiles of the least size a call of the network; larger ones go alone. pix2pix on 2 cores with
# avx512_bf16, 2026-11, in tiles a second for 1, 4, 8 and 16: 18, 31, 36 and 41 in bfloat16; 10, 17, 21
# and 23 in float32. The last call of a stream is filled up, and its cost and memory grow with the
# number: some 4 to 8 are where both are fair. And of those 6, since on a CPU of AVX2 TensorFlow's
# products round their last rows otherwise where the number is no multiple of 24, it seems: of 8 tiles
# in float32 the last, of `photo` the last two, came out by 1e-6 as nowhere else, and of 9 the last
# three; of 3, 6 and 12 all alike, for each network, with 1 to 16 threads.
TILE_BATCH = 6


@dataclass(frozen=True)
class Settings:
    """Everything besides the model and the photo that a restored pixel depends on.

    Where memory does not suffice for `tile_batch` tiles a call, fewer are taken: then pixels may be
    rounded otherwise, by one level of 8 bits at most (see `Restorer.tile_batch`).
    """

    policy: str
    tiling: tiles.Tiling
    tile_batch: int


class _Lane:
    """The tiles of the least size that wait for a call, and the mergers that they belong to."""

    def __init__(self, tile_px: int, count: int) -> None:
        self.batch = np.zeros((count, tile_px, tile_px, 3), np.float32)
        self.owners: list[tiles.Merger] = []

    @property
    def full(self) -> bool:
        return len(self.owners) == len(self.batch)

    def add(self, tile: np.ndarray, scale: np.float32, owner: tiles.Merger) -> None:
        np.multiply(tile, scale, out=self.batch[len(self.owners)])
        self.owners.append(owner)


class Restorer:
    """Restores photos of any size by overlapping tiles.

    Tiles of the network's least size share calls, of one number always, filled up with black ones,
    with those of other photos; larger ones go alone. So a photo gives the same pixels alone and in
    any company: convolutions add in an order that depends on the number of tiles in a call (for
    bfloat16, batches of 3 and 8 were seen 0.4 of an 8-bit level apart), but not on the place in the
    batch or on the neighbours.
    """

    def __init__(self, model: Model, policy: str, tile_batch: int = TILE_BATCH) -> None:
        """Take a model that was loaded in `policy`, and call it with `tile_batch` of its smallest tiles."""
        self.settings = Settings(policy, network(model.card.network).tiling, tile_batch)
        self._together = compiled(model.generator)
        self._alone = compiled(model.generator, any_size=True)
        self._batch = tile_batch
        self.seconds = 0.0
        "What the calls of the network have taken so far; the rest of `restore` is cutting and merging."

    @property
    def tile_batch(self) -> int:
        """Smallest tiles that a call takes: `settings.tile_batch`, or fewer where memory ran out."""
        return self._batch

    def restore(self, photos: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the restored pixels of each photo, in order, as soon as they are whole.

        Args:
            photos: (H, W, 3) uint8 or uint16 arrays. One is drawn when its tiles are needed.

        Raises:
            ValueError: if a photo is another kind of array.
            MemoryError: if there is no memory for even one tile a call.
        """
        lane = _Lane(self.settings.tiling.tile_px, self.settings.tile_batch)
        pending: deque[tiles.Merger] = deque()
        for photo in photos:
            if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype not in (np.uint8, np.uint16):
                raise ValueError(
                    f"expected (H, W, 3) uint8 or uint16, received {photo.shape} {photo.dtype}"
                )
            height, width = photo.shape[:2]
            layout = tiles.plan(height, width, self.settings.tiling)
            merger = tiles.Merger(layout, photo.dtype)
            pending.append(merger)
            scale = np.float32(1 / np.iinfo(photo.dtype).max)
            for tile in tiles.split(photo, layout):
                if tile.shape[:2] != lane.batch.shape[1:3]:
                    merger.add(self._run(self._alone, (tile * scale)[None])[0])
                    continue
                lane.add(tile, scale, merger)
                if lane.full:
                    self._flush(lane)
            # A small photo among large ones would wait long for a call, and they for it.
            if len(pending) > self.settings.tile_batch:
                self._flush(lane)
            while pending and pending[0].full:
                yield pending.popleft().result()
        self._flush(lane)
        while pending:
            yield pending.popleft().result()

    def _run(self, call: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> np.ndarray:
        started = time.perf_counter()
        try:
            return call(batch)
        finally:
            self.seconds += time.perf_counter() - started

    def _flush(self, lane: _Lane) -> None:
        start, owners = 0, lane.owners
        while start < len(owners):
            count = min(self._batch, len(owners) - start)
            try:
                filled = _filled(lane.batch[start : start + count], self._batch)
                restored = self._run(self._together, filled)
            except MemoryError:
                if self._batch == 1:
                    raise
                self._batch = -(-self._batch // 2)
                continue
            for merger, tile in zip(owners[start : start + count], restored, strict=False):
                merger.add(tile)
            start += count
        owners.clear()


def _filled(batch: np.ndarray, count: int) -> np.ndarray:
    """Return these tiles and black ones, so many in all."""
    if len(batch) == count:
        return batch
    filled = np.zeros((count, *batch.shape[1:]), batch.dtype)
    filled[: len(batch)] = batch
    return filled


def compiled(generator: Any, *, any_size: bool = False) -> Callable[[np.ndarray], np.ndarray]:
    """Return the generator as a function of (B, H, W, 3) float32 arrays, without dropout.

    It is traced once for each shape, or, if it is for single pictures of `any_size`, once. It raises
    MemoryError where the device has not enough.
    """
    import tensorflow as tf

    graph = tf.function(
        lambda batch: generator(batch, training=False),
        [tf.TensorSpec((1, None, None, 3), tf.float32)] if any_size else None,
        autograph=False,  # there is nothing to convert, and who is killed would leave its file in /tmp
    )

    def call(batch: np.ndarray) -> np.ndarray:
        try:
            restored: np.ndarray = graph(tf.constant(batch)).numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"no memory for {len(batch)} tiles a call") from error
        return restored

    return call
