"""What a model's card says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cyclopts import Parameter

from deblur import models
from deblur.storage import open_store


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    model: str
    "A model that `deblur train` made (RUN/model). Folder or s3://bucket/prefix."


def run(options: Options) -> dict[str, Any]:
    """Return the card."""
    return asdict(models.read_card(open_store(options.model)))
