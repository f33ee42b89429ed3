"""What `deblur restore` says when it is through: the summary, and the page with its pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deblur import __version__, gallery, keys, ledger, photo, report
from deblur.errors import PhotoError
from deblur.models import Card
from deblur.storage import Store, below, reason
from jobs.restore_plan import Plan
from jobs.runtime import note, warn

PAGE = "_deblur/report.html"
_SHOWN = 6
_SHOWN_MEGAPIXELS = 64  # a larger photo takes more than a task's memory to compare
_FAILURES = 200
_NAMED = 10

Outcome = Mapping[str, Any]


def account(
    plan: Plan, outcomes: Sequence[Outcome], seconds: float, spent: Mapping[str, float]
) -> dict[str, Any]:
    """Return the state of the whole inventory, and what this run has added to it.

    `seconds` are the run's, `spent` those of all its photos by step, which go on side by side.
    """
    names = ("restored", "skipped", "failed")
    this_run = {name: sum(outcome["status"] == name for outcome in outcomes) for name in names}
    tally = {name: plan.before.get(name, 0) + this_run[name] for name in names}
    failed = [(each["key"], each["reason"]) for each in outcomes if each["status"] == "failed"]
    warn_of(failed, f"they are in {ledger.FOLDER}")
    if earlier := plan.before.get("failed", 0):
        warn(f"{earlier} photos failed in an earlier run; --retry-failed tries them again")
    megapixels = sum(outcome["megapixels"] for outcome in outcomes)
    return {
        **tally,
        "not_done": len(plan.inventory) - sum(tally.values()),
        "this_run": {
            **this_run,
            "megapixels": round(megapixels, 2),
            "seconds": round(seconds, 1),
            "seconds_in": {step: round(total, 2) for step, total in spent.items()},
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

    def write(
        self, plan: Plan, outcomes: Sequence[Outcome], summary: Mapping[str, Any]
    ) -> str | None:
        """Write the page and return where it is, or None where that fails: it is not worth a run."""
        failures = [
            (outcome["key"], outcome["reason"])
            for outcome in outcomes
            if outcome["status"] == "failed"
        ]
        counts = {name: summary[name] for name in ("restored", "skipped", "failed", "not_done")}
        page = report.restore_page(
            report.Restoration(
                source=self.source.uri,
                destination=self.destination.uri,
                model=self.card.name,
                counts=counts,
                this_run=summary["this_run"],
                failures=sorted(failures)[:_FAILURES],
                failures_in_all=len(failures),
                comparisons=self._comparisons(outcomes),
                facts=self._facts(plan, summary["this_run"]["seconds_in"]),
            )
        )
        try:
            self.destination.put(PAGE, page.encode("utf-8", "replace"))
        except OSError as error:
            warn(f"{PAGE} cannot be written: {reason(error)}")
            return None
        where = f"{self.destination.uri.rstrip('/')}/{PAGE}"
        note(f"the report: {where}")
        return where

    def _comparisons(self, outcomes: Sequence[Outcome]) -> list[gallery.Comparison]:
        """Return a few photos before and after: by a hash of their keys, the same ones each time."""
        if below(self.source, self.destination) == "":
            return []  # there is no before any more
        import ray

        fitting = [
            outcome
            for outcome in outcomes
            if outcome["status"] == "restored" and outcome["megapixels"] <= _SHOWN_MEGAPIXELS
        ]
        chosen = sorted(fitting, key=lambda outcome: _chance(outcome["key"]))[:_SHOWN]
        task = ray.remote(num_cpus=0.5)(_comparison)
        made = [
            task.remote(self.source, self.destination, outcome["key"], outcome["output_key"])
            for outcome in chosen
        ]
        return [found for found in ray.get(made) if found is not None]

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


def _chance(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _comparison(
    source: Store, destination: Store, key: str, output_key: str
) -> gallery.Comparison | None:
    try:
        before = photo.decode(source.read(key), max_megapixels=2 * _SHOWN_MEGAPIXELS)
        after = photo.decode(destination.read(output_key), max_megapixels=2 * _SHOWN_MEGAPIXELS)
        return gallery.compare(key, before, after)
    except (OSError, PhotoError, ValueError):
        return None  # gone or changed meanwhile
