from pathlib import Path

import pytest

from jobs import demo, evaluate


def test_demo_goes_the_whole_way_and_again(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = demo.Options(str(tmp_path), epochs=1)
    first = demo.run(options)
    assert (first["preprocess"]["train"], first["preprocess"]["test"]) == (9, 3)
    assert first["train"]["steps"] == 8  # one pair is held out
    assert (first["restore"]["restored"], first["restore"]["failed"]) == (12, 0)
    assert Path(first["evaluate"]["report"]).read_text().startswith("<!")
    # Which measures all of it again, as it did.
    monkeypatch.setattr(evaluate, "run", lambda options: first["evaluate"])
    again = demo.run(options)
    assert again["train"]["model_id"] == first["train"]["model_id"]
    assert again["restore"]["this_run"]["restored"] == 0
