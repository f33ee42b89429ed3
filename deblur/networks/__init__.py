"""The networks by name. Each maps (B, H, W, 3) in [0, 1] to the same shape, in pure Keras 3.

Keras is imported when a network is built, not when its facts are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from deblur.errors import UsageError
from deblur.tiles import Tiling


@dataclass(frozen=True)
class Network:
    """A generator and the discriminator that is trained against it.

    Attributes:
        module: where both are, in this package.
        stride: heights and widths must be multiples of it.
        tilings: how photos are cut when they are restored, ascending: each by the largest tiles that
            fit into it.
        arguments: what both are built with.
        generator_arguments: what the generator alone is built with besides.
        grown_from: a network that has some of its layers, whose models it can start from as well.
    """

    module: str
    stride: int
    tilings: tuple[Tiling, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    generator_arguments: Mapping[str, Any] = field(default_factory=dict)
    grown_from: str | None = None

    @property
    def tile_px(self) -> int:
        """Side of the smallest tiles, to which smaller photos are padded."""
        return self.tilings[0].tile_px

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


_PIX2PIX = Network("pix2pix", 256, (Tiling(256, 32),), arguments={"width": 64})
_PHOTO = Network("wiener_unet", 16, (Tiling(256, 32),), generator_arguments={"recipe": "photo"})
# A wide inverse filter feels a tile's border. Six training photos of 1024 pixels, blurred whole, PSNR in dB
# for tiles of 256 that overlap by 64, of 384 by 64 and of 512 by 96: 35.69, 36.47, 37.06; three of 3
# megapixels that were not trained on, for 256 by 64, 512 by 64, 512 by 96, 1024 by 128: 34.69, 34.80, 35.10,
# 35.29. For `photo` overlaps of 32, 64 and 96 are one: 26.37.
_BOX14 = Network(
    "wiener_unet",
    16,
    (Tiling(256, 64), Tiling(512, 96)),
    generator_arguments={"recipe": "box14"},
)

NETWORKS: Mapping[str, Network] = {
    "pix2pix": _PIX2PIX,  # the report's
    "pix2pix-small": replace(_PIX2PIX, arguments={"width": 16}),  # a sixteenth, for demos and tests
    "wiener-box14": _BOX14,
    "wiener-box14-deep": replace(
        _BOX14,
        generator_arguments={"recipe": "box14", "blocks": (2, 2, 2, 2)},
        grown_from="wiener-box14",
    ),
    "wiener-box14-deeper": replace(
        _BOX14,
        generator_arguments={"recipe": "box14", "blocks": (3, 3, 2, 2)},
        grown_from="wiener-box14-deep",
    ),
    "wiener-photo": _PHOTO,
}


def network(name: str) -> Network:
    """Return a network by its name. Raises UsageError for an unknown one."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise UsageError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}") from None
