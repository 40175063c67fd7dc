"""The processes that train together, and the few things they tell each other. One process needs no process group."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from x2vlm.across_ranks import Gather, gather_over

# Gradients travel in groups of about this many numbers (64 MB): few messages, little extra memory.
BUCKET_NUMBERS = 1 << 24


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self) -> Gather | None:
        """How the contrastive loss reaches the rows of the other processes; None if there are none."""
        return gather_over() if self.world_size > 1 else None


def current_ranks(device: torch.device | str = "cpu") -> Ranks:
    """This process in the default process group (torchrun, Ray Train); alone if there is no group."""
    if not dist.is_initialized():
        return Ranks(device=torch.device(device))
    return Ranks(dist.get_rank(), dist.get_world_size(), torch.device(device))


@torch.no_grad()
def copy_from_first(model: nn.Module, ranks: Ranks) -> None:
    """Give every process the first one's weights."""
    if ranks.world_size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Replace every gradient by its mean over the processes; parameters without one are skipped.

    Not torch's DistributedDataParallel: that regroups its buckets after the first step of every start, so with three or
    more processes a resumed run would add in another order than an undisturbed one. Here the order never changes.
    """
    if ranks.world_size == 1:
        return
    bucket: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            bucket.append(parameter.grad)
        if sum(gradient.numel() for gradient in bucket) >= BUCKET_NUMBERS:
            _average(bucket, ranks.world_size)
            bucket = []
    _average(bucket, ranks.world_size)


def _average(gradients: list[Tensor], world_size: int) -> None:
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    start = 0
    for gradient in gradients:
        gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def mean_over_ranks(values: Sequence[Tensor], ranks: Ranks) -> list[float]:
    """The mean of each number over the processes: one message, one wait for the device."""
    stacked = torch.stack([value.detach().float() for value in values]).double()
    if ranks.world_size > 1:
        dist.all_reduce(stacked)
        stacked /= ranks.world_size
    return stacked.tolist()


def gather_json(value: list[Any], ranks: Ranks) -> list[Any]:
    """The lists of all processes joined in rank order. Travels as JSON text: nothing is unpickled."""
    if ranks.world_size == 1:
        return value
    data = json.dumps(value).encode()
    sizes = [torch.zeros(1, dtype=torch.long, device=ranks.device) for _ in range(ranks.world_size)]
    dist.all_gather(sizes, torch.tensor([len(data)], device=ranks.device))
    longest = max(int(size) for size in sizes)
    texts = [torch.zeros(longest, dtype=torch.uint8, device=ranks.device) for _ in range(ranks.world_size)]
    mine = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8).to(ranks.device)
    dist.all_gather(texts, mine)
    parts = [bytes(text.cpu().tolist()[: int(size)]) for text, size in zip(texts, sizes, strict=True)]
    return [item for part in parts for item in json.loads(part)]
