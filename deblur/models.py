"""The artefact: `model.keras` and `card.json` in one folder; save, load, id."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deblur.errors import DeblurError, UsageError
from deblur.networks import network
from deblur.storage import Store, open_store

WEIGHTS = "model.keras"
CARD = "card.json"


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
        figures: method -> {"psnr", "ssim"}, on the photos named in `measured_on`; "blurred" is the baseline.
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


def model_id(generator: Any, network_name: str) -> str:
    """Return an id of the weights, to the bit, and the network's name."""
    hasher = hashlib.sha256(network_name.encode())
    for weight in generator.weights:
        value = weight.numpy()
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(value.tobytes())
    return hasher.hexdigest()[:16]


def save(store: Store, generator: Any, card: Card) -> None:
    """Write the model into a folder: weights first, the card that announces them last."""
    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        path = Path(folder) / WEIGHTS
        generator.save(path)
        store.put(WEIGHTS, path.read_bytes())
    store.put(CARD, (json.dumps(asdict(card), indent=2, sort_keys=True) + "\n").encode())


def read_card(uri: str) -> Card:
    """Read a model's card.

    Raises:
        UsageError: if there is no model.
    """
    store = open_store(uri)
    try:
        values = json.loads(store.read(CARD))
        known = {item.name for item in fields(Card)}
        return Card(**{name: value for name, value in values.items() if name in known})
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{uri} holds no model (no {CARD}); expected a folder or prefix with {WEIGHTS} and {CARD}, such as `deblur train` makes"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot read {uri}/{CARD}: {error}") from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"{uri}/{CARD} is not a model's card: {error}") from error


def load(uri: str, policy: str) -> Model:
    """Load a model to compute in a dtype policy, whatever it was trained in.

    The network is built by its name and takes the weights alone, so nothing in the file is executed.

    Raises:
        UsageError: if there is no model.
        DeblurError: if the weights do not fit their card.
    """
    card = read_card(uri)
    generator = network(card.network).generator(policy)
    with tempfile.TemporaryDirectory(prefix="deblur-") as folder:
        path = Path(folder) / WEIGHTS
        try:
            path.write_bytes(open_store(uri).read(WEIGHTS))
            generator.load_weights(path)
        except FileNotFoundError as error:
            raise UsageError(f"{uri} has a card, but no {WEIGHTS}") from error
        except (OSError, ValueError) as error:
            raise DeblurError(f"{uri}/{WEIGHTS} does not fit the network {card.network!r}: {error}") from error
    return Model(card, generator)
