from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deblur import ledger as rows
from deblur.errors import UsageError
from deblur.ledger import Row
from deblur.storage import open_store
from jobs import cli, ledger

HOSTILE = 'a,b"c\r\nd\re\n<script>alert(1)</script>\x1b[2J\u202egpj.jpg'
START = datetime(2026, 5, 4, 3, 2, 1, 7, tzinfo=UTC)


def written(place: Any) -> None:
    """Write a ledger of two runs: 30 photos and a hostile one, of which the second mends one."""
    store = open_store(place)
    photos = [
        Row(
            f"{number:02}.jpg", f"e{number}", 1000, "m1", "s1", "restored", None, f"{number:02}.jpg",
            "ab" * 32, 4000, 3000, 0.1, 0.2, 1 + number / 10, START + timedelta(seconds=number),
        )
        for number in range(15)
    ]  # fmt: skip
    photos += [
        Row(f"x{number:02}.jpg", "e", 5, "m1", "s1", "failed", "damaged", finished_at=START)
        for number in range(15)
    ]
    rows.write(store, photos)
    later = {"finished_at": START + timedelta(days=1)}
    rows.write(store, [Row("x00.jpg", "e", 5, "m2", "s1", "restored", width=1, height=1, **later)])
    rows.write(
        store, [Row(HOSTILE, "e", 5, "m2", "s1", "failed", "no\x1b[31m", seconds=9, **later)]
    )
    rows.write(store, [Row("sharp.jpg", "e", 5, "m2", "s1", "skipped", "is sharp", **later)])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["ledger", *words])
    shown = capsys.readouterr()
    return int(exit_.value.code or 0), shown.out, shown.err


def test_a_photo_that_was_cut_off_in_place_is_of_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows.write(open_store(tmp_path), [rows.begun(Row("a.jpg", "e", 1, "m", "s", "restored"))])
    _, out, err = run(capsys, str(tmp_path))
    assert "\nPhotos by model\n  1  no model: cut off, to be done again\n" in err
    assert json.loads(out)["models"] == [{"model_id": "", "settings_id": "", "photos": 1}]


def test_reasons_that_differ_in_numbers_are_counted_as_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reasons = ["9x8 is over the limit", "12.5x8 is over the limit", "HTTP 503", "HTTP 503"]
    failures = [
        Row(f"{number}.jpg", "e", 5, "m1", "s1", "failed", text, finished_at=START)
        for number, text in enumerate(reasons)
    ]
    rows.write(open_store(tmp_path), failures)
    _, out, _ = run(capsys, str(tmp_path))
    summary = json.loads(out)
    assert summary["reasons"] == {"failed": {"#x# is over the limit": 2, "HTTP 503": 2}}
    assert [row["reason"] for row in summary["failures"]] == reasons


def test_the_summary(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    written(tmp_path)
    code, out, err = run(capsys, str(tmp_path), "--show", "3")
    assert code == 0
    summary = json.loads(out)
    assert summary["photos"] == 32
    assert summary["status"] == {"restored": 16, "skipped": 1, "failed": 15}
    assert summary["reasons"] == {
        "failed": {"damaged": 14, "no\x1b[31m": 1},
        "skipped": {"is sharp": 1},
    }
    assert summary["megapixels"] == 180.0
    assert summary["seconds"] == pytest.approx(9 + sum(1 + n / 10 for n in range(15)), abs=0.1)
    assert summary["first_finished_at"] == "2026-05-04T03:02:01.000007+00:00"
    assert summary["last_finished_at"] == "2026-05-05T03:02:01.000007+00:00"
    assert [(row["model_id"], row["photos"]) for row in summary["models"]] == [
        ("m1", 29),
        ("m2", 3),
    ]
    assert [row["key"] for row in summary["slowest"]] == [HOSTILE, "14.jpg", "13.jpg"]
    assert [row["key"] for row in summary["failures"]] == [HOSTILE, "x01.jpg", "x02.jpg"]
    assert summary["more_failures"] == 12
    # The table has one line a row, and nothing that a terminal obeys.
    assert "32 photos: 16 restored, 1 skipped, 15 failed" in err
    assert "and 12 more" in err
    assert all(letter.isprintable() or letter == "\n" for letter in err)
    assert sum("<script>" in line for line in err.splitlines()) == 2

    # Merged, it says the same.
    assert rows.compact(open_store(tmp_path), more_than=1) == 4
    merged = json.loads(run(capsys, str(tmp_path), "--show", "3")[1])
    assert merged.pop("parts") == 1
    assert summary.pop("parts") == 4
    assert merged == summary


def test_csv_has_every_photo_once_whatever_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    written(tmp_path / "out")
    code, out, _ = run(capsys, str(tmp_path / "out"), "--csv", str(tmp_path / "new" / "x.csv"))
    assert code == 0
    assert json.loads(out)["csv"] == str(tmp_path / "new" / "x.csv")
    with (tmp_path / "new" / "x.csv").open(newline="", encoding="utf-8") as file:
        found = {row["key"]: row for row in csv.DictReader(file)}
    assert len(found) == 32
    assert list(found["00.jpg"]) == rows.SCHEMA.names
    assert found[HOSTILE]["status"] == "failed"
    assert found[HOSTILE]["reason"] == "no\x1b[31m"
    assert found["x00.jpg"]["model_id"] == "m2"
    first = found["01.jpg"]
    assert (first["width"], first["seconds"], first["sharpness_before"]) == ("4000", "1.1", "0.1")
    assert first["reason"] == ""
    assert datetime.fromisoformat(first["finished_at"]) == START + timedelta(seconds=1)


def test_a_bucket(bucket: Any) -> None:
    uri = bucket() + "/deep"
    written(uri)
    options = ledger.Options(uri, csv=f"{uri}/ledger.csv")
    assert ledger.run(options)["photos"] == 32
    assert open_store(uri).read("ledger.csv").count(b"\r\n") == 32 + 1 + 1  # one is in a name


def test_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no ledger"):
        ledger.run(ledger.Options(str(tmp_path / "none")))
    with pytest.raises(UsageError, match="has no ledger"):
        ledger.run(ledger.Options(str(tmp_path)))
    with pytest.raises(UsageError, match="--show -1"):
        ledger.run(ledger.Options(str(tmp_path), show=-1))
    written(tmp_path)
    with pytest.raises(UsageError, match="stdout has the JSON summary"):
        ledger.run(ledger.Options(str(tmp_path), csv="-"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        ledger.run(ledger.Options(str(tmp_path), csv=str(tmp_path / "folder.csv")))


def test_a_ledger_of_no_rows(tmp_path: Path) -> None:
    rows.write(open_store(tmp_path), [])
    summary = ledger.run(ledger.Options(str(tmp_path), csv=str(tmp_path / "x.csv")))
    assert (summary["photos"], summary["failures"], summary["last_finished_at"]) == (0, [], None)
    assert (tmp_path / "x.csv").read_text().count("\n") == 1


def test_what_is_shown_is_short_and_safe() -> None:
    assert ledger.printable("a/é 日本.jpg") == "a/é 日本.jpg"
    assert ledger.printable("a\nb\x9b\u202e") == r"a\nb\x9b\u202e"
    shown = ledger.printable("x" * 500 + ".jpg")
    assert len(shown) == 100
    assert shown.endswith("x.jpg")


def test_the_csv_has_the_name_that_a_uri_gives_it(tmp_path: Path) -> None:
    written(tmp_path)
    ledger.run(ledger.Options(str(tmp_path), csv=f"{tmp_path.as_uri()}/my%20list.csv"))
    assert [path.name for path in tmp_path.glob("*.csv")] == ["my list.csv"]
