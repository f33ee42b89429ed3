"""The networks by name. Each maps (B, H, W, 3) in [0, 1] to the same shape, in pure Keras 3.

Keras is imported when a network is built, not when its facts are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from deblur.errors import UsageError


@dataclass(frozen=True)
class Network:
    """A generator and the discriminator that is trained against it.

    Attributes:
        module: where both are, in this package.
        stride: heights and widths must be multiples of it.
        tile_px: side of the tiles that it restores best: what it was trained on.
        overlap_px: by how much tiles overlap when a photo is restored.
        arguments: what both are built with.
        generator_arguments: what the generator alone is built with besides.
    """

    module: str
    stride: int
    tile_px: int
    overlap_px: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    generator_arguments: Mapping[str, Any] = field(default_factory=dict)

    def generator(self, dtype: str = "float32") -> Any:
        """Build the `keras.Model` that takes (B, H, W, 3) blurred in [0, 1] and returns the same.

        Args:
            dtype: Keras dtype policy; the output is float32 in any.
        """
        return self._part("generator")(dtype, **self.arguments, **self.generator_arguments)

    def discriminator(self, dtype: str = "float32") -> Any:
        """Build the `keras.Model` that takes [blurred, picture] and returns a map of logits."""
        return self._part("discriminator")(dtype, **self.arguments)

    def _part(self, name: str) -> Any:
        return getattr(import_module(f"deblur.networks.{self.module}"), name)


_PIX2PIX = Network("pix2pix", stride=256, tile_px=256, overlap_px=32, arguments={"width": 64})
# Four training photos of 1024 pixels, PSNR in dB for overlaps of 32, 64 and 96: box14 31.89, 32.03, 32.29, as a
# wide inverse filter feels a tile's border; photo 26.37 with each, and 1.2 times as fast with 32 as with 64.
_WIENER_UNET = Network("wiener_unet", stride=16, tile_px=256, overlap_px=64)

NETWORKS: Mapping[str, Network] = {
    "pix2pix": _PIX2PIX,  # the report's
    "pix2pix-small": replace(_PIX2PIX, arguments={"width": 16}),  # a sixteenth, for demos and tests
    "wiener-box14": replace(_WIENER_UNET, generator_arguments={"recipe": "box14"}),
    "wiener-photo": replace(_WIENER_UNET, overlap_px=32, generator_arguments={"recipe": "photo"}),
}


def network(name: str) -> Network:
    """Return a network by its name. Raises UsageError for an unknown one."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise UsageError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}") from None
