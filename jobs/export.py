"""A model in the format of another program.

    deblur export photo photo-onnx/                 # ONNX, which its runtimes read without TensorFlow
    deblur export run/model exported/ --format savedmodel

Photos go in as (B, H, W, 3) float32 in [0, 1] and come out alike, of any size that is a multiple of
the network's stride (of pix2pix: of 256 pixels alone). Tiles, and all that a photo has besides pixels, are `restore`'s.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import Parameter

from deblur import models
from deblur.errors import UsageError
from deblur.networks import network
from deblur.storage import Store, below, open_store
from jobs.progress import note
from jobs.runtime import hushed

Format = Literal["onnx", "savedmodel", "float16"]


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    model: str
    "The model: a name of `deblur models`, a folder, or s3://bucket/prefix."
    out: str
    "Folder or s3://bucket/prefix to write to."
    _: KW_ONLY
    format: Format = "onnx"
    "onnx, savedmodel, or float16: deblur's own, with weights of half the size."
    verbose: bool = False
    "Show what the libraries say."


def run(options: Options) -> dict[str, Any]:
    """Write the model and return what was written."""
    source, destination = models.open_model(options.model), open_store(options.out)
    if below(destination, source) == "":
        raise UsageError(f"OUT is MODEL, {source.uri}: give the export a place of its own")
    with hushed(not options.verbose):  # this imports TensorFlow, which greets
        model = models.load(source, "float32")
        if options.format == "float16":
            model = models.halved(model)
        card = model.card
        destination.make_ready()
        _check(destination, card)
        written = WRITERS[options.format](model, destination)
    shape = network(card.network)
    note(f"{card.name} ({card.network}) is in {destination.uri}")
    return {
        "job": "export",
        "model": card.name,
        "model_id": card.model_id,
        "format": options.format,
        "out": destination.uri,
        "files": {
            entry.key: entry.size_bytes for entry in destination.list() if entry.key in written
        },
        **(
            {"sides_are": shape.stride} if shape.fixed else {"sides_are_multiples_of": shape.stride}
        ),
        "tile_px": shape.tile_px,
    }


def _check(destination: Store, card: models.Card) -> None:
    """Raise UsageError if another model is there."""
    if not destination.exists(models.CARD):
        return
    there = models.read_card(destination)
    if there.model_id != card.model_id:
        raise UsageError(
            f"{destination.uri} holds another model, {there.name} (id {there.model_id}, now "
            f"{card.model_id}): give the export a place of its own"
        )


def _onnx(model: models.Model, destination: Store) -> set[str]:
    try:
        import tf2onnx
    except ImportError as error:
        raise UsageError("ONNX needs two more libraries: pip install onnx tf2onnx") from error
    # Else each of its passes works on a copy of the graph, lest it fails: `photo` takes 57 s for 40.
    os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"
    function, signature = _function(model)
    converted, _ = tf2onnx.convert.from_function(function, signature, opset=_OPSET)
    destination.put("model.onnx", converted.SerializeToString())
    return {"model.onnx", _put_card(model, destination)}


def _savedmodel(model: models.Model, destination: Store) -> set[str]:
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        module = tf.Module()
        # Of the generator itself all layers would be saved besides: `photo` takes 15 s for 3.
        module.weights = [weight.value for weight in model.generator.variables]
        function, _ = _function(model)
        tf.saved_model.save(module, folder, signatures=function)
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(Path(folder).rglob("*"))
            if path.is_file()
        }
        for key, path in files.items():
            destination.put(key, path.read_bytes())
    return {*files, _put_card(model, destination)}


def _float16(half: models.Model, destination: Store) -> set[str]:
    models.save(destination, half.generator, half.card)
    return {models.WEIGHTS, models.CARD}


def _function(model: models.Model) -> tuple[Any, Any]:
    """Return the generator as a TensorFlow function with its signature: `blurred` to `restored`."""
    import tensorflow as tf

    generator = model.generator
    side = generator.inputs[0].shape[1]  # None, if any
    signature = [tf.TensorSpec((None, side, side, 3), tf.float32, name="blurred")]
    restore = tf.function(
        lambda blurred: {"restored": generator(blurred, training=False)},
        input_signature=signature,
        autograph=False,
    )
    return restore, signature


def _put_card(model: models.Model, destination: Store) -> str:
    destination.put(models.CARD, models.card_json(model.card))
    return models.CARD


_OPSET = 18  # of ONNX Runtime 1.14 (2023) and later
WRITERS: Mapping[Format, Callable[[models.Model, Store], set[str]]] = {
    "onnx": _onnx,
    "savedmodel": _savedmodel,
    "float16": _float16,
}
