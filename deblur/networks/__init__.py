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
        tiling: how photos are cut when they are restored.
        arguments: what both are built with.
        generator_arguments: what the generator alone is built with besides.
        fitted_from: networks whose models it can start from as well: they have some of its layers, and
            more or fewer units inside their blocks (`transfer`).
    """

    module: str
    tiling: Tiling
    arguments: Mapping[str, Any] = field(default_factory=dict)
    generator_arguments: Mapping[str, Any] = field(default_factory=dict)
    fitted_from: tuple[str, ...] = ()

    @property
    def stride(self) -> int:
        """Heights and widths must be multiples of it."""
        return self.tiling.step_px

    @property
    def tile_px(self) -> int:
        """Side of the smallest tiles, to which smaller photos are padded."""
        return self.tiling.tile_px

    @property
    def fixed(self) -> bool:
        """Whether it takes photos of one size alone, which its stride is."""
        return self.tiling.step_px == self.tiling.most_px

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


_PIX2PIX = Network("pix2pix", Tiling(256, 32, 256, 256), arguments={"width": 64})
# A wide inverse filter feels a tile's border. Six photos of 1200 pixels' height that were not trained on,
# blurred whole, for `box14`: mean PSNR, and the tiles' pixels for the photo's.
#
#     up to  576, overlap 96    37.32    1.39         1024, overlap  96    37.64    1.18
#            768          64    37.52    1.15         1024          128    37.66    1.24
#            768          96    37.59    1.25         1024           64    37.59    1.13
#
# Its time grows with a tile's side: larger ones gain nothing. `photo` has one PSNR with overlaps of
# 32, 64 and 96 (26.37), and three filters, so that tiles beyond 512 take more time than they save.
_PHOTO = Network("wiener_unet", Tiling(256, 32, 512, 16), generator_arguments={"recipe": "photo"})
_BOX14 = Network("wiener_unet", Tiling(256, 64, 1024, 16), generator_arguments={"recipe": "box14"})
_PHOTO_DEEP = replace(
    _PHOTO,
    generator_arguments={"recipe": "photo", "blocks": (1, 1, 3, 4), "context": 256},
    fitted_from=("wiener-photo",),
)
_PHOTO_KERNEL = replace(
    _PHOTO_DEEP,
    generator_arguments={**_PHOTO_DEEP.generator_arguments, "kernel": True},
    fitted_from=("wiener-photo-deep", "wiener-photo-lean"),
)

NETWORKS: Mapping[str, Network] = {
    "pix2pix": _PIX2PIX,  # the report's
    "pix2pix-small": replace(_PIX2PIX, arguments={"width": 16}),  # a sixteenth, for demos and tests
    "wiener-box14": _BOX14,
    "wiener-box14-deep": replace(
        _BOX14,
        generator_arguments={"recipe": "box14", "blocks": (2, 2, 2, 2)},
        fitted_from=("wiener-box14",),
    ),
    "wiener-box14-deeper": replace(
        _BOX14,
        generator_arguments={"recipe": "box14", "blocks": (3, 3, 2, 2)},
        fitted_from=("wiener-box14-deep", "wiener-box14-lean"),
    ),
    "wiener-box14-lean": replace(
        _BOX14,
        generator_arguments={"recipe": "box14", "blocks": (3, 3, 2, 2), "hidden": (32, 48, 32, 32)},
        fitted_from=("wiener-box14-deeper",),
    ),
    "wiener-photo": _PHOTO,
    "wiener-photo-deep": _PHOTO_DEEP,
    "wiener-photo-kernel": _PHOTO_KERNEL,
    "wiener-photo-lean": replace(
        _PHOTO_KERNEL,
        generator_arguments={**_PHOTO_KERNEL.generator_arguments, "hidden": (32, 64, 48, 96)},
        fitted_from=("wiener-photo-kernel",),
    ),
}


def network(name: str) -> Network:
    """Return a network by its name. Raises UsageError for an unknown one."""
    try:
        return NETWORKS[name]
    except KeyError:
        raise UsageError(f"there is no network {name!r}; there are {', '.join(NETWORKS)}") from None
