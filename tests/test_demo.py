from pathlib import Path

from jobs import demo


def test_demo_goes_the_whole_way(ray_cluster: None, tmp_path: Path) -> None:
    made = demo.run(demo.Options(str(tmp_path), epochs=1))
    assert (made["preprocess"]["train"], made["preprocess"]["test"]) == (9, 3)
    assert made["train"]["steps"] == 8  # one pair is held out
    assert (made["restore"]["restored"], made["restore"]["failed"]) == (12, 0)
    assert Path(made["evaluate"]["report"]).read_text().startswith("<!")
