"""What `deblur restore` has before it: which photos, which of them cannot be, and how long it takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from deblur import history, keys, ledger, places365
from deblur.entries import Entries
from deblur.errors import UsageError
from deblur.groups import groups
from deblur.storage import Entry, LocalStore, Store, below, open_object, open_store
from jobs import restore_names
from jobs.restore_packs import outcome
from jobs.restore_stages import Treatment

# Also what we may not be able to read: a photo in a format that we lack belongs in the ledger, not
# out of sight.
EXTENSIONS = places365.PHOTO_EXTENSIONS | restore_names.RAW | {".gif", ".jp2", ".jxl"}

_CHUNK_PHOTOS = 32  # a task's worth of fetching: small photos come in groups,
_CHUNK_BYTES = 32 << 20  # large ones alone
_PART_ROWS = 10_000


@dataclass(frozen=True)
class Plan:
    """What there is, what is done, and what is to do.

    Attributes:
        inventory: all photos of SOURCE.
        others: files there that are none.
        before: status -> photos that have been dealt with, as they are now, in earlier runs.
        todo: photos to restore now, by key.
        refused: photos that cannot be restored, with reasons.
    """

    inventory: Entries
    others: int
    before: Mapping[str, int]
    todo: Entries
    refused: Sequence[tuple[Entry, str]]


def plan(
    source: Store,
    destination: Store,
    treatment: Treatment,
    *,
    alone: Entry | None = None,
    limit: int | None,
    retry_failed: bool,
    probe: bool,
) -> Plan:
    """List SOURCE, take away what the ledger has, and judge the names of the rest.

    Raises UsageError where the outputs would replace what is not theirs.

    Args:
        source, destination: the places.
        treatment: what is to be done to the photos.
        alone: the one photo of SOURCE to restore, where it is not all of them.
        limit: how many to restore at most, the first by key.
        retry_failed: whether what failed before is to do.
        probe: whether DESTINATION may be written to, to learn what names it takes for one.
    """
    in_place = below(source, destination) == ""
    own = restore_names.outputs(destination) if in_place else frozenset()
    listed = source.list() if alone is None else [alone]
    found = _inventory(source, listed, below(destination, source), own)
    inventory, others = found.photos, found.others
    draw = partial(
        ledger.plan, destination, model_id=treatment.model_id, settings_id=treatment.settings_id
    )
    drawn = draw(inventory, retry_failed=retry_failed)
    if not drawn.todo:
        return Plan(inventory, others, drawn.before, drawn.todo, [])
    holders = restore_names.holders(destination, probe=probe)
    # Of all that is to do: what `limit` leaves is another run's, which knows SOURCE by then.
    reasons = restore_names.refused(
        inventory, drawn.todo, source, destination, treatment, own, holders, probe=probe,
        alone=alone is not None,
    )  # fmt: skip
    reasons |= dict.fromkeys(found.nameless, keys.NOT_UTF8)
    todo, refused, before = drawn.todo, [], drawn.before
    if reasons:
        refused = [(entry, reasons[entry.key]) for entry in todo if entry.key in reasons]
        todo = Entries.of(entry for entry in todo if entry.key not in reasons)
    if retry_failed and limit is not None:  # what is left for another run has failed all the same
        before = {**before, **draw(todo[limit:]).before}
    return Plan(inventory, others, before, todo[:limit], refused)


@dataclass(frozen=True)
class _Inventory:
    """The photos of SOURCE, how many other files there are, and which names are not UTF-8.

    Those photos are in the inventory by their names as `keys.shown` writes them, which is how the
    ledger knows them.
    """

    photos: Entries
    others: int
    nameless: set[str]


def _inventory(
    source: Store, listed: Iterable[Entry], destination: str | None, own: Set[str]
) -> _Inventory:
    """Sort what SOURCE has, without what is in DESTINATION, if that lies in it, and `own` outputs."""
    others = 0
    made = ""
    nameless = set()

    def photos() -> Iterator[Entry]:
        nonlocal others, made
        for entry in listed:
            if keys.own(entry.key) or (destination and entry.key.startswith(destination)):
                continue
            if entry.key in own:
                others, made = others + 1, entry.key
                continue
            if not _is_named_like_a_photo(entry.key):
                others += 1
                continue
            if keys.nameless(entry.key):
                entry = replace(entry, key=keys.shown(entry.key))
                nameless.add(entry.key)
            yield entry

    found = Entries.of(photos())
    if not found:
        found_there = (
            f"{keys.shown(made)} is what deblur has put there, from another one"
            if made
            else f"none of its files ({others}) ends in {', '.join(sorted(EXTENSIONS))}"
        )
        raise UsageError(
            f"{source.uri} has no photos: {found_there if others else 'there is nothing in it'}"
        )
    return _Inventory(found, others, nameless)


def places(source: str, destination: str) -> tuple[Store, Entry | None, Store]:
    """Open SOURCE and DESTINATION. Of a SOURCE that is a photo its folder or prefix, and return the photo as well."""
    found = open_object(source) if _is_named_like_a_photo(source) else None
    if found and _is_named_like_a_photo(destination):
        raise UsageError(
            f"DESTINATION {destination} is named like a photo: give a folder, in which the restored "
            "photo has the name that it had"
        )
    store, alone = found or (open_store(source), None)
    if alone is None and isinstance(store, LocalStore) and not os.path.lexists(store.root):
        raise UsageError(f"there is no folder and no photo {store.root}")
    return store, alone, open_store(destination)


def _is_named_like_a_photo(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def refuse_overlap(source: Store, destination: Store, alone: Entry | None = None) -> None:
    """Raise UsageError if one place lies in the other. Below the folder of a photo `alone` nothing is listed."""
    inside = below(destination, source)
    if below(source, destination) is None and (inside is None or (alone and inside)):
        return
    raise UsageError(
        f"SOURCE {source.uri} and DESTINATION {destination.uri} lie in one another: "
        "restored photos would be taken for new ones, or replace their originals; "
        "give a DESTINATION elsewhere, or --allow-overlap if that is what you want"
    )


def write_refused(destination: Store, treatment: Treatment, plan: Plan) -> list[dict[str, Any]]:
    """Write into the ledger what cannot be restored, and return it as outcomes."""
    rows = [
        ledger.Row(
            entry.key,
            entry.etag,
            entry.size_bytes,
            treatment.model_id,
            treatment.settings_id,
            status="failed",
            reason=why,
        )
        for entry, why in plan.refused
    ]
    for start in range(0, len(rows), _PART_ROWS):
        ledger.write(destination, rows[start : start + _PART_ROWS])
    return [outcome(row) for row in rows]


def restored_in_place(destination: Store) -> frozenset[str]:
    """Return the SHA-256 of what was put into DESTINATION, or was about to be: of each place the latest."""
    return ledger.steadily(
        lambda: frozenset(
            found for (found,) in history.rows(ledger.read(destination, ["output_sha256"])) if found
        )
    )


def chunks(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield groups of photos that one task fetches."""
    return groups(entries, lambda entry: entry.size_bytes, _CHUNK_BYTES, _CHUNK_PHOTOS)
