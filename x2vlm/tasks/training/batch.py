"""What one process trains on in one step of a task.

B rows; whatever else a task needs has names and shapes of its own, said beside its `encode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from x2vlm.data.loading.batch import normalised


@dataclass(frozen=True)
class TaskBatch:
    """Tensors by name, and the example of every row; `notes` are values that stay on the host (reference texts)."""

    keys: list[str]  # example id of every row, for logs and lineage
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, list[str]] = field(default_factory=dict)
    kind: str = "task"

    @property
    def num_rows(self) -> int:
        return len(self.keys)

    def pixels(self, name: str = "pixels") -> Tensor:
        """The uint8 tensor `name` as the image tower takes it: float32, normalised, on its device."""
        return normalised(self.tensors[name])

    def chunks(self, number: int) -> list[TaskBatch]:
        """The rows in `number` nearly equal parts; every tensor must have one entry per row. Empty parts are left out.

        A task whose tensors have other first dimensions brings `TaskTraining.chunks` of its own.
        """
        bounds = [self.num_rows * part // number for part in range(number + 1)]
        return [self._rows(slice(*ends)) for ends in pairwise(bounds) if ends[0] < ends[1]]

    def _rows(self, rows: slice) -> TaskBatch:
        tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}
        notes = {name: values[rows] for name, values in self.notes.items()}
        return replace(self, keys=self.keys[rows], tensors=tensors, notes=notes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TaskBatch:
        """The batch on `device`."""
        moved = {name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.tensors.items()}
        return replace(self, tensors=moved)

    def pin_memory(self) -> TaskBatch:
        """The batch in page-locked memory."""
        return replace(self, tensors={name: tensor.pin_memory() for name, tensor in self.tensors.items()})
