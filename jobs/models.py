"""What models there are, and what their cards say.

deblur models                   # those that come with deblur
deblur models run/model         # any other
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cyclopts import Parameter

from deblur import models
from jobs.progress import note


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    model: str | None = None
    "A name, or a folder or s3://bucket/prefix that `deblur train` made (RUN/model); else all that come with deblur."


def run(options: Options = Options()) -> dict[str, Any]:
    """Return the card, or in short those of all that come with deblur."""
    if options.model is not None:
        return asdict(models.read_card(models.open_model(options.model)))
    cards = {name: models.read_card(models.open_model(name)) for name in models.shipped()}
    _print_table(cards)
    return {"models": {name: _in_short(name, card) for name, card in cards.items()}}


def _in_short(name: str, card: models.Card) -> dict[str, Any]:
    return {
        "for": card.recipe,
        "network": card.network,
        "model_id": card.model_id,
        "bytes": models.size_bytes(models.open_model(name)),
        "licence": card.licence,
        "figures": card.figures,
        "measured_on": card.measured_on,
    }


def _print_table(cards: dict[str, models.Card]) -> None:
    note(
        f"{'model':8}  {'undoes':11}  {'PSNR dB (blurred)':18}  {'SSIM (blurred)':15}    MB  licence"
    )
    for name, card in cards.items():
        restored, blurred = card.figures["restored"], card.figures["blurred"]
        psnr = f"{restored['psnr']:.2f} ({blurred['psnr']:.2f})"
        ssim = f"{restored['ssim']:.3f} ({blurred['ssim']:.3f})"
        size = models.size_bytes(models.open_model(name)) / 1e6
        note(f"{name:8}  {card.recipe:11}  {psnr:18}  {ssim:15}  {size:4.1f}  {card.licence}")
