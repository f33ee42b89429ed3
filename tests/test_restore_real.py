"""`deblur restore` on a real store: who may do what, and two thousand photos."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deblur import ledger
from deblur.storage import S3Store
from jobs import cli
from tests.stores import AT_ONCE_S, IDENTITIES, Become, SeaweedFS

_numbers = itertools.count()


@pytest.fixture
def source(
    seaweed: SeaweedFS, photos: Any, fresh_clients: None, monkeypatch: pytest.MonkeyPatch
) -> S3Store:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", seaweed.endpoint)
    store = S3Store(f"s3://tests/restore-real/{next(_numbers)}", seaweed.endpoint)
    store.put("a.jpg", photos.jpeg(20, 20))
    return store


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return what the command says before it ends, which is at once and with exit code 2."""
    started = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        cli.main(["restore", *words])
    assert time.monotonic() - started < AT_ONCE_S
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    *before, last = said.err.splitlines()
    assert all(line.startswith("listing ") or " photos (" in line for line in before)
    return last


def test_wrong_secrets_and_places(
    source: S3Store, tiny: Path, become: Become, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", str(tiny))
    gone = "s3://nothing-here/in"
    missing = f"deblur: error: {gone}: there is no bucket 'nothing-here'"
    assert refused(capsys, gone, "s3://tests/out", *model) == missing
    one = f"{gone}/a.jpg"
    assert refused(capsys, one, "s3://tests/out", *model) == missing.replace(gone, one)
    assert refused(capsys, source.uri, gone, *model) == missing
    assert refused(capsys, source.uri, "s3://tests/out", "--model", gone) == missing
    become("read_only")
    denied = "deblur: error: cannot write to s3://tests/out: access denied (AccessDenied)"
    assert refused(capsys, source.uri, "s3://tests/out", *model) == denied
    become("testing", "not-the-secret")
    said = refused(capsys, source.uri, "s3://tests/out", *model)
    assert said.endswith("the store refuses these S3 credentials (SignatureDoesNotMatch)")
    assert refused(capsys, f"{source.uri}/a.jpg", "s3://tests/out", *model).endswith(
        "the store refuses these S3 credentials (SignatureDoesNotMatch)"
    )
    assert "not-the-secret" not in said


@pytest.mark.slow
def test_two_thousand_photos_from_a_bucket_that_may_only_be_read(
    seaweed: SeaweedFS, source: S3Store, photos: Any, tiny: Path
) -> None:
    keys = [f"{number % 7}/a b/{number:04}.jpg" for number in range(2000)]
    kinds = [photos.jpeg(20 + number, 30, seed=number) for number in range(10)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(source.put, keys, itertools.cycle(kinds)))
    target = S3Store("s3://writable/deep/out", seaweed.endpoint)
    environment = {"AWS_ACCESS_KEY_ID": "half", "AWS_SECRET_ACCESS_KEY": IDENTITIES["half"][0]}
    words = ["restore", source.uri, target.uri, "--model", str(tiny), "--no-guard"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 240  # 25 s where nothing else runs
    summary = json.loads(done.stdout)
    assert (summary["restored"], summary["failed"]) == (2001, 0)
    rows = [row for table in ledger.read(target) for row in table.to_pylist()]
    assert Counter(row["key"] for row in rows) == dict.fromkeys([*keys, "a.jpg"], 1)
    outputs = [entry.key for entry in target.list() if not entry.key.startswith("_deblur/")]
    assert sorted(outputs) == sorted([*keys, "a.jpg"])
    assert len({row["output_sha256"] for row in rows}) == 11  # as many as there are photos
