"""What the work is: the library of deblur, which knows nothing of Ray.

Conventions, stated once:

* A picture is RGB, height x width x channels. It is `uint8` or `uint16` at the edges (files,
Parquet)
  and `float32` in [0, 1] inside. BGR exists inside `photo.py` alone.
* A network maps (B, H, W, 3) in [0, 1] to the same shape.
* Randomness comes from `numpy.random.Generator`s seeded by (seed, key of the item, purpose).
* Names carry units: `_px`, `_s`, `_bytes`.
"""

__version__ = "0.1.0"
