"""An alarm for steps whose loss lies far above its level so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

MEMORY_STEPS = 100  # the level forgets with this time constant, and is not judged by before as many steps
LEAST_DEVIATION = 0.01  # of the level: a loss that hardly moves is no reason to alarm at its noise


class LossLevel:
    """Exponentially weighted mean and deviation of the loss; a loss `threshold` deviations above the mean is a spike.

    `state` is plain JSON and goes into checkpoints, so a resumed run alarms at the same steps. A spike counts for the
    level only up to the threshold: it barely moves it, and a lasting rise becomes the level after a while.
    """

    def __init__(self, threshold: float | None, state: Sequence[float] = ()) -> None:
        self._threshold = threshold
        count, self._mean, self._variance = state or (0, 0.0, 0.0)
        self._count = int(count)

    @property
    def state(self) -> list[float]:
        """Number of steps, mean and variance."""
        return [self._count, self._mean, self._variance]

    def add(self, loss: float) -> float | None:
        """Count the loss of a step; its distance to the mean in deviations if that is a spike, else None."""
        if self._threshold is None or not math.isfinite(loss):
            return None
        deviation = max(math.sqrt(self._variance), LEAST_DEVIATION * abs(self._mean))
        excess = (loss - self._mean) / deviation if deviation else 0.0
        is_spike = self._count >= MEMORY_STEPS and excess > self._threshold
        counted = self._mean + self._threshold * deviation if is_spike else loss
        self._count += 1
        weight = 1 / min(self._count, MEMORY_STEPS)  # a plain mean at first
        change = counted - self._mean
        self._mean += weight * change
        self._variance = (1 - weight) * (self._variance + weight * change * change)
        return excess if is_spike else None
