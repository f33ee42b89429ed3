"""Which precision `auto` is: bfloat16 where the hardware has it, else float32; never float16.

float16 overflows the layer normalisations of restoration networks, and its loss scaling desynchronises workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Precision = Literal["auto", "bfloat16", "float32"]

_POLICIES = {"bfloat16": "mixed_bfloat16", "float32": "float32"}


def policy(precision: Precision) -> str:
    """Return the Keras dtype policy of a precision, looking at this machine for `auto`."""
    if precision == "auto":
        precision = "bfloat16" if _has_bfloat16() else "float32"
    return _POLICIES[precision]


def _has_bfloat16() -> bool:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return bool(capability >= (8, 0))  # Ampere
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        return False
    # Without these, bfloat16 is emulated, and slower than float32.
    return bool(flags & {"avx512_bf16", "amx_bf16"})
