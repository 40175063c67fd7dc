"""How costs grow with the number of parts: a power of it, by least squares, and what that makes of more parts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Growth:
    """`factor` * parts ** `exponent`. The exponent is None where only one size was run: then the cost is taken for
    proportional to the parts."""

    factor: float
    exponent: float | None

    def at(self, parts: int) -> float:
        """The extrapolated cost."""
        return float(self.factor * parts ** (1.0 if self.exponent is None else self.exponent))


def fitted(parts: Sequence[int], costs: Sequence[float], least: float = 0.0) -> Growth:
    """The growth that fits best, in logarithms, these costs of these numbers of parts.

    Costs of 0 count for nothing, and where none is above `least` they are noise: taken for proportional to the parts.
    """
    known = [(number, cost) for number, cost in zip(parts, costs, strict=True) if cost > 0]
    if known and max(cost for _, cost in known) <= least:
        known = known[-1:]
    if not known:
        return Growth(0.0, None)
    if len({number for number, _ in known}) == 1:
        number, cost = known[-1]
        return Growth(cost / number, None)
    sizes, spent = np.log(np.array(known, np.float64)).T
    exponent, start = np.polyfit(sizes, spent, 1)
    return Growth(float(np.exp(start)), float(exponent))
