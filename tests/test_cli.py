import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deblur import models
from deblur.errors import DeblurError, UsageError
from jobs import cli, runtime


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    captured = capsys.readouterr()
    return int(exit_.value.code or 0), captured.out, captured.err


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from jobs import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'ray', 'cv2', 'pyarrow', 'boto3', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert shown.splitlines()[-1] == "[]"
    assert all(name in shown for name in cli.JOBS)


@pytest.mark.parametrize("name", list(cli.JOBS))
def test_each_job_has_help_with_an_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"deblur {name}" in out
    assert "Example:" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("preproces",), 'Did you mean "preprocess"?'),
        (("preprocess", "a", "b", "--trian", "3"), "Did you mean --train?"),
        (("preprocess", "a"), "requires an argument"),
        (("preprocess", "a", "b", "--train", "many"), "many"),
        (("train", "a", "b", "--epochs", "0"), "--epochs 0"),
        (("restore", "/usr", "b", "--model", "c"), "c holds no model"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_missing_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "preprocess", str(tmp_path / "none"), str(tmp_path / "pairs"))
    assert code == 2
    assert "there is no folder" in err


def test_missing_bucket(capsys: pytest.CaptureFixture[str], s3: str, tmp_path: Path) -> None:
    code, _, err = run(capsys, "preprocess", "s3://no-such-bucket/photos", str(tmp_path))
    assert code == 2
    assert "no-such-bucket" in err


def test_no_credentials(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    # Another endpoint than the other tests', so that no client of theirs is at hand.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    code, _, err = run(capsys, "preprocess", "s3://bucket/photos", str(tmp_path))
    assert code == 2
    assert "credentials" in err


def test_some_failed_photos_are_exit_code_3(
    capsys: pytest.CaptureFixture[str],
    ray_cluster: None,
    without_ray: None,
    tiny: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no photo")
    words = [
        "restore",
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--model",
        str(tiny),
    ]
    code, out, err = run(capsys, *words)
    assert code == 3
    assert json.loads(out)["failed"] == 1
    assert "a.jpg: " in err


def test_a_model_that_does_not_fit_is_said_in_a_line(
    capfd: pytest.CaptureFixture[str], ray_cluster: None, tiny: Path, tmp_path: Path, photos: Any
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(photos.jpeg())
    shutil.copytree(tiny, tmp_path / "model")
    card = tmp_path / "model" / "card.json"
    card.write_text(card.read_text().replace("pix2pix-small", "wiener-photo"))
    words = ["restore", str(tmp_path / "in"), str(tmp_path / "out")]
    code, _, err = run(capfd, *words, "--model", str(tmp_path / "model"))
    assert code == 1
    assert "model.keras does not fit the network 'wiener-photo': " in err
    assert "Traceback" not in err
    assert max(map(len, err.splitlines())) < 400


def test_who_reads_no_more_of_the_summary_costs_no_trace() -> None:
    words = [sys.executable, "-m", "jobs.cli", "models", "photo"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), said) == (0, "")


def test_models_prints_the_card(capsys: pytest.CaptureFixture[str], tiny: Path) -> None:
    code, out, _ = run(capsys, "models", str(tiny))
    assert code == 0
    assert json.loads(out)["network"] == "pix2pix-small"


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UsageError("no such thing"), 2, "deblur: error: no such thing"),
        (DeblurError("it broke"), 1, "deblur: error: it broke"),
        (RuntimeError("a bug\nof ours"), 1, "the job failed: RuntimeError: a bug of ours"),
        (
            RuntimeError("Traceback (most recent call last):\n  ...\nOSError: disk full\n"),
            1,
            "the job failed: OSError: disk full",
        ),
        (
            RuntimeError('the actor died\n  File "a.py", line 1, in b\nOSError: no disk'),
            1,
            "the job failed: OSError: no disk",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_exit_codes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    message: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(models, "read_card", fail)
    got, out, err = run(capsys, "models", "x")
    assert (got, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("job", "goes_on"), [("restore", True), ("demo", True), ("evaluate", False), ("export", False)]
)
def test_who_keeps_nothing_does_not_promise_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job: str, goes_on: bool
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    code, _, err = run(capsys, job)
    assert code == 130
    assert (
        err.strip() == "deblur: interrupted" + "; the same command goes on where it was" * goes_on
    )


def test_who_ends_a_listing_is_answered(credentials: None, tmp_path: Path) -> None:
    """Long before Ray, in a bucket that takes its time."""
    words = [sys.executable, "-m", "jobs.cli", "restore", "s3://in/x", str(tmp_path)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = os.environ | {"AWS_ENDPOINT_URL_S3": endpoint}
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            time.sleep(0.5)
            process.terminate()
            said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said.endswith("deblur: interrupted; the same command goes on where it was\n")


@pytest.mark.parametrize("in_dataset", [False, True])
def test_what_a_worker_raised_comes_out_of_its_wrappers(
    ray_cluster: None, in_dataset: bool
) -> None:
    import ray
    import ray.data

    def fail(*_: object) -> None:
        try:
            raise OSError("403")
        except OSError as error:
            raise UsageError("the store refuses these credentials") from error

    def work() -> None:
        if in_dataset:
            ray.data.from_items([1]).map_batches(fail).take_all()
        ray.get(ray.remote(fail).remote())

    with pytest.raises(Exception, match="refuses") as raised:
        work()
    error = runtime.cause(raised.value)
    assert isinstance(error, UsageError)
    assert str(error) == "the store refuses these credentials"
