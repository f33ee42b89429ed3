"""The networks by name. Each maps (B, H, W, 3) in [0, 1] to the same shape; pure Keras 3, so it runs on any backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deblur.errors import UsageError


@dataclass(frozen=True)
class Network:
    """A generator and the discriminator that is trained against it.

    Attributes:
        generator: `(dtype) -> keras.Model`, one picture in, one out.
        discriminator: `(dtype) -> keras.Model`, [blurred, picture] in, a map of logits out.
        stride: heights and widths must be multiples of it.
        tile_px: side of the tiles it restores best (what it was trained on, if it has statistics over a tile).
        overlap_px: by how much tiles overlap when a photo is restored.
    """

    generator: Callable[[str], Any]
    discriminator: Callable[[str], Any]
    stride: int
    tile_px: int
    overlap_px: int


NAMES = ("pix2pix", "pix2pix-small")


def network(name: str) -> Network:
    """Return a network by its name. Raises UsageError for an unknown one."""
    from deblur.networks import pix2pix

    if name == "pix2pix":
        return pix2pix.network(width=64)
    if name == "pix2pix-small":  # a sixteenth of the parameters: for demos and tests
        return pix2pix.network(width=16)
    raise UsageError(f"there is no network {name!r}; there are {', '.join(NAMES)}")
