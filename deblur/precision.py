"""What this machine computes in, and on: which precision `auto` is, and which GPUs TensorFlow sees.

`auto` is bfloat16 where the hardware has it, else float32; never float16.

float16 overflows the layer normalisations of restoration networks, and its loss scaling
desynchronises workers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from deblur.errors import DeblurError, UsageError

Precision = Literal["auto", "bfloat16", "float32"]

_POLICIES = {"bfloat16": "mixed_bfloat16", "float32": "float32"}
_CPUINFO = Path("/proc/cpuinfo")
# Without these, bfloat16 is emulated, and slower than float32. With them, pix2pix restores 1.8
# times as fast (2 cores with avx512_bf16, 2026-11).
_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_AMPERE = (8, 0)


def check(precision: str) -> None:
    """Raise UsageError unless this is a precision."""
    if precision not in {"auto", *_POLICIES}:
        raise UsageError(f"--precision {precision!r}: expected auto, {' or '.join(_POLICIES)}")


def policy(precision: Precision) -> str:
    """Return the Keras dtype policy of a precision, looking at this machine for `auto`.

    Raises:
        UsageError: if it is another word.
    """
    check(precision)
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16() else "float32"
    return _POLICIES[precision]


def use_gpus(given: int) -> int:
    """Have TensorFlow take the memory of this machine's GPUs as it needs it; return how many it sees.

    Args:
        given: how many are this process's to use; 0 where it may find some, and need not.

    Raises:
        DeblurError: if TensorFlow sees another number: it would compute on the CPU without a word.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if given and len(gpus) != given:
        raise DeblurError(
            f"Ray gave {given} GPUs, TensorFlow sees {len(gpus)}: on the machines that have them, "
            "pip install 'deblur[gpu]'"
        )
    for device in gpus:
        tf.config.experimental.set_memory_growth(device, True)
    return len(gpus)


def _has_bfloat16() -> bool:
    capability = _gpu_capability()
    return bool(_cpu_flags() & _CPU_FLAGS) if capability is None else capability >= _AMPERE


def device() -> str:
    """Return the name of what TensorFlow computes on here: its first GPU, or the CPU."""
    details = _gpu_details()
    return "the CPU" if details is None else details.get("device_name", "a GPU")


def _gpu_capability() -> tuple[int, int] | None:
    """Return the first GPU's CUDA compute capability, (0, 0) if it has none; None without GPU."""
    details = _gpu_details()
    if details is None:
        return None
    major, minor = details.get("compute_capability", (0, 0))
    return major, minor


def _gpu_details() -> Any:
    """Return what TensorFlow knows of the first GPU, by name; None without GPU."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]) if gpus else None


def _cpu_flags() -> set[str]:
    try:
        line = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(line[1].split()) if line else set()
