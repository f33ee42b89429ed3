"""Which photos have no place of their own in DESTINATION, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence, Set

from deblur import history, keys, ledger
from deblur.entries import Entries
from deblur.errors import UsageError
from deblur.holders import Holders
from deblur.storage import Entry, LocalStore, Store, address, below, reason
from jobs.restore_stages import Treatment

RAW = frozenset({".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"})
"""Extensions of cameras' raw files, whose previews some decoders give for the photo."""


def refused(
    inventory: Sequence[Entry],
    todo: Iterable[Entry],
    source: Store,
    destination: Store,
    treatment: Treatment,
    own: Set[str],
    holders: Holders,
    *,
    probe: bool,
    alone: bool,
) -> dict[str, str]:
    """Return key -> reason for what has no place of its own in DESTINATION.

    All of SOURCE is judged, also what is done: what a run decides does not depend on how far the one
    before it came. Raises UsageError where what is to do would replace what is not SOURCE's.

    Args:
        inventory: the photos of SOURCE.
        todo: those that are not done.
        source, destination: the places.
        treatment: what is to be done to the photos.
        own: what was put into DESTINATION before, where that is SOURCE as well.
        holders: the photos that have places there.
        probe: whether DESTINATION may be written to, to learn what names it takes for one.
        alone: whether the inventory is one photo of SOURCE, beside which others may lie.
    """
    bucket = "://" in destination.uri
    prefix = destination.uri.partition("://")[2].partition("/")[2].rstrip("/") if bucket else ""
    inside = below(source, destination)
    renamed = treatment.format is not None or treatment.suffix
    beside = {entry.key for entry in inventory} if inside == "" and renamed else set()
    reasons = {}
    for entry in inventory:
        if os.path.splitext(entry.key)[1].lower() in RAW:
            reasons[entry.key] = "a camera's raw file is not supported"
            continue
        for output in treatment.output_keys(entry.key):
            why = keys.objection(output, f"{prefix}/" if prefix else "")
            if not why and inside and output.startswith(inside):
                why = f"its output would be {inside}..., among the photos of SOURCE"
            if not why and output != entry.key and output in beside:
                why = f"its output would replace {keys.shown(output)}, a photo of SOURCE"
            strange = alone and inside == "" and output != entry.key and output not in own
            if not why and strange and destination.exists(output):
                why = f"its output would replace {keys.shown(output)}, which lies beside it"
            if why:
                reasons[entry.key] = why
                break
    left = (entry for entry in todo if entry.key not in reasons)
    refuse_others(source, destination, treatment, left, holders)
    placed = (entry for entry in inventory if entry.key not in reasons)
    held = holders.others(_wanted(placed, treatment))
    reasons |= {key: keys.that_of(other) for key, other in held.items()}
    if bucket and not renamed:
        return reasons  # outputs have the keys of their photos, of which no two are the same
    wanted = [
        (entry.key, treatment.output_key(entry.key))
        for entry in inventory
        if entry.key not in reasons
    ]
    disk = isinstance(destination, LocalStore)
    lost = keys.collisions(wanted, disk=disk, folded=holders.folded)
    if disk and probe and not holders.folded:
        folded = keys.collisions(wanted, disk=disk, folded=True)
        lost = folded if folded != lost and _folds(destination) else lost
    return reasons | lost


def holders(destination: Store, *, probe: bool) -> Holders:
    """Return the photos that have places in DESTINATION, to which a `probe` may be put."""
    there = isinstance(destination, LocalStore) and destination.root.is_dir()
    return Holders(destination, folded=probe and there and _folds(destination))


def _wanted(entries: Iterable[Entry], treatment: Treatment) -> Iterator[tuple[str, str]]:
    for entry in entries:
        for output in treatment.output_keys(entry.key):
            yield entry.key, output


def outputs(destination: Store) -> frozenset[str]:
    """Return the keys of what was ever put into DESTINATION under other names than its photos'."""
    return ledger.steadily(
        lambda: frozenset(
            output
            for key, output in history.rows(ledger.read(destination, ["key", "output_key"]))
            if output and output != key
        )
    )


SOURCES = "_deblur/sources.json"
"""In DESTINATION: the places whose photos it has."""


def refuse_others(
    source: Store,
    destination: Store,
    treatment: Treatment,
    todo: Iterable[Entry],
    holders: Holders,
) -> None:
    """Raise UsageError if what a SOURCE that is new to DESTINATION has would replace what is not its own.

    That is photos of another SOURCE, as cameras give all cards the same names, or the user's files.
    """
    if below(source, destination) == "":
        return
    known = _sources(destination)
    if address(source) in known or (not known and ledger.parts(destination)):
        return
    todo = Entries.of(todo)
    if same := {key: output for key, output, _ in holders.held(_wanted(todo, treatment))}:
        raise UsageError(
            f"{destination.uri} has {len(same)} photos of {' or '.join(known)} whose names are the same, "
            f"such as {keys.shown(next(iter(same.values())))}: they would be replaced. Give each SOURCE a "
            f"DESTINATION of its own; if it is the same SOURCE at another place, remove {SOURCES} there"
        )
    strangers = holders.strangers(output for _, output in _wanted(todo, treatment))
    if (example := next(strangers, None)) is not None:
        raise UsageError(
            f"{destination.uri} has {1 + sum(1 for _ in strangers)} files that deblur knows nothing of, such as "
            f"{keys.shown(example)}: they would be replaced. Give another DESTINATION, or move them away"
        )


def remember(source: Store, destination: Store) -> None:
    """Note down in DESTINATION whose photos it has."""
    known = _sources(destination)
    if address(source) not in known:
        destination.put(SOURCES, json.dumps([*known, address(source)]).encode())


def _sources(destination: Store) -> list[str]:
    try:
        known: list[str] = json.loads(destination.read(SOURCES))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UsageError(f"{destination.uri}/{SOURCES} cannot be read: {reason(error)}") from error
    return known


def _folds(destination: Store) -> bool:
    """Say whether DESTINATION takes names that differ by case for one."""
    with destination.probed() as name:
        return destination.exists(name.upper())
