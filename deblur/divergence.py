"""Whether a training run has gone astray: not a number, or a loss that explodes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from deblur.errors import DeblurError

# A run has exploded when its error is above 5 times the running mean for 10 steps in a row. Single
# photos of places differ by that much (batch 1: skies against foliage), ten in a row do not.
_EXPLODED, _IN_A_ROW = 5.0, 10
_MEMORY = 0.99  # of the running mean: a hundred steps
_EARLIEST = 100  # steps before which a mean says little
_FINITE = (
    "generator", "error", "discriminator", "gradient_norm_generator", "gradient_norm_discriminator",
)  # fmt: skip


class Diverged(DeblurError):
    """Training has gone astray; to repeat the step would lead to the same."""


class _Step(NamedTuple):
    step: int
    keys: Sequence[str]
    figures: Mapping[str, Any]


class Watch:
    """Looks at each step's figures, one step late, so that the device need not be waited for."""

    def __init__(self) -> None:
        """Begin without a memory: a resumed run explodes a little later."""
        self._pending: deque[_Step] = deque()
        self._above: list[_Step] = []
        self._mean, self._seen = 0.0, 0
        self.last_good: str | None = None

    def add(self, step: int, keys: Sequence[str], figures: Mapping[str, Any]) -> None:
        """Take note of a step, and judge the one before. Raises Diverged."""
        self._pending.append(_Step(step, keys, figures))
        while len(self._pending) > 1:
            self._judge(self._pending.popleft())

    def settle(self) -> None:
        """Judge all steps: before a checkpoint, which must be a good one. Raises Diverged."""
        while self._pending:
            self._judge(self._pending.popleft())

    def _judge(self, found: _Step) -> None:
        values = {name: float(found.figures[name]) for name in _FINITE}
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise self._diverged(found, f"{', '.join(bad)} is not finite")
        error = values["error"]
        if self._seen >= _EARLIEST and error > _EXPLODED * self._mean:
            self._above.append(found)
            if len(self._above) == _IN_A_ROW:
                why = f"from then on the error was above {_EXPLODED:g} times its mean, {self._mean:.4f}"
                raise self._diverged(self._above[0], why)
            return
        self._above.clear()
        memory = min(_MEMORY, self._seen / (self._seen + 1))
        self._mean = memory * self._mean + (1 - memory) * error
        self._seen += 1

    def _diverged(self, found: _Step, why: str) -> Diverged:
        keys = ", ".join(found.keys[:8]) + (", ..." if len(found.keys) > 8 else "")
        return Diverged(
            f"training went astray in step {found.step + 1}: {why}. The step saw {keys}. "
            f"The last good checkpoint: {self.last_good or 'none'}. "
            "A smaller --learning-rate, or a recipe that clips gradients, may help"
        )
