"""The kernel of a shaken hand: a random trajectory, rasterised.

After Boracchi & Foi, "Modeling the Performance of Image Restoration from Motion Blur", IEEE TIP 2012.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Their generator: 2000 steps of a path of 60 px, of which the exposure shows a part.
PATH_STEPS, PATH_PX = 2000, 60.0


def kernel(exposure: float, anxiety: float, path_seed: int) -> NDArray[np.float64]:
    """Return the PSF of a hand-held exposure, the time that a shaken path spends at each pixel.

    After Boracchi & Foi, "Modeling the Performance of Image Restoration from Motion Blur", IEEE TIP
    21(8), 2012, and its authors' generator: a particle of constant speed is turned by Gaussian
    jolts, drawn back to where it began, and at times thrown into reverse.
    """
    rng = np.random.default_rng(path_seed)
    pull, jolt, reversal = rng.random(3) * (0.7, 10.0, 0.2)
    heading = math.tau * rng.random()
    jolts = (jolt * rng.normal(size=(PATH_STEPS, 2))).tolist()
    events = rng.random((PATH_STEPS, 2)).tolist()
    speed = PATH_PX / (PATH_STEPS - 1)
    position, velocity = 0j, speed * complex(math.cos(heading), math.sin(heading))
    path = [position]
    # Each step needs the one before; Python's complex numbers are faster at that than NumPy's.
    for step in range(round(exposure * PATH_STEPS)):
        turn = anxiety * speed * (complex(*jolts[step]) - pull * position)
        if events[step][0] < reversal * anxiety:
            bend = math.pi + events[step][1] - 0.5
            turn += 2 * velocity * complex(math.cos(bend), math.sin(bend))
        velocity += turn
        velocity *= speed / abs(velocity)
        position += velocity
        path.append(position)
    return _rasterise(np.array(path))


def _rasterise(path: NDArray[np.complex128]) -> NDArray[np.float64]:
    # Centred on its centroid, so that the blur does not also move the photo; each point is shared
    # bilinearly by four pixels, which keeps the centroid exactly.
    points = np.stack([path.imag, path.real])
    points -= points.mean(axis=1, keepdims=True)
    reach = int(np.abs(points).max()) + 1
    corner = np.floor(points).astype(int)
    (wy, wx), (y, x) = points - corner, corner + reach
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for dy, weight_y in enumerate((1 - wy, wy)):
        for dx, weight_x in enumerate((1 - wx, wx)):
            np.add.at(kernel, (y + dy, x + dx), weight_y * weight_x)
    return kernel
