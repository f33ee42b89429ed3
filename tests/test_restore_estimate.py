from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deblur import ledger
from deblur.storage import open_store
from jobs.restore_estimate import estimate
from tests.test_restore_plan import folder, planned

START = datetime(2026, 1, 1, tzinfo=UTC)


def restored(out: Path, *photos: tuple[float, float | None], megapixels: int = 1) -> None:
    """Write a row for each photo: after how many seconds it was done, and how many were its own."""
    rows = [
        ledger.Row(
            f"{number}.jpg", "e", 1, "model", "settings", "restored",
            width=1000 * megapixels, height=1000, seconds=seconds,
            finished_at=START + timedelta(seconds=after),
        )
        for number, (after, seconds) in enumerate(photos)
    ]  # fmt: skip
    ledger.write(open_store(out), rows)


def rate(tmp_path: Path, model_id: str = "model") -> float | None:
    source, out = folder(tmp_path / "in", "a.jpg"), open_store(tmp_path / "out")
    found = estimate(source, out, planned(source, out), model_id)
    rate: float | None = found["megapixels_a_second_before"]
    return rate


def test_the_rate_is_that_of_the_ledger(tmp_path: Path) -> None:
    assert rate(tmp_path) is None
    # Of the first one it is not known when it was begun; the last one is of another run.
    restored(tmp_path / "out", (0, 1.0), (2, 1.0), (4, None), (3000, 1.0))
    assert rate(tmp_path) == pytest.approx(0.5)
    assert rate(tmp_path, "another") is None


def test_the_rate_of_photos_that_take_longer_than_a_pause(tmp_path: Path) -> None:
    restored(tmp_path / "out", (0, 65.0), (70, 65.0), (140, 65.0), (9000, 65.0), megapixels=24)
    assert rate(tmp_path) == pytest.approx(24 / 70, abs=1e-3)


def test_the_seconds_are_those_of_the_megapixels_at_that_rate(photos, tmp_path: Path) -> None:
    source, out = folder(tmp_path / "in"), open_store(tmp_path / "out")
    for number in range(3):
        source.put(f"{number}.png", photos.file(photos.pixels(400, 500), "PNG"))
    restored(tmp_path / "out", (0, 1.0), (10, 1.0))
    found = estimate(source, out, planned(source, out), "model")
    assert (found["to_restore"], found["megapixels_estimate"]) == (3, 0.6)
    assert found["seconds_estimate"] == 6.0
