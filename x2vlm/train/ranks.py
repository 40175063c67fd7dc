"""The processes that train together, and their communication. One process needs no process group."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # the stub exports it by a star

from x2vlm.errors import ConfigError
from x2vlm.objectives.across_ranks import Gather, NegativeGroup, gather_over


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
        """Gathers the rows of the other processes for the contrastive loss; None for a single process."""
        return gather_over() if self.world_size > 1 else None


def current_ranks(device: torch.device | str = "cpu") -> Ranks:
    """This process in the default process group (torchrun, Ray Train); alone if there is no group."""
    if not dist.is_initialized():
        return Ranks(device=torch.device(device))
    return Ranks(dist.get_rank(), dist.get_world_size(), torch.device(device))


def keep_first(number: int, ranks: Ranks) -> Ranks | None:
    """Of the processes of the default group only the first `number` go on, in a group of their own; None in the others.

    Every process must call it. Those that get None are in no group any more and have nothing left to do.
    """
    if number == ranks.world_size:
        return ranks
    backend, address = dist.get_backend(), os.environ.get("MASTER_ADDR", "127.0.0.1")
    server = TCPStore(address, 0, is_master=True, wait_for_workers=False) if ranks.is_first else None
    (port,) = {item for item in gather_json([] if server is None else [server.port], ranks)}
    dist.barrier()
    dist.destroy_process_group()
    if ranks.rank >= number:
        return None
    store = server or TCPStore(address, port, is_master=False)
    dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=number)
    return Ranks(ranks.rank, number, ranks.device)


@torch.no_grad()
def copy_from_first(model: nn.Module, ranks: Ranks) -> None:
    """Broadcast the weights of the first process."""
    if ranks.world_size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


@torch.no_grad()
def tensors_from_first(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The named tensors of the first process, on the device of each; what the others pass does not count."""
    if ranks.world_size == 1:
        return dict(tensors)
    own = [[name, list(item.shape), str(item.dtype).removeprefix("torch.")] for name, item in tensors.items()]
    found = {}
    for name, shape, dtype in gather_json(own if ranks.is_first else [], ranks):
        if ranks.is_first:
            found[name] = tensors[name].to(ranks.device).contiguous()
        else:
            found[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=ranks.device)
        dist.broadcast(found[name], 0)
    return found


def negative_groups(
    ranks: Ranks,
    group_sizes: Mapping[str, int | None],
    rows_per_rank: Mapping[str, int],
    max_tokens: int,
    timeout: timedelta | None = None,
) -> dict[str, NegativeGroup]:
    """By stream the consecutive ranks that form a negative group; none where one rank holds whole groups.

    Every rank must call it with the same numbers. `timeout` is that of their collectives: a new group does not take it
    from the default one. ConfigError if a group is neither a divisor of a rank's rows nor
    a multiple of them that divides the rows of all ranks.
    """
    made: dict[int, Gather] = {}
    found = {}
    for label, rows in rows_per_rank.items():
        group_size = group_sizes[label]
        if group_size is None or rows % group_size == 0:
            continue
        span = group_size // rows
        if group_size % rows or ranks.world_size % span:
            raise ConfigError(
                f"stream {label}: groups of {group_size} negatives cannot be made of {ranks.world_size} processes with "
                f"{rows} rows each; change negative_group_size or the number of processes"
            )
        if span not in made:
            for first in range(0, ranks.world_size, span):  # all ranks must create every process group, members or not
                members = dist.new_group(list(range(first, first + span)), timeout=timeout)
                if first <= ranks.rank < first + span:
                    made[span] = gather_over(members)
        found[label] = NegativeGroup(made[span], max_tokens)
    return found


def gather_json(value: list[Any], ranks: Ranks) -> list[Any]:
    """The lists of all processes joined in rank order. Sent as JSON text: nothing is unpickled."""
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
