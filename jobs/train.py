"""Photos -> a model. Ray Train's workers step together; tasks beside them decode and draw what they see.

    deblur train pairs/ run/                            # the report's GAN: 40 epochs at batch 1
    deblur train photos/ run/ --blur photo              # sharp photos, blurred anew in each epoch

What a step sees depends on the seed and the batch alone, not on the workers that share it: a run
that is killed, and goes on with more workers or fewer, takes the same steps.
"""

from __future__ import annotations

import math
import shlex
import sys
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

from cyclopts import Parameter

from deblur import blur, models, pairs, precision, recipes
from deblur.errors import UsageError
from deblur.networks import network
from deblur.sampling import Order
from deblur.storage import Store, below, open_store
from jobs import train_run, train_source
from jobs.progress import note, warn
from jobs.runtime import Cluster, cluster, require_shared

# As many validations at most and at least, unless the user says how often; those within an epoch are
# so many steps apart that they take little of the time.
_VALIDATIONS, _LEAST_VALIDATIONS, _LEAST_VALIDATION_STEPS = 50, 10, 100
_HELD_OUT_SHARE = 0.1


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    source: str
    "Pairs that `deblur preprocess` made, or sharp photos. Folder or s3://bucket/prefix."
    run: str
    "Where the run lives: checkpoints, TensorBoard events, and the model. Folder or s3://bucket/prefix."
    _: KW_ONLY
    recipe: str = "report"
    "How to train: report, fast, best, or adversarial, on from a model. What follows replaces parts of it."
    name: str | None = None
    "What the model is called; else as its network."
    licence: str = ""
    "Under what licence the model may be used, for its card: that is for its photos to allow."
    network: str | None = None
    "pix2pix (the report's, 57 M), -small; wiener-photo, -deep, -kernel, -lean; wiener-box14, -deep, -deeper, -lean."
    epochs: int | None = None
    "Times that every photo is seen."
    batch_size: int | None = None
    "Photos a step, shared by all workers."
    learning_rate: float | None = None
    "Of the whole batch, however many workers share it."
    adversarial_weight: float | None = None
    "Of the GAN's loss beside the pixels'; with 0 there is no discriminator."
    size: int | None = None
    "Side of the crops in pixels."
    blur: str | None = None
    "Blur sharp photos anew in each epoch: box14, box14-jpeg, gaussian, motion, defocus or photo."
    start_from: str | None = None
    "A model to begin with, whose network is taken: a name, folder or s3://bucket/prefix."
    workers: str = "1"
    "Training processes: a number, or a range such as 1-8, to grow and shrink with the cluster."
    gpu: bool = False
    "Train on GPUs."
    gpus_per_worker: int = 1
    "GPUs of each worker, with --gpu."
    parts: int = 1
    "Parts that a worker takes its photos in, one after the other, where all need too much memory."
    precision: str = "auto"
    "bfloat16, float32, or auto: bfloat16 where the hardware has it."
    seed: int = 0
    "Decides the initial weights, the order of the photos, their crops and blurs, and dropout."
    validation_photos: int = 64
    "Training photos to hold out and validate on, at most a tenth of them; 0 for none."
    validate_every: int | None = None
    "Epochs between validations, else 10 to 50 of them; each also writes a sample sheet. The best model is kept."
    patience: int | None = None
    "Stop after so many validations without a gain."
    checkpoint_steps: int = 1000
    "Steps between checkpoints, besides the one after each validation."
    max_steps: int | None = None
    "Stop after so many steps, whatever the epochs."
    max_failures: int = 3
    "Lost workers to recover from before the run gives up."
    cluster: Cluster = Cluster()


def run(options: Options) -> dict[str, Any]:
    """Train, and return the summary."""
    begun = [models.open_model(options.start_from)] if options.start_from else []
    start = models.read_card(begun[0]) if begun else None
    recipe = _recipe(options, start)
    workers = _workers(options, recipe)
    _check(options, recipe)
    source, home = open_store(options.source), open_store(options.run)
    next(source.list(), None)  # which says so where there is no such place, or no right to see it
    dataset = pairs.read_dataset(source) if source.exists(pairs.DATASET) else None
    if dataset is None and options.blur is None:
        raise UsageError(
            f"{source.uri} holds no finished pairs (no {pairs.DATASET}): make them with "
            "`deblur preprocess`, or name a --blur to train on sharp photos"
        )
    size_px = _size(options, recipe, dataset)
    if below(home, source) == "":
        raise UsageError(f"RUN is SOURCE, {source.uri}: give the run a place of its own")
    home.make_ready()
    with ExitStack() as stack:
        photos: train_source.Source
        if dataset is None:
            stack.enter_context(cluster(options.cluster))
            require_shared([source, *begun], home)
            note(f"reading the photos of {source.uri}")
            photos = train_source.Photos(source, size_px)
        else:
            photos = train_source.Pairs(source, dataset, anew=options.blur is not None)
        plan = _plan(options, recipe, photos, size_px, start)
        train_run.claim(home, plan, command(options), source.uri)
        _account(photos, home)
        if train_run.is_finished(home):
            note(f"{home.uri} is finished already")
            return train_run.summary(home)
        note(
            f"training {recipe.network} on {plan.photos} photos, blur {plan.blur}"
            f"{' drawn anew' if plan.anew else ''}: {plan.total_steps} steps of "
            f"{recipe.batch_size}, {options.workers} worker(s)"
        )
        if dataset is not None:
            stack.enter_context(cluster(options.cluster))
            require_shared([source, *begun], home)
        from jobs.train_group import fit

        fit(options, home, plan, photos, workers)
    return train_run.summary(home)


def _recipe(options: Options, start: models.Card | None) -> recipes.Recipe:
    """Return the named recipe with the parts that the options replace; the network, if none is named, is the start's.

    Raises:
        UsageError: if the named network cannot begin with that model.
    """
    names = "network", "epochs", "max_steps", "batch_size", "learning_rate", "adversarial_weight"
    given = {name: getattr(options, name) for name in names}
    chosen = {name: value for name, value in given.items() if value is not None}
    recipe = replace(recipes.recipe(options.recipe), **chosen)
    if start is None:
        return recipe
    if options.network is None:
        return replace(recipe, network=start.network)
    if start.network not in (recipe.network, *network(recipe.network).fitted_from):
        raise UsageError(
            f"--start-from {options.start_from} is a {start.network}, and a {recipe.network} cannot "
            f"begin with it: leave --network out, or give --network {start.network}"
        )
    return recipe


def _workers(options: Options, recipe: recipes.Recipe) -> tuple[int, int]:
    """Return the least and the largest number of workers."""
    least, separator, most = options.workers.partition("-")
    try:
        bounds = int(least), int(most if separator else least)
    except ValueError:
        bounds = (0, 0)
    if not 1 <= bounds[0] <= bounds[1]:
        raise UsageError(
            f"--workers {options.workers!r}: expected a number, or a range such as 1-8"
        )
    replicas_each = options.gpus_per_worker if options.gpu else 1
    replicas = bounds[1] * replicas_each
    if recipe.batch_size < replicas:
        raise UsageError(
            f"--batch-size {recipe.batch_size} is a step's, shared by {replicas} workers or GPUs: "
            f"give {replicas} or more, or fewer --workers"
        )
    for workers in range(bounds[0], bounds[1] + 1):
        share = -(-recipe.batch_size // (workers * replicas_each))
        if options.parts > 0 and share % options.parts:
            raise UsageError(
                f"--parts {options.parts}: of {workers} workers each has {share} photos of a batch of "
                f"{recipe.batch_size}, which is no multiple of it"
            )
    return bounds


def _plan(
    options: Options,
    recipe: recipes.Recipe,
    photos: train_source.Source,
    size_px: int,
    start: models.Card | None,
) -> train_run.Plan:
    count = photos.photos
    most = max(int(count * _HELD_OUT_SHARE), 1) if count > 1 else 0
    held_out = min(options.validation_photos, most)
    order = Order(count - held_out, recipe.batch_size, options.seed)
    steps = min(recipe.epochs * order.steps_per_epoch, recipe.max_steps or sys.maxsize)
    epochs = -(-steps // order.steps_per_epoch)
    every = (options.validate_every or -(-epochs // _VALIDATIONS)) * order.steps_per_epoch
    if not options.validate_every:  # an epoch of many photos may last as long as all of the run
        every = min(every, max(-(-steps // _LEAST_VALIDATIONS), _LEAST_VALIDATION_STEPS))
    return train_run.Plan(
        recipe=recipe,
        blur=options.blur or photos.blur or "",
        anew=options.blur is not None,
        size_px=size_px,
        precision=options.precision,
        seed=options.seed,
        photos=order.photos,
        held_out=held_out,
        fingerprint=photos.fingerprint,
        start_from=start.model_id if start else None,
        total_steps=steps,
        steps_per_epoch=order.steps_per_epoch,
        validation_steps=every,
        patience=options.patience,
    )


def command(options: Options) -> str:
    """Return the command line, for the card. Options that are secrets do not exist."""
    return (
        shlex.join(["deblur", *sys.argv[1:]])
        if sys.argv[1:]
        else f"deblur train {options.source} {options.run}"
    )


def _account(photos: train_source.Source, home: Store) -> None:
    if photos.rejected:
        pairs.write_rejected(home, [(key, "train", why) for key, why in photos.rejected.items()])
        warn(f"{len(photos.rejected)} photos cannot serve; {home.uri}/{pairs.REJECTED} says why")


# === Usage ===


def check(options: Options) -> None:
    """Raise UsageError if what is asked for cannot be; nothing has been looked at yet."""
    recipe = _recipe(options, None)
    _workers(options, recipe)
    _check(options, recipe)


def _check(options: Options, recipe: recipes.Recipe) -> None:
    network(recipe.network)
    precision.check(options.precision)
    if options.blur is not None and options.blur not in blur.RECIPES:
        raise UsageError(f"there is no blur {options.blur!r}; there are {', '.join(blur.RECIPES)}")
    counts = {
        **{name: getattr(recipe, name) for name in ("epochs", "batch_size")},
        **{
            name: getattr(options, name)
            for name in ("gpus_per_worker", "parts", "checkpoint_steps")
        },
    }
    optional = ("validate_every", "patience", "max_steps", "size")
    counts |= {name: getattr(options, name) for name in optional}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    if not 0 < recipe.learning_rate < math.inf:
        raise UsageError(f"--learning-rate {recipe.learning_rate:g}: expected more than 0")
    if not 0 <= recipe.adversarial_weight < math.inf:
        raise UsageError(f"--adversarial-weight {recipe.adversarial_weight:g}: expected 0 or more")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed {options.seed}: expected 0 to {2**32 - 1}")
    if options.gpus_per_worker > 1 and not options.gpu:
        raise UsageError(f"--gpus-per-worker {options.gpus_per_worker} is for --gpu: give that too")
    if options.validation_photos < 0:
        raise UsageError(f"--validation-photos {options.validation_photos}: expected 0 or more")
    if options.patience and not options.validation_photos:
        raise UsageError("--patience counts validations: give --validation-photos")
    if options.patience and recipe.keep == "last":
        raise UsageError(f"--patience is for a gain of PSNR, which is not {options.recipe}'s aim")
    if options.recipe == "adversarial" and not options.start_from:
        raise UsageError("--recipe adversarial goes on from a model: give --start-from")


def _size(options: Options, recipe: recipes.Recipe, dataset: pairs.Dataset | None) -> int:
    """Return the side of the crops."""
    shape = network(recipe.network)
    size_px = options.size or recipe.size_px or (dataset.size_px if dataset else shape.tile_px)
    if dataset and size_px > dataset.size_px:
        raise UsageError(f"--size {size_px}: the pairs are {dataset.size_px} pixels wide")
    if size_px % shape.stride or (shape.fixed and size_px != shape.stride):
        wanted = f"{shape.stride} alone" if shape.fixed else f"multiples of {shape.stride}"
        fits = dataset is None or dataset.size_px >= shape.stride
        raise UsageError(
            f"crops of {size_px} pixels do not suit {recipe.network}, which takes {wanted}: "
            + ("give another --size" if fits else f"make pairs with --size {shape.stride}")
        )
    return size_px
