"""The artefact: `model.keras` and `card.json` in one folder; save, load, id; and the shipped ones."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from deblur.errors import DeblurError, UsageError
from deblur.networks import network
from deblur.storage import LocalStore, Store, open_store, reason

WEIGHTS = "model.keras"
CARD = "card.json"
_SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Card:
    """What there is to say about a model.

    Attributes:
        name: how people call it.
        network: name of its network, which is its whole configuration.
        model_id: hash of the weights and the network.
        recipe: the blur it was trained to undo.
        data: where the pairs were, and their fingerprint and counts.
        command: what trained it.
        steps: generator updates.
        precision: Keras dtype policy that it was trained in; it loads in any.
        seconds: time that the steps took.
        figures: method -> {"psnr", "ssim"}; "blurred" is the baseline.
        measured_on: the photos that the figures are means over.
    """

    name: str
    network: str
    model_id: str
    recipe: str
    precision: str
    data: Mapping[str, Any]
    command: str
    steps: int
    seconds: float
    seed: int
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured_on: str = ""
    licence: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A loaded model: its card and its generator."""

    card: Card
    generator: Any


class _Shipped(LocalStore):
    """A model of the package, which lies elsewhere on each machine: it pickles as its name."""

    def __init__(self, name: str) -> None:
        super().__init__(str(_SHIPPED / name))
        self._name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shipped, (self._name,)


def shipped() -> list[str]:
    """Return the names of the models that the package has."""
    return sorted(path.parent.name for path in _SHIPPED.glob(f"*/{CARD}"))


def size_bytes(store: Store) -> int:
    """Return the size of a model's files."""
    return sum(entry.size_bytes for entry in store.list() if entry.key in {WEIGHTS, CARD})


def open_model(name: str) -> Store:
    """Return the store of a shipped model by its name, or else of a folder or s3://bucket/prefix.

    A folder that is called like a shipped model is `./name`.
    """
    return _Shipped(name) if name in shipped() else open_store(name)


def model_id(generator: Any, network_name: str) -> str:
    """Return an id of the weights, to the bit, and the network's name."""
    hasher = hashlib.sha256(network_name.encode())
    for weight in generator.weights:
        value = weight.numpy()
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(value)
    return hasher.hexdigest()[:16]


def halved(model: Model) -> Model:
    """Return a model with its weights rounded to float16, for half the size as a file.

    `box14` and `photo` are stored so.
    """
    generator = network(model.card.network).generator("float16")
    generator.set_weights(model.generator.get_weights())
    wide = network(model.card.network).generator("float32")
    wide.set_weights(generator.get_weights())
    return Model(replace(model.card, model_id=model_id(wide, model.card.network)), generator)


def save(store: Store, generator: Any, card: Card) -> None:
    """Write the model into a folder: weights first, the card that announces them last."""
    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        path = Path(folder) / WEIGHTS
        generator.save(path)
        store.put(WEIGHTS, path.read_bytes())
    store.put(CARD, card_json(card))


def card_json(card: Card) -> bytes:
    """Return the file that a card is."""
    return (json.dumps(asdict(card), indent=2, sort_keys=True) + "\n").encode()


def read_card(store: Store) -> Card:
    """Read a model's card.

    Raises:
        UsageError: if there is no model, or its card is not one.
    """
    try:
        values = json.loads(store.read(CARD))
        if not isinstance(values, dict):
            raise TypeError(f"expected an object, received {values!r:.60}")
        known = {item.name for item in fields(Card)}
        return Card(**{name: value for name, value in values.items() if name in known})
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{store.uri} holds no model (no {CARD}); expected a folder or prefix with {WEIGHTS} "
            f"and {CARD}, such as `deblur train` makes, or one of {', '.join(shipped())}"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {store.uri}/{CARD}: {reason(error)}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{store.uri}/{CARD} is not a model's card: {reason(error)}") from error


def load(store: Store, policy: str) -> Model:
    """Load a model to compute in a dtype policy, whatever it was trained in.

    The network is built by its name and takes the weights alone: nothing in the file is executed.

    Raises:
        UsageError: if there is no model, or no such network.
        DeblurError: if the weights are not those of the card.
    """
    card = read_card(store)
    try:
        generator = network(card.network).generator(policy)
    except UsageError as error:
        raise UsageError(f"{store.uri}/{CARD}: {error}") from error
    _load_weights(generator, store, card)
    found = model_id(generator, card.network)
    if found != card.model_id:  # damaged, or another model's: what they restore would be misnamed
        raise DeblurError(
            f"{store.uri}/{WEIGHTS} is model {found}, its card is model {card.model_id}'s"
        )
    return Model(card, generator)


def _load_weights(generator: Any, store: Store, card: Card) -> None:
    try:
        data = store.read(WEIGHTS)
    except FileNotFoundError as error:
        raise UsageError(f"{store.uri} has a card, but no {WEIGHTS}") from error
    except OSError as error:
        raise UsageError(f"cannot read {store.uri}/{WEIGHTS}: {reason(error)}") from error
    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        path = Path(folder) / WEIGHTS
        path.write_bytes(data)
        try:
            generator.load_weights(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            # Keras goes on with the values of all that does not fit.
            why = reason(error).split(" Example error message", 1)[0]
            raise DeblurError(
                f"{store.uri}/{WEIGHTS} does not fit the network {card.network!r}: {why}"
            ) from error
