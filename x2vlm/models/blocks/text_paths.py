"""Stochastic depth of the text and fusion layers: a branch of a layer is left out for some texts.

B texts, L tokens of a padded text, T packed tokens of all texts, D width.
The reference draws one number per token position for the whole batch: of all texts the same words skip the same
branches. `parity="reference"` does so too; the default draws one per text, as stochastic depth is meant
(arXiv 1603.09382). Packed texts of several passes are drawn in one go, where the reference draws pass by pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from x2vlm.models.blocks.packing import HostToDeviceBatch, Numbers

SMALLEST_RATE = 1e-3  # rates up to this drop nothing, as in the reference

PathParity = Literal["fixed", "reference"]


@dataclass(frozen=True)
class PackedRows:
    """For each of T packed tokens the number of its text (below `most`) and its position in that text."""

    text_of_T: Tensor
    position_of_T: Tensor
    most: int

    def select(self, index_K: Tensor) -> PackedRows:
        return PackedRows(self.text_of_T[index_K], self.position_of_T[index_K], self.most)

    def first(self, count: int) -> PackedRows:
        return PackedRows(self.text_of_T[:count], self.position_of_T[:count], self.most)


def rows_of_offsets(offsets_T: Tensor) -> PackedRows:
    """The rows of concatenated texts, whose `offsets_T` begin with 0 in each; without synchronisation."""
    return PackedRows((offsets_T == 0).cumsum(0) - 1, offsets_T, len(offsets_T))


def rows_of_counts(counts: Numbers, device: torch.device) -> PackedRows:
    """The rows of concatenated texts of so many tokens."""
    text = np.repeat(np.arange(len(counts)), counts)
    position = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    sent = HostToDeviceBatch.to_device(np.stack([text, position]), device)
    return PackedRows(sent[0], sent[1], max(len(counts), int(counts.max(initial=1))))


class TextDropPath(nn.Module):
    """Drops the output of a branch with probability `rate` and scales what is kept; `rows` tells packed texts apart."""

    def __init__(self, rate: float, parity: PathParity) -> None:
        super().__init__()
        self.rate, self.parity = rate, parity
        self.rows: PackedRows | None = None

    def forward(self, states: Tensor) -> Tensor:
        factors = self.factors(states, self.rows)
        return states if factors is None else states * factors

    def factors(self, states: Tensor, rows: PackedRows | None) -> Tensor | None:
        """0 or 1 / (1 - rate) for each token of `states`: (B, L, D), or packed (..., T, D) with `rows`."""
        if not self.training or self.rate <= SMALLEST_RATE:
            return None
        kept = 1 - self.rate
        if rows is not None:
            drawn = states.new_empty(rows.most).bernoulli_(kept) / kept
            return drawn[rows.text_of_T if self.parity == "fixed" else rows.position_of_T][:, None]
        shape = (len(states), 1, 1) if self.parity == "fixed" else (1, states.shape[1], 1)
        return states.new_empty(shape).bernoulli_(kept) / kept


def rates_of_layers(rate: float, num_layers: int) -> list[float]:
    """From 0 for the first layer to `rate` for the last, linearly."""
    return [rate * number / max(1, num_layers - 1) for number in range(num_layers)]
