"""What a golden case is judged by: named differences, each with its tolerance.

Tolerances are those of the golden numbers themselves: the reference's own float32 and float64 losses differ by up to
3.4e-6, so 2e-5 absolute holds for activations and losses, and 1e-3 relative for norms of gradients.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ACTIVATION = 2e-5
GRADIENT = 1e-3
# Gradients that are zero in theory (a key bias, say) are noise of 1e-8 in practice: norms below this count as this.
SMALLEST_NORM = 1e-3
EXACT = 0.0


@dataclass(frozen=True)
class Difference:
    """The largest difference of one array or number from the recorded one, and how large it may be."""

    name: str
    value: float
    tolerance: float

    @property
    def is_excess(self) -> bool:
        """True beyond the tolerance, and for anything that is not a number."""
        return not self.value <= self.tolerance


Check = Callable[[Path], list[Difference]]


def arrays(name: str, ours: Tensor, recorded: Tensor, tolerance: float = ACTIVATION) -> Difference:
    """Largest absolute difference of two arrays; infinite if their shapes differ or one holds a NaN."""
    if ours.shape != recorded.shape:
        return Difference(f"{name} {list(ours.shape)} instead of {list(recorded.shape)}", math.inf, tolerance)
    if not ours.numel():
        return Difference(name, 0.0, tolerance)
    largest = (ours.detach().double() - recorded.double()).abs().max().item()
    return Difference(name, math.inf if math.isnan(largest) else largest, tolerance)


def numbers(name: str, ours: float, recorded: float, tolerance: float = ACTIVATION) -> Difference:
    """Absolute difference of two numbers."""
    return Difference(name, abs(ours - recorded), tolerance)


def norms(name: str, ours: float, recorded: float, tolerance: float = GRADIENT) -> Difference:
    """Relative difference of two norms."""
    return Difference(name, abs(ours - recorded) / max(recorded, SMALLEST_NORM), tolerance)


def directions(name: str, ours: Tensor, recorded: Tensor, tolerance: float = GRADIENT) -> Difference:
    """Norm of the difference of two gradients, relative to the recorded one's."""
    if ours.shape != recorded.shape:
        return Difference(f"{name} {list(ours.shape)} instead of {list(recorded.shape)}", math.inf, tolerance)
    distance = torch.linalg.vector_norm((ours - recorded).double()).item()
    return Difference(
        name, distance / max(torch.linalg.vector_norm(recorded.double()).item(), SMALLEST_NORM), tolerance
    )


def equal(name: str, ours: Any, recorded: Any) -> Difference:
    """0 for equal values, infinite otherwise, with both in the name."""
    same = bool(ours == recorded)
    return Difference(name if same else f"{name}: {ours!r} instead of {recorded!r}", 0.0 if same else math.inf, EXACT)


def worst(name: str, differences: Iterable[Difference]) -> Difference:
    """The one that is worst for its tolerance, under a name for all of them."""
    found = list(differences)
    if not found:
        return Difference(f"{name}: nothing was compared", math.inf, EXACT)
    bad = max(found, key=lambda item: (item.is_excess, item.value / item.tolerance if item.tolerance else item.value))
    return Difference(f"{name} ({bad.name}, worst of {len(found)})", bad.value, bad.tolerance)
