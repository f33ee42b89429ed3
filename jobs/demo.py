"""All of it, small: preprocess, train, restore and evaluate on the photos that the package ships.

deblur demo                     # under three minutes on two cores
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from deblur import blur, photo
from deblur.storage import LocalStore
from jobs import evaluate, preprocess, restore, restore_report, train
from jobs.progress import note
from jobs.runtime import Cluster, cluster

_RECIPE = _SHIPPED = "box14"  # the blur, and the model that undoes it
_EPOCHS = 12  # 96 steps: half a minute on two cores


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    folder: str = "deblur-demo"
    "Where the photos, pairs, model, restored photos and the report go."
    _: KW_ONLY
    epochs: int = _EPOCHS
    "Times that each training pair is seen."
    cluster: Cluster = Cluster()


def run(options: Options = Options()) -> dict[str, Any]:
    """Run the four jobs in a row and return their summaries."""
    home = Path(options.folder).absolute()
    places = {
        name: str(home / name)
        for name in ("photos", "pairs", "run", "blurred", "restored", "report")
    }
    common: dict[str, Any] = {"cluster": options.cluster}
    model = f"{places['run']}/model"

    note(f"deblur demo in {home}\n")
    with cluster(options.cluster):
        note(
            "1. Twelve sharp photos become pairs: the middle 256x256 pixels, and the same blurred by a 14x14 box."
        )
        _unpack(files("deblur") / "samples", LocalStore(places["photos"]))
        pairs = preprocess.run(
            preprocess.Options(
                places["photos"], places["pairs"], train=3, test=1, blur=_RECIPE, **common
            )
        )

        note(
            "\n2. A small GAN learns on eight of the nine training pairs to undo the blur; the other judges it."
        )
        trained = train.run(
            train.Options(
                places["pairs"], places["run"], network="pix2pix-small", epochs=options.epochs,
                validate_every=options.epochs, **common,
            )
        )  # fmt: skip

        note(
            f"\n3. All twelve photos, blurred whole, go tile by tile through {_SHIPPED}, which comes with deblur."
        )
        _blur(LocalStore(places["photos"]), LocalStore(places["blurred"]))
        restored = restore.run(
            restore.Options(places["blurred"], places["restored"], model=_SHIPPED, **common)
        )

        note("\n4. Both models and the classical filters are measured on the three test pairs.")
        evaluated = evaluate.run(
            evaluate.Options(
                places["pairs"], places["report"], model=(_SHIPPED, model), examples=3, **common
            )
        )

    note(
        f"\nBefore and after: {places['restored']}/{restore_report.PAGE}\n"
        f"The figures:      {evaluated['report']}\n"
        f"The small GAN:    {model} ({trained['steps']} steps)\n"
        f"So short a training proves the way, not the quality: {_verdict(trained['figures'])} "
        f"And {_SHIPPED} has seen these twelve photos before; docs/models.md says what it does with others."
    )
    return {
        "job": "demo",
        "preprocess": pairs,
        "train": trained,
        "restore": restored,
        "evaluate": evaluated,
    }


def _verdict(figures: Mapping[str, Mapping[str, float]]) -> str:
    restored, blurred = figures["restored"]["psnr"], figures["blurred"]["psnr"]
    word = "worse" if restored < blurred else "better"
    return (
        f"what it restores is {word} ({restored:.1f} dB) than the blurred photo ({blurred:.1f} dB)."
    )


def _unpack(source: Traversable, target: LocalStore) -> None:
    """Copy the shipped photos, which may lie in an archive."""
    for item in source.iterdir():
        if item.is_dir():
            _unpack(item, target / item.name)
        # A new file would be a changed photo to the next run.
        elif item.name.endswith(".jpg") and not target.exists(item.name):
            target.put(item.name, item.read_bytes())


def _blur(source: LocalStore, target: LocalStore) -> None:
    for entry in source.list():
        if target.exists(entry.key):
            continue
        sharp = photo.decode(source.read(entry.key))
        recipe = blur.draw(_RECIPE, seed=0, key=entry.key.rsplit("/", 1)[-1])
        blurred = sharp.with_pixels(blur.degrade(sharp.pixels, recipe))
        target.put(entry.key, photo.encode(blurred))
