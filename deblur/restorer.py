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

# Tiles a call of the network. pix2pix on 2 cores with avx512_bf16, 2026-11, in tiles a second for
# 1, 4, 8 and 16: 18, 31, 36 and 41 in bfloat16; 10, 17, 21 and 23 in float32. The last call of a
# stream is filled up, and its cost and memory grow with the number: 8 is where both are fair.
TILE_BATCH = 8


@dataclass(frozen=True)
class Settings:
    """Everything besides the model and the photo that a restored pixel depends on.

    Where memory does not suffice for `tile_batch` tiles a call, fewer are taken: then pixels may be
    rounded otherwise, by one level of 8 bits at most (see `Restorer.tile_batch`).
    """

    policy: str
    tile_px: int
    overlap_px: int
    tile_batch: int


class Restorer:
    """Restores photos of any size by overlapping tiles, which share calls with other photos'.

    The network is always called with the same number of tiles, filled up with black ones, so a
    photo gives the same pixels alone and in any company: convolutions add in an order that depends
    on the number (for bfloat16, batches of 3 and 8 were seen 0.4 of an 8-bit level apart), but not
    on the place in the batch or on the neighbours.
    """

    def __init__(self, model: Model, policy: str, tile_batch: int = TILE_BATCH) -> None:
        """Take a model that was loaded in `policy`, and call it with `tile_batch` tiles."""
        shape = network(model.card.network)
        self.settings = Settings(policy, shape.tile_px, shape.overlap_px, tile_batch)
        self._call = compiled(model.generator)
        self._batch = tile_batch
        self.seconds = 0.0
        "What the calls of the network have taken so far; the rest of `restore` is cutting and merging."

    @property
    def tile_batch(self) -> int:
        """Tiles that a call takes: `settings.tile_batch`, or fewer where memory ran out."""
        return self._batch

    def restore(self, photos: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the restored pixels of each photo, in order, as soon as they are whole.

        Args:
            photos: (H, W, 3) uint8 or uint16 arrays. One is drawn when its tiles are needed.

        Raises:
            ValueError: if a photo is another kind of array.
            MemoryError: if there is no memory for even one tile a call.
        """
        size = self.settings.tile_px
        batch = np.zeros((self.settings.tile_batch, size, size, 3), np.float32)
        pending: deque[tiles.Merger] = deque()
        owners: list[tiles.Merger] = []
        for photo in photos:
            if photo.ndim != 3 or photo.shape[2] != 3 or photo.dtype not in (np.uint8, np.uint16):
                raise ValueError(
                    f"expected (H, W, 3) uint8 or uint16, received {photo.shape} {photo.dtype}"
                )
            layout = tiles.plan(*photo.shape[:2], tile_px=size, overlap_px=self.settings.overlap_px)
            merger = tiles.Merger(layout, photo.dtype)
            pending.append(merger)
            scale = np.float32(1 / np.iinfo(photo.dtype).max)
            for tile in tiles.split(photo, layout):
                np.multiply(tile, scale, out=batch[len(owners)])
                owners.append(merger)
                if len(owners) == len(batch):
                    self._flush(batch, owners)
            while pending and pending[0].full:
                yield pending.popleft().result()
        if owners:
            batch[len(owners) :] = 0
            self._flush(batch, owners)
        while pending:
            yield pending.popleft().result()

    def _flush(self, batch: np.ndarray, owners: list[tiles.Merger]) -> None:
        start = 0
        while start < len(owners):
            count = min(self._batch, len(owners) - start)
            started = time.perf_counter()
            try:
                restored = self._call(self._filled(batch, start, count))
            except MemoryError:
                if self._batch == 1:
                    raise
                self._batch = -(-self._batch // 2)
                continue
            finally:
                self.seconds += time.perf_counter() - started
            for merger, tile in zip(owners[start : start + count], restored, strict=False):
                merger.add(tile)
            start += count
        owners.clear()

    def _filled(self, batch: np.ndarray, start: int, count: int) -> np.ndarray:
        """Return `count` tiles from `start` on, filled up to what a call takes."""
        part = batch[start : start + self._batch]
        if len(part) < self._batch:
            part = np.zeros((self._batch, *batch.shape[1:]), batch.dtype)
            part[:count] = batch[start : start + count]
        return part


def compiled(generator: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return the generator as a function of (B, H, W, 3) float32 arrays, without dropout.

    It is traced once for each shape. It raises MemoryError where the device has not enough.
    """
    import tensorflow as tf

    graph = tf.function(lambda batch: generator(batch, training=False))

    def call(batch: np.ndarray) -> np.ndarray:
        try:
            restored: np.ndarray = graph(tf.constant(batch)).numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"no memory for {len(batch)} tiles a call") from error
        return restored

    return call
