"""What a ledger says about a restored bucket: counts, the slowest photos, the failures; as CSV too.

    deblur ledger s3://holiday-sharp/ --csv holiday.csv

The latest row of a photo counts. Photos that have left SOURCE since are still in the ledger.
"""

from __future__ import annotations

import csv
import io
import mmap
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import datetime
from typing import Any

from cyclopts import Parameter

from deblur import ledger
from deblur.errors import UsageError
from deblur.storage import Store, open_parent, open_store, reason
from jobs.progress import note

_MOST_REASONS = 20
_MOST_LETTERS = 100  # of a key or reason in the table


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the job takes."""

    destination: str
    "A restored bucket. Folder or s3://bucket/prefix."
    _: KW_ONLY
    csv: str | None = None
    "Write the latest row of every photo here, as CSV in UTF-8. A file or s3://bucket/name.csv."
    show: int = 10
    "Failures and slowest photos that are listed, at most so many of each."


def run(options: Options) -> dict[str, Any]:
    """Summarise the ledger and return the summary."""
    if options.show < 0:
        raise UsageError(f"--show {options.show}: expected 0 or more")
    store = open_store(options.destination)
    target = None if options.csv is None else _file(options.csv)
    if not ledger.parts(store):
        raise UsageError(
            f"{store.uri} has no ledger ({ledger.FOLDER}/*.parquet): give a place that `deblur restore` has written to"
        )
    summary: dict[str, Any] = {"job": "ledger", "destination": store.uri}
    summary |= ledger.steadily(lambda: _Account(options.show).of(store))
    for line in table(summary):
        note(line)
    if target is not None:
        summary["csv"] = options.csv
        ledger.steadily(lambda: _export(store, *target))
        note(f"{summary['photos']} rows are in {options.csv}")
    return summary


# === Summary ===


@dataclass
class _Account:
    """Adds up the rows that count, some at a time."""

    show: int
    status: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    models: Counter[tuple[str, str]] = field(default_factory=Counter)
    megapixels: float = 0.0
    seconds: float = 0.0
    source_bytes: int = 0
    slowest: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)

    _COLUMNS = (
        "key", "source_bytes", "width", "height", "model_id", "settings_id", "status", "reason",
        "seconds", "finished_at",
    )  # fmt: skip

    def of(self, store: Store) -> dict[str, Any]:
        """Return the summary of a ledger."""
        for rows in ledger.current(store, self._COLUMNS):
            self._add(rows)
        why: dict[str, dict[str, int]] = {}
        reasons = _grouped(self.reasons)
        for (status, text), photos in reasons.most_common(_MOST_REASONS):
            why.setdefault(status, {})[text] = photos
        return {
            "parts": len(ledger.parts(store)),
            "photos": self.status.total(),
            "status": {name: self.status[name] for name in ("restored", "skipped", "failed")},
            "reasons": why,
            "more_reasons": max(0, len(reasons) - _MOST_REASONS),
            "megapixels": round(self.megapixels, 2),
            "seconds": round(self.seconds, 1),
            "source_bytes": self.source_bytes,
            "first_finished_at": self.times[0].isoformat() if self.times else None,
            "last_finished_at": self.times[-1].isoformat() if self.times else None,
            "models": [
                {"model_id": model, "settings_id": settings, "photos": photos}
                for (model, settings), photos in self.models.most_common()
            ],
            "slowest": self.slowest,
            "failures": self.failures,
            "more_failures": self.status["failed"] - len(self.failures),
        }

    def _add(self, rows: Any) -> None:
        import pyarrow.compute as pc

        def counts(*names: str) -> Counter[Any]:
            found = rows.group_by(list(names)).aggregate([([], "count_all")]).to_pylist()
            keys = (tuple(row[name] or "" for name in names) for row in found)
            numbers = [row["count_all"] for row in found]
            return Counter(dict(zip(keys, numbers, strict=True)))

        self.status += Counter({name: photos for (name,), photos in counts("status").items()})
        self.models += counts("model_id", "settings_id")
        found = counts("status", "reason")
        self.reasons += Counter({pair: photos for pair, photos in found.items() if pair[1]})
        pixels = pc.multiply(rows["width"].cast("int64"), rows["height"].cast("int64"))
        self.megapixels += (pc.sum(pixels).as_py() or 0) / 1e6
        self.seconds += pc.sum(rows["seconds"].cast("float64")).as_py() or 0.0
        self.source_bytes += pc.sum(rows["source_bytes"]).as_py() or 0
        span = pc.min_max(rows["finished_at"]).as_py()
        self.times = sorted([*self.times, span["min"], span["max"]])
        self.times = [self.times[0], self.times[-1]]

        timed = rows.filter(rows["seconds"].is_valid()).append_column(
            "pixels", pixels.filter(rows["seconds"].is_valid())
        )
        order = [("seconds", "descending"), ("key", "ascending")]
        for row in timed.take(pc.select_k_unstable(timed, self.show, order)).to_pylist():
            megapixels = round((row["pixels"] or 0) / 1e6, 2)
            seconds = round(row["seconds"], 3)
            self.slowest.append({"key": row["key"], "seconds": seconds, "megapixels": megapixels})
        self.slowest.sort(key=lambda row: (-row["seconds"], row["key"]))
        del self.slowest[self.show :]

        failed = rows.filter(pc.equal(rows["status"], "failed")).select(["key", "reason"])
        order = [("key", "ascending")]
        self.failures += failed.take(pc.select_k_unstable(failed, self.show, order)).to_pylist()
        self.failures.sort(key=lambda row: str(row["key"]))
        del self.failures[self.show :]


def _grouped(reasons: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Count reasons that differ in their numbers alone as one, whose numbers are then `#`."""
    alike: dict[tuple[str, str], list[str]] = {}
    for status, text in reasons:
        alike.setdefault((status, re.sub(r"\d+(\.\d+)?", "#", text)), []).append(text)
    return Counter(
        {
            (status, texts[0] if len(texts) == 1 else general): sum(
                reasons[status, text] for text in texts
            )
            for (status, general), texts in alike.items()
        }
    )


# === Table ===


def table(summary: Mapping[str, Any]) -> list[str]:
    """Return the summary as lines for a terminal, whatever the names in it are."""
    states = ", ".join(f"{count} {name}" for name, count in summary["status"].items())
    lines = [
        f"{summary['photos']} photos: {states}",
        f"{summary['megapixels']} megapixels, {summary['seconds']} s of work, "
        f"{summary['source_bytes'] / 1e6:.1f} MB read",
        f"from {_second(summary['first_finished_at'])} to {_second(summary['last_finished_at'])} UTC",
    ]
    models = [
        (str(row["photos"]), _what_by(row["model_id"], row["settings_id"]))
        for row in summary["models"]
    ]
    reasons = [
        (str(count), f"{status}: {text}")
        for status, texts in summary["reasons"].items()
        for text, count in texts.items()
    ]
    slowest = [
        (f"{row['seconds']:.2f} s", f"{row['megapixels']:.1f} MP  {printable(row['key'])}")
        for row in summary["slowest"]
    ]
    failures = [
        ("", f"{printable(r['key'])}: {printable(r['reason'] or '')}") for r in summary["failures"]
    ]
    lines += _block("Photos by model", models)
    lines += _block("Photos by reason", reasons, summary["more_reasons"])
    lines += _block("Slowest", slowest)
    lines += _block("Failed", failures, summary["more_failures"])
    return lines


def _what_by(model: str, settings: str) -> str:
    return f"model {model}, settings {settings}" if model else "no model: cut off, to be done again"


def _second(time: str | None) -> str:
    return "-" if time is None else time[:19].replace("T", " ")


def _block(title: str, rows: Sequence[tuple[str, str]], more: int = 0) -> list[str]:
    if not rows and not more:
        return []
    width = max((len(number) for number, _ in rows), default=0)
    lines = [f"  {number:>{width}}  {printable(text, 2 * _MOST_LETTERS)}" for number, text in rows]
    return ["", title, *lines, *([f"  and {more} more"] if more else [])]


def printable(text: str, most: int = _MOST_LETTERS) -> str:
    """Return a text that neither breaks a line nor commands a terminal, with its end if it is long."""
    safe = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
    return safe if len(safe) <= most else f"{safe[: most // 2 - 1]}…{safe[-most // 2 :]}"


# === CSV ===


def _file(uri: str) -> tuple[Store, str]:
    """Return the store and the key of one file."""
    if uri.rpartition("/")[2] in {"", "-", ".", ".."}:
        raise UsageError(
            f"--csv {uri!r}: expected a file or s3://bucket/name.csv; stdout has the JSON summary"
        )
    return open_parent(uri)


def _export(store: Store, target: Store, name: str) -> None:
    """Write the rows that count. Numbers and times are written as Arrow prints them."""
    import pyarrow as pa

    with (
        tempfile.TemporaryFile() as file,
        # The line ends of RFC 4180, which have a lone \r or \n in a key quoted as well.
        io.TextIOWrapper(file, "utf-8", newline="") as text,
    ):
        writer = csv.writer(text)
        writer.writerow(ledger.SCHEMA.names)
        for rows in ledger.current(store, ledger.SCHEMA.names):
            columns = [column.cast(pa.string()).to_pylist() for column in rows.columns]
            writer.writerows(zip(*columns, strict=True))
        text.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            try:
                target.put(name, view)
            except OSError as error:
                raise UsageError(
                    f"{target.uri}/{name} cannot be written: {reason(error)}"
                ) from error
