"""Sequences of different lengths concatenated in one tensor, padded only inside the attention cores.

T concatenated tokens of all sequences, S concatenated slots of all groups, D width, H heads, E width of a head, G rows
of a group, Q its queries and K its keys per row.
Units (sequences, or all queries of one image) are sorted into a few groups of about equal length. Each group is a
padded rectangle; the slot of every token is computed on the host, where the lengths are known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from x2vlm.models.blocks.masks import LENGTH_MULTIPLE, AttentionMask, additive_or_none
from x2vlm.models.blocks.rows import collect_rows, spread_rows

Numbers = NDArray[np.int64]

# More groups waste fewer slots and launch more kernels; captions of 3 to 40 tokens have 5 rounded lengths.
MAX_GROUPS = 5


@dataclass(frozen=True)
class Placement:
    """The slot of every token: the host side of `Groups`. Padding slots repeat token 0."""

    shapes: tuple[tuple[int, int], ...]  # rows and slots per row of every group
    token_of_slot: Numbers
    slot_of_token: Numbers

    @property
    def is_identity(self) -> bool:
        """True if slots and tokens are the same."""
        num_slots = len(self.token_of_slot)
        return num_slots == len(self.slot_of_token) and bool((self.slot_of_token == np.arange(num_slots)).all())


@dataclass(frozen=True)
class Groups:
    """A Placement on the device; without indices slots and tokens are the same."""

    shapes: tuple[tuple[int, int], ...]
    token_of_slot: Tensor | None
    slot_of_token: Tensor | None

    def spread(self, tokens_TD: Tensor) -> Tensor:
        """(S, D): every token in its slot; padding is finite and must be masked."""
        if self.token_of_slot is None or self.slot_of_token is None:
            return tokens_TD
        return spread_rows(tokens_TD, self.token_of_slot, self.slot_of_token)

    def collect(self, slots_SD: Tensor) -> Tensor:
        """(T, D): the tokens back from their slots."""
        return slots_SD if self.slot_of_token is None else collect_rows(slots_SD, self.slot_of_token)


def choose_groups(lengths: Numbers, power: int, max_groups: int = MAX_GROUPS) -> list[Numbers]:
    """Unit numbers of at most `max_groups` groups, shortest first, with the least total of rounded length ** power.

    Exact, by dynamic programming over the rounded lengths that occur. Units of length 0 are in the first group.
    """
    rounded = np.maximum(round_up(lengths), LENGTH_MULTIPLE)
    widths, counts = np.unique(rounded, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    num_widths = len(widths)
    best = [[0.0 if end == 0 else np.inf for end in range(num_widths + 1)]]
    cut_of: list[list[int]] = []
    for _ in range(min(max_groups, num_widths)):
        costs, cuts = [0.0], [0]
        for end in range(1, num_widths + 1):
            padded = float(widths[end - 1]) ** power
            options = [best[-1][start] + (before[end] - before[start]) * padded for start in range(end)]
            cuts.append(int(np.argmin(options)))
            costs.append(float(options[cuts[-1]]))
        best.append(costs)
        cut_of.append(cuts)
    group_of_width, end = np.zeros(num_widths, dtype=np.int64), num_widths
    for number in reversed(range(len(cut_of))):
        group_of_width[cut_of[number][end] : end] = number
        end = cut_of[number][end]
    group_of = group_of_width[np.searchsorted(widths, rounded)]
    members = [np.flatnonzero(group_of == number) for number in range(len(cut_of))]
    return [units for units in members if len(units)]


def place(counts: Numbers, groups: Sequence[Numbers], widths: Sequence[int]) -> Placement:
    """The slots of concatenated units of `counts` tokens in `groups` with `widths` slots per row."""
    starts = np.cumsum(counts) - counts
    token_of_slot, slot_of_token, base = [np.zeros(0, np.int64)], np.zeros(int(counts.sum()), dtype=np.int64), 0
    for units, width in zip(groups, widths, strict=True):
        offset = np.arange(width)
        is_real = offset < counts[units][:, None]
        tokens = np.where(is_real, starts[units][:, None] + offset, 0)
        slots = base + np.arange(tokens.size).reshape(tokens.shape)
        slot_of_token[tokens[is_real]] = slots[is_real]
        token_of_slot.append(tokens.ravel())
        base += tokens.size
    shapes = tuple((len(units), int(width)) for units, width in zip(groups, widths, strict=True))
    return Placement(shapes, np.concatenate(token_of_slot), slot_of_token)


def round_up(lengths: Numbers) -> Numbers:
    return -(-lengths // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


def widest(lengths: Numbers, groups: Sequence[Numbers]) -> list[int]:
    """The greatest length in every group."""
    return [int(lengths[units].max()) for units in groups]


class HostToDeviceBatch:
    """Batches int64 host arrays and copies them to the device in one non-blocking transfer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._arrays: list[Numbers] = []
        self._tensors: list[Tensor] = []

    def add(self, array: Numbers) -> int:
        """The index for `get`, valid after `send`."""
        self._arrays.append(np.asarray(array, dtype=np.int64))
        return len(self._arrays) - 1

    def send(self) -> None:
        if not self._arrays:
            return
        together = np.concatenate([array.ravel() for array in self._arrays])
        sent = self.to_device(together, self.device).split_with_sizes([array.size for array in self._arrays])
        self._tensors = [piece.view(array.shape) for piece, array in zip(sent, self._arrays, strict=True)]

    @staticmethod
    def to_device(array: Numbers, device: torch.device) -> Tensor:
        """A single integer array, copied to the device without blocking."""
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
        return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)

    def get(self, index: int) -> Tensor:
        return self._tensors[index]

    def add_placement(self, placement: Placement) -> "PendingPlacement":
        indices = None
        if not placement.is_identity:
            indices = self.add(placement.token_of_slot), self.add(placement.slot_of_token)
        return PendingPlacement(placement.shapes, indices)


@dataclass(frozen=True)
class PendingPlacement:
    shapes: tuple[tuple[int, int], ...]
    indices: tuple[int, int] | None

    def resolve(self, transfer: HostToDeviceBatch) -> Groups:
        if self.indices is None:
            return Groups(self.shapes, None, None)
        return Groups(self.shapes, transfer.get(self.indices[0]), transfer.get(self.indices[1]))


@dataclass(frozen=True)
class SelfLayout:
    """Sequences grouped for self-attention: slots of queries and keys, and the real keys of each row."""

    queries: Groups
    keys: Groups
    masks: tuple[AttentionMask | None, ...]

    def attend(self, query_TD: Tensor, key_TD: Tensor, value_TD: Tensor, num_heads: int, dropout: float) -> Tensor:
        """(T, D): every token's attention to its own sequence; queries may be fewer tokens than keys."""
        slots = self.keys.spread(key_TD), self.keys.spread(value_TD)
        return attend(query_TD, self.queries, slots, self.keys.shapes, self.masks, num_heads, dropout)


def attend(
    query_TD: Tensor,
    queries: Groups,
    slots_SD: tuple[Tensor, Tensor],
    key_shapes: Sequence[tuple[int, int]],
    masks: Sequence[AttentionMask | None],
    num_heads: int,
    dropout: float,
) -> Tensor:
    """(T, D): attention of query tokens to the keys and values in the same row of the same group.

    `slots_SD` are keys and values already in their slots, `masks` broadcast to (G, H, Q, K), true where a query may
    attend, None: everywhere.
    """

    def by_group(slots: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        pieces = slots.split_with_sizes([rows * length for rows, length in shapes])
        return [
            piece.reshape(rows, length, num_heads, -1).transpose(1, 2) if length else piece
            for piece, (rows, length) in zip(pieces, shapes, strict=True)
        ]

    grouped = [by_group(queries.spread(query_TD), queries.shapes), *(by_group(s, key_shapes) for s in slots_SD)]
    attended = [
        query
        if query.ndim == 2  # a group without queries
        else scaled_dot_product_attention(query, key, value, attn_mask=additive_or_none(mask, query), dropout_p=dropout)
        .transpose(1, 2)
        .flatten(2)
        .flatten(0, 1)
        for query, key, value, mask in zip(*grouped, masks, strict=True)
    ]
    return queries.collect(attended[0] if len(attended) == 1 else torch.cat(attended))


@dataclass(frozen=True)
class PendingSelfLayout:
    """A SelfLayout whose index arrays are still being transferred."""

    groups: list[Numbers]
    placement: PendingPlacement
    seen: list[int | None]  # real keys of every row, None where all are

    def resolve(self, transfer: HostToDeviceBatch) -> SelfLayout:
        where = self.placement.resolve(transfer)
        masks = tuple(
            None if index is None else AttentionMask(_first_keys(transfer.get(index), width))
            for index, (_, width) in zip(self.seen, where.shapes, strict=True)
        )
        return SelfLayout(where, where, masks)


def add_sequences(transfer: HostToDeviceBatch, held: Numbers, visible: Numbers) -> PendingSelfLayout:
    """Pending layout of concatenated sequences of `held` tokens, of which the first `visible` are keys."""
    groups = choose_groups(held, power=2)
    widths = widest(held, groups)
    if (held == visible).all():  # otherwise they include their padding
        widths = [int(width) for width in round_up(np.array(widths))]
    seen = [
        transfer.add(visible[units]) if (visible[units] < width).any() else None
        for units, width in zip(groups, widths, strict=True)
    ]
    return PendingSelfLayout(groups, transfer.add_placement(place(held, groups, widths)), seen)


def _first_keys(counts_G: Tensor, width: int) -> Tensor:
    """(G, 1, 1, K), true for the first `counts_G` keys of every row."""
    return (torch.arange(width, device=counts_G.device) < counts_G[:, None])[:, None, None]


def fetch(tensors: Sequence[Tensor]) -> list[Numbers]:
    """The values of integer tensors on the host: the only device-to-host synchronisation of a training step.

    All tensors of a device are copied in one transfer; tensors on the host need none.
    """
    found: list[Numbers | None] = [tensor.numpy().astype(np.int64) if tensor.is_cpu else None for tensor in tensors]
    away = [number for number, values in enumerate(found) if values is None]
    if away:
        together = torch.cat([tensors[number].reshape(-1).long() for number in away]).cpu().numpy()
        pieces = np.split(together, np.cumsum([tensors[number].numel() for number in away])[:-1])
        for number, piece in zip(away, pieces, strict=True):
            found[number] = piece.reshape(tensors[number].shape)
    return [values for values in found if values is not None]
