"""Evaluation on several processes with results that do not depend on their number.

Whole batches are shared out, never rows: the last bits of a matrix product depend on how many rows it has, so a batch
must be the same whoever computes it.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from x2vlm.train.ranks import Ranks, gather_json

T = TypeVar("T")
R = TypeVar("R")

BYTES_AT_ONCE = 64 * 2**20  # of what processes send each other


def batches_of(count: int, batch_size: int) -> list[range]:
    """The rows of every batch of `count` rows, in order."""
    return [range(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def map_batches(items: Sequence[T], batch_size: int, ranks: Ranks, work: Callable[[Sequence[T]], list[R]]) -> list[R]:
    """`work` of every batch of `items`, joined in their order, on all processes.

    Each process computes every `world_size`-th batch. The results are JSON values (numbers, strings, lists of them),
    one for every item of the batch.
    """
    batches = batches_of(len(items), batch_size)
    own = [
        [number, work([items[row] for row in rows])]
        for number, rows in enumerate(batches)
        if number % ranks.world_size == ranks.rank
    ]
    results = dict(gather_json(own, ranks))
    joined: list[R] = []
    for number, rows in enumerate(batches):
        if len(results[number]) != len(rows):
            raise ValueError(f"batch {number} has {len(rows)} examples and {len(results[number])} results")
        joined += results[number]
    return joined


@torch.no_grad()
def sum_over_ranks(rows: Tensor, ranks: Ranks) -> Tensor:
    """`rows` itself, filled on all processes; each must have left those of the others 0, which makes the sum exact.

    A part at a time, so that what lies on disk need not fit in the memory of a device.
    """
    if ranks.world_size == 1 or rows.numel() == 0:
        return rows
    at_once = max(1, BYTES_AT_ONCE // (rows[0].numel() * rows.element_size()))
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once].to(ranks.device, copy=True)
        dist.all_reduce(part)
        rows[start : start + at_once] = part.to(rows.device)
    return rows
