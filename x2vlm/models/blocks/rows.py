"""Moving rows of a tensor with deterministic gradients: no sums in an arbitrary order.

T tokens, S slots, X states, D width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def spread_rows(tokens_TD: Tensor, token_of_slot: Tensor, slot_of_token: Tensor) -> Tensor:
    """(S, D): every token in its one slot, padding slots repeating any token."""
    slots: Tensor = _Spread.apply(tokens_TD, token_of_slot, slot_of_token)  # type: ignore[no-untyped-call]
    return slots


def collect_rows(slots_SD: Tensor, slot_of_token: Tensor) -> Tensor:
    """(T, D): the tokens back from their slots."""
    tokens: Tensor = _Collect.apply(slots_SD, slot_of_token)  # type: ignore[no-untyped-call]
    return tokens


def place_rows(states_XD: Tensor, token_of_slot: Tensor, real_slots: Tensor, real_tokens: Tensor) -> Tensor:
    """(S, D): states that are each in one slot or in none; `real_slots` hold `real_tokens`, the others padding."""
    slots: Tensor = _PlaceOnce.apply(states_XD, token_of_slot, real_slots, real_tokens)  # type: ignore[no-untyped-call]
    return slots


def take_rows(states_XD: Tensor, index_T: Tensor) -> Tensor:
    """Rows of `states_XD`, any of them any number of times."""
    rows: Tensor = _TakeRows.apply(states_XD, index_T)  # type: ignore[no-untyped-call]
    return rows


class _Spread(torch.autograd.Function):
    """A gather whose backward pass is a gather too: every token has exactly one slot, so nothing is summed."""

    @staticmethod
    def forward(ctx: Any, tokens_TD: Tensor, token_of_slot: Tensor, slot_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(slot_of_token)
        return tokens_TD.index_select(0, token_of_slot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slots_SD: Tensor) -> tuple[Tensor, None, None]:
        return slots_SD.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """The inverse of `_Spread`; padding slots, which are never read, get a zero gradient."""

    @staticmethod
    def forward(ctx: Any, slots_SD: Tensor, slot_of_token: Tensor) -> Tensor:
        ctx.save_for_backward(slot_of_token)
        ctx.num_slots = len(slots_SD)
        return slots_SD.index_select(0, slot_of_token)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, tokens_TD: Tensor) -> tuple[Tensor, None]:
        zeros = tokens_TD.new_zeros(ctx.num_slots, *tokens_TD.shape[1:])
        return zeros.index_copy_(0, ctx.saved_tensors[0], tokens_TD), None


class _PlaceOnce(torch.autograd.Function):
    """Rows that are each in one slot or none; the backward pass sums nothing."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, token_of_slot: Tensor, real_slots: Tensor, real_tokens: Tensor) -> Tensor:
        ctx.save_for_backward(real_slots, real_tokens)
        ctx.num_states = len(states)
        return states.index_select(0, token_of_slot)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slots_SD: Tensor) -> tuple[Tensor, None, None, None]:
        real_slots, real_tokens = ctx.saved_tensors
        zeros = slots_SD.new_zeros(ctx.num_states, *slots_SD.shape[1:])
        return zeros.index_copy_(0, real_tokens, slots_SD.index_select(0, real_slots)), None, None, None


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_states = len(states)
        return states.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, taken: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        zeros = taken.new_zeros(ctx.num_states, *taken.shape[1:])
        if zeros.is_cuda:  # sorts equal rows instead of summing them by atomics in any order
            return zeros.index_put_((index,), taken, accumulate=True), None
        return zeros.index_add_(0, index, taken), None
