import pytest

from jobs import progress


def test_progress_tells_state_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.Progress("restore", 100, "photos") as bar:
        now = 50.0  # starting does not count
        bar.advance(10)
        now = 61.0
        bar.advance(22)
        now = 72.0
        bar.advance(22, "loss 3")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "restore: 10 of 100 photos",
        "restore: 32 of 100 photos, 2.0/s, 34 s left",
        "restore: 54 of 100 photos, loss 3, 23 s left",
    ]
