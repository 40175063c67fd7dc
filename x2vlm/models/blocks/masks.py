"""Attention masks as the fused kernels of GPUs read them: additive, in the type of the queries, with aligned rows.

Q queries, K keys.
torch turns a boolean mask into an additive one with `where`, in every call and without padding. The rows of the result
are K apart, and memory-efficient attention, which needs multiples of LENGTH_MULTIPLE, copies them once more. Both would
happen in every layer: with 12 + 6 layers, 36 times a step and mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Lengths are rounded up to this: the distance of two rows of a mask must be a multiple of it.
LENGTH_MULTIPLE = 8


class AttentionMask:
    """Where a query may attend, given as booleans (..., Q or 1, K); made additive once for each type of queries."""

    def __init__(self, seen: Tensor) -> None:
        self.seen = seen
        self._additive: dict[torch.dtype, Tensor] = {}

    def additive(self, dtype: torch.dtype) -> Tensor:
        """0 where a query may attend, minus infinity elsewhere, (..., Q or 1, K) in a buffer with aligned rows.

        The type must be that of the queries inside attention: autocast would copy any other, without the padding.
        """
        if dtype not in self._additive:
            *rows, num_keys = self.seen.shape
            # A rounded length would tie an exported program to lengths with that remainder.
            is_traced = torch.compiler.is_compiling()
            padded = num_keys if is_traced else -(-num_keys // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            buffer = torch.zeros(*rows, padded, dtype=dtype, device=self.seen.device)
            self._additive[dtype] = buffer[..., :num_keys].masked_fill_(~self.seen, -torch.inf)
        return self._additive[dtype]


def additive_or_none(mask: AttentionMask | Tensor | None, queries: Tensor) -> Tensor | None:
    """The mask in the type of `queries`; a plain tensor stays as it is, and None: everything may be attended to."""
    return mask.additive(queries.dtype) if isinstance(mask, AttentionMask) else mask
