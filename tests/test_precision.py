from __future__ import annotations

from pathlib import Path

import pytest

from deblur import precision
from deblur.errors import DeblurError, UsageError

CPUINFO = """\
processor\t: 0
model name\t: A CPU with flags in its name
flags\t\t: fpu avx2 avx512f {flag}
vmx flags\t: vnmi
bugs\t\t: spectre_v1

processor\t: 1
flags\t\t: fpu avx2 avx512f {flag}
"""


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without a GPU, whose /proc/cpuinfo is this file (absent at first)."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_CPUINFO", file)
    monkeypatch.setattr(precision, "_gpu_capability", lambda: None)
    return file


def test_explicit_names_ask_nobody(cpuinfo: Path) -> None:
    assert precision.policy("float32") == "float32"
    assert precision.policy("bfloat16") == "mixed_bfloat16"


@pytest.mark.parametrize("name", ["float16", "mixed_bfloat16", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"precision '{name}': expected auto, bfloat16 or float32"):
        precision.policy(name)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("avx512_bf16", "mixed_bfloat16"),
        ("amx_tile amx_bf16", "mixed_bfloat16"),
        ("avx512_bf16_like", "float32"),
        ("", "float32"),
    ],
)
def test_auto_without_a_gpu_asks_the_cpu(cpuinfo: Path, flag: str, expected: str) -> None:
    cpuinfo.write_text(CPUINFO.format(flag=flag))
    assert precision.policy("auto") == expected


@pytest.mark.parametrize("text", [None, "", "Features\t: fp asimd\n"])
def test_auto_is_float32_where_the_cpu_does_not_tell(cpuinfo: Path, text: str | None) -> None:
    if text is not None:
        cpuinfo.write_text(text)
    assert precision.policy("auto") == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((0, 0), "float32"),
        ((7, 5), "float32"),
        ((8, 0), "mixed_bfloat16"),
        ((10, 0), "mixed_bfloat16"),
    ],
)
def test_auto_with_a_gpu_asks_the_gpu_alone(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    cpuinfo.write_text(CPUINFO.format(flag="avx512_bf16"))
    monkeypatch.setattr(precision, "_gpu_capability", lambda: capability)
    assert precision.policy("auto") == expected


@pytest.mark.parametrize(
    ("details", "expected"),
    [({"compute_capability": (9, 0), "device_name": "H200"}, (9, 0)), ({}, (0, 0))],
)
def test_the_first_gpu_counts(
    monkeypatch: pytest.MonkeyPatch, details: dict[str, object], expected: tuple[int, int]
) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["first", "second"])
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda gpu: details if gpu == "first" else {"compute_capability": (1, 0)},
    )
    assert precision._gpu_capability() == expected
    assert precision.device() == details.get("device_name", "a GPU")


@pytest.mark.parametrize(("given", "seen"), [(1, []), (2, ["first"]), (1, ["first", "second"])])
def test_gpus_that_tensorflow_does_not_see_are_no_gpus(
    monkeypatch: pytest.MonkeyPatch, given: int, seen: list[str]
) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: seen)
    expected = (
        f"Ray gave {given} GPUs, TensorFlow sees {len(seen)}: .* pip install 'deblur\\[gpu\\]'"
    )
    with pytest.raises(DeblurError, match=expected):
        precision.use_gpus(given)


@pytest.mark.parametrize(("given", "seen"), [(0, []), (0, ["first"]), (2, ["first", "second"])])
def test_the_memory_of_gpus_is_taken_as_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, given: int, seen: list[str]
) -> None:
    import tensorflow as tf

    grow: dict[str, bool] = {}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: seen)
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow.__setitem__)
    assert precision.use_gpus(given) == len(seen)
    assert grow == dict.fromkeys(seen, True)


def test_no_gpu_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert precision._gpu_capability() is None
    assert precision.device() == "the CPU"
