"""The networks by name. Each maps (B, H, W, 3) in [0, 1] to the same shape; pure Keras 3, so it runs on any backend.

Keras is imported when a network is built, not when its facts are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from deblur.errors import UsageError


@dataclass(frozen=True)
class Network:
    """A generator and the discriminator that is trained against it.

    Attributes:
        module: where both are, in this package.
        stride: heights and widths must be multiples of it.
        tile_px: side of the tiles that it restores best (what it was trained on, if it has statistics over a tile).
        overlap_px: by how much tiles overlap when a photo is restored.
        arguments: what both are built with.
    """

    module: str
    stride: int
    tile_px: int
    overlap_px: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def generator(self, dtype: str = "float32") -> Any:
        """Build the `keras.Model` that takes one blurred picture. `dtype` is a Keras dtype policy."""
        return self._build("generator", dtype)

    def discriminator(self, dtype: str = "float32") -> Any:
        """Build the `keras.Model` that takes [blurred, picture] and returns a map of logits."""
        return self._build("discriminator", dtype)

    def _build(self, part: str, dtype: str) -> Any:
        return getattr(import_module(f"deblur.networks.{self.module}"), part)(dtype, **self.arguments)


_PIX2PIX = {"module": "pix2pix", "stride": 256, "tile_px": 256, "overlap_px": 32}

NETWORKS: Mapping[str, Network] = {
    "pix2pix": Network(**_PIX2PIX, arguments={"width": 64}),  # the report's
    "pix2pix-small": Network(**_PIX2PIX, arguments={"width": 16}),  # a sixteenth, for demos and tests
}


def network(name: str) -> Network:
    """Return a network by its name. Raises UsageError for an unknown one."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise UsageError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}") from None
