"""What `deblur restore` says when it is through: the summary, and the page with its pictures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deblur import __version__, gallery, keys, ledger, photo, report
from deblur.errors import DeblurError, PhotoError
from deblur.models import Card
from deblur.restorer import TILE_BATCH
from deblur.storage import Store, below, reason
from jobs.progress import note, warn
from jobs.restore_packs import STEPS
from jobs.restore_plan import Plan
from jobs.runtime import cause

PAGE = "_deblur/report.html"
_SHOWN = 6
_SHOWN_MEGAPIXELS = 64  # a larger photo takes more than a task's memory to compare
_FAILURES = 200
_NAMED = 10

Outcome = Mapping[str, Any]


@dataclass
class Tally:
    """What a run comes to: no more is kept of each photo than is said of it.

    Attributes:
        counts: status -> photos.
        megapixels: of those restored.
        spent: step -> seconds, of all photos, which go on side by side.
        failed: key and reason of each failure.
        shown: which photos the page shows: chance, key and output's key.
        tile_batch: the fewest tiles that the model has had memory for at a time.
    """

    counts: Counter[str] = field(default_factory=Counter)
    megapixels: float = 0.0
    spent: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(STEPS, 0.0)))
    failed: list[tuple[str, str]] = field(default_factory=list)
    shown: list[tuple[bytes, str, str]] = field(default_factory=list)
    tile_batch: int = TILE_BATCH

    def add(self, outcome: Outcome) -> None:
        """Count one photo."""
        self.counts[outcome["status"]] += 1
        self.megapixels += outcome["megapixels"]
        self.spent.update(outcome.get("spent", {}))
        self.tile_batch = min(self.tile_batch, outcome["tile_batch"] or TILE_BATCH)
        if outcome["status"] == "failed":
            self.failed.append((outcome["key"], outcome["reason"]))
        elif outcome["status"] == "restored" and outcome["megapixels"] <= _SHOWN_MEGAPIXELS:
            # By a hash of their keys: the same ones each time.
            chance = hashlib.sha256(outcome["key"].encode("utf-8", "surrogatepass")).digest()
            shown = [*self.shown, (chance, outcome["key"], outcome["output_key"])]
            self.shown = sorted(shown)[:_SHOWN]


def account(plan: Plan, tally: Tally, seconds: float) -> dict[str, Any]:
    """Return the state of the whole inventory, and what this run, of so many seconds, has added to it."""
    this_run = {name: tally.counts[name] for name in ("restored", "skipped", "failed")}
    total = {name: plan.before.get(name, 0) + count for name, count in this_run.items()}
    warn_of(tally.failed, f"they are in {ledger.FOLDER}")
    if earlier := plan.before.get("failed", 0):
        warn(f"{earlier} photos failed in an earlier run; --retry-failed tries them again")
    if tally.tile_batch < TILE_BATCH:
        warn(
            f"the model had memory for {tally.tile_batch} tiles a call, not {TILE_BATCH}: some pixels may be "
            "rounded otherwise"
        )
    return {
        **total,
        "not_done": len(plan.inventory) - sum(total.values()),
        "this_run": {
            **this_run,
            "megapixels": round(tally.megapixels, 2),
            "seconds": round(seconds, 1),
            "seconds_in": {step: round(spent, 2) for step, spent in tally.spent.items()},
        },
    }


def warn_of(failed: Sequence[tuple[str, str]], where: str) -> None:
    """Name the first photos that fail, with the reasons, and say `where` the others are."""
    for key, why in failed[:_NAMED]:
        warn(f"{keys.printable(key)}: {why}")
    if len(failed) > _NAMED:
        warn(f"and {len(failed) - _NAMED} more failures; {where}")


@dataclass(frozen=True)
class Pages:
    """Writes the page about a run."""

    source: Store
    destination: Store
    card: Card
    settings: Mapping[str, Any]

    def write(self, plan: Plan, tally: Tally, summary: Mapping[str, Any]) -> str | None:
        """Write the page and return where it is, or None where that fails: it is not worth a run."""
        counts = {name: summary[name] for name in ("restored", "skipped", "failed", "not_done")}
        page = report.restore_page(
            report.Restoration(
                source=self.source.uri,
                destination=self.destination.uri,
                model=self.card.name,
                counts=counts,
                this_run=summary["this_run"],
                failures=sorted(tally.failed)[:_FAILURES],
                failures_in_all=len(tally.failed),
                comparisons=self._comparisons(tally),
                facts=self._facts(plan, summary["this_run"]["seconds_in"]),
            )
        )
        try:
            self.destination.put(PAGE, page.encode("utf-8", "replace"))
        except (OSError, DeblurError) as error:
            warn(f"{PAGE} cannot be written: {reason(error)}")
            return None
        where = f"{self.destination.uri.rstrip('/')}/{PAGE}"
        note(f"the report: {where}")
        return where

    def _comparisons(self, tally: Tally) -> list[gallery.Comparison]:
        """Return a few photos before and after."""
        if below(self.source, self.destination) == "":
            return []  # there is no before any more
        import ray

        task = ray.remote(num_cpus=0.5)(_comparison)
        made = [
            task.remote(self.source, self.destination, key, output_key)
            for _, key, output_key in tally.shown
        ]
        try:
            return [found for found in ray.get(made) if found is not None]
        except ray.exceptions.RayError as error:  # the store, or the node: not worth a run either
            warn(f"the report is without pictures: {reason(cause(error))}")
            return []

    def _facts(self, plan: Plan, spent: Mapping[str, float]) -> dict[str, str]:
        card = self.card
        return {
            "Source": self.source.uri,
            "Destination": self.destination.uri,
            "Model": f"{card.name}: {card.network}, {card.steps} steps, id {card.model_id}",
            "Settings": ", ".join(f"{name} {value}" for name, value in self.settings.items()),
            "Where the time went": shares(spent),
            "Other files in the source": f"{plan.others}, left alone",
            "Version": f"deblur {__version__}",
        }


def shares(spent: Mapping[str, float]) -> str:
    """Return `decode 4 %, model 90 %, ...`."""
    total = sum(spent.values()) or 1.0
    return ", ".join(
        f"{step} {seconds / total:.0%}".replace("%", " %") for step, seconds in spent.items()
    )


def _comparison(
    source: Store, destination: Store, key: str, output_key: str
) -> gallery.Comparison | None:
    try:
        before = photo.decode(source.read(key), max_megapixels=2 * _SHOWN_MEGAPIXELS)
        after = photo.decode(destination.read(output_key), max_megapixels=2 * _SHOWN_MEGAPIXELS)
        return gallery.compare(key, before, after)
    except (OSError, PhotoError, ValueError):
        return None  # gone or changed meanwhile
