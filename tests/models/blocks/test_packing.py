"""Packed sequences: where tokens stand, that nothing is lost on the way, and attention against one text at a time."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import Data2VecTextConfig, Data2VecTextModel, XLMRobertaConfig, XLMRobertaModel

from x2vlm.models.blocks.masks import LENGTH_MULTIPLE
from x2vlm.models.blocks.packing import (
    HostToDeviceBatch,
    SelfLayout,
    add_sequences,
    choose_groups,
    fetch,
    place,
    widest,
)
from x2vlm.models.blocks.rows import take_rows
from x2vlm.models.text import TextEncoder

LENGTHS = st.lists(st.integers(0, 45), min_size=1, max_size=30)


def layout_of(held, visible=None) -> SelfLayout:
    transfer = HostToDeviceBatch(torch.device("cpu"))
    held = np.array(held)
    pending = add_sequences(transfer, held, held if visible is None else np.array(visible))
    transfer.send()
    return pending.resolve(transfer)


@given(LENGTHS, st.integers(1, 2), st.integers(1, 4))
def test_groups_hold_every_unit_once_and_waste_least(lengths, power, most):
    lengths = np.array(lengths)
    groups = choose_groups(lengths, power, most)
    assert sorted(np.concatenate(groups)) == list(range(len(lengths)))
    assert len(groups) <= most
    rounded = np.maximum(-(-lengths // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, LENGTH_MULTIPLE)

    def cost(parts):
        return sum(len(part) * int(rounded[part].max()) ** power for part in parts)

    ascending = np.argsort(rounded, kind="stable")
    widths = np.flatnonzero(np.diff(rounded[ascending])) + 1
    cuts = (c for count in range(most) for c in itertools.combinations(widths.tolist(), count))
    assert cost(groups) == min(cost(np.split(ascending, list(cut))) for cut in cuts)


@given(LENGTHS)
def test_every_token_has_a_slot_of_its_own_in_its_units_row(lengths):
    counts = np.array(lengths)
    groups = choose_groups(counts, power=1)
    found = place(counts, groups, widest(counts, groups))
    tokens = np.arange(counts.sum())
    assert (found.token_of_slot[found.slot_of_token] == tokens).all()
    assert len(np.unique(found.slot_of_token)) == len(tokens)
    row_of_slot = np.concatenate(
        [np.repeat(units, width) for units, (_, width) in zip(groups, found.shapes, strict=True)]
    )
    assert (row_of_slot[found.slot_of_token] == np.repeat(np.arange(len(counts)), counts)).all()


@settings(max_examples=25)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_tokens_and_their_gradients_come_back(lengths):
    groups = layout_of(lengths).queries
    tokens = torch.randn(sum(lengths), 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(sum(rows * width for rows, width in groups.shapes), 3, dtype=torch.float64)
    assert torch.equal(groups.collect(groups.spread(tokens)), tokens)
    (groups.collect(groups.spread(tokens) * weight) ** 2).sum().backward()
    where = torch.arange(len(tokens)) if groups.slot_of_token is None else groups.slot_of_token
    assert_close(tokens.grad, 2 * tokens.detach() * weight[where] ** 2)


def test_padding_slots_send_no_gradient_anywhere():
    groups = layout_of([3, 9]).queries
    slots = torch.randn(sum(rows * width for rows, width in groups.shapes), 2, requires_grad=True)
    groups.collect(slots).sum().backward()
    is_real = torch.zeros(len(slots), dtype=torch.bool)
    is_real[groups.slot_of_token] = True
    assert torch.equal(slots.grad, is_real[:, None].expand(-1, 2).float())


def test_rows_taken_several_times_add_up_their_gradients():
    states, index = torch.randn(4, 3, requires_grad=True), torch.tensor([2, 0, 2, 2, 3])
    weight = torch.randn(5, 3)
    (take_rows(states, index) * weight).sum().backward()
    assert_close(states.grad, torch.zeros(4, 3).index_add(0, index, weight))
    assert torch.equal(take_rows(states, index), states[index])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5)), min_size=1, max_size=7))
def test_attention_is_that_of_every_text_alone(texts):
    """Texts carry real tokens and padding; what padding holds must reach nobody."""
    visible, padding = (np.array(each) for each in zip(*texts, strict=True))
    held = visible + padding
    query, key, value = torch.randn(3, held.sum(), 8, dtype=torch.float64).unbind()
    attended = layout_of(held, visible).attend(query, key, value, num_heads=2, dropout=0.0)
    starts = np.cumsum(held) - held
    for start, count in zip(starts, visible, strict=True):
        own = slice(start, start + count)
        q, k, v = (x[own].view(count, 2, 4).transpose(0, 1) for x in (query, key, value))
        alone = ((q @ k.transpose(1, 2)) / 2).softmax(-1) @ v
        assert_close(attended[own], alone.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_attention_dropout_drops_keys_at_its_rate(rate):
    """Texts of one token: all of its attention is kept, and divided by 1 - rate, or gone."""
    torch.manual_seed(0)
    num_texts, num_heads = 3000, 4
    value = torch.ones(num_texts, num_heads)
    attended = layout_of([1] * num_texts).attend(value, value, value, num_heads, rate)
    dropped = attended == 0
    assert_close(attended[~dropped], torch.full_like(attended[~dropped], 1 / (1 - rate)))
    # 5 standard deviations of a share over 12,000 draws.
    assert dropped.float().mean().item() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / 12000) ** 0.5)


def roberta_like(config_type, model_type):
    torch.manual_seed(3)
    config = config_type(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20,
        max_position_embeddings=30, type_vocab_size=1, pad_token_id=1,
    )  # fmt: skip
    return TextEncoder(model_type(config, add_pooling_layer=False)).eval()


@torch.no_grad()
def test_packed_positions_of_roberta_count_from_after_the_padding():
    encoder = roberta_like(XLMRobertaConfig, XLMRobertaModel)
    ids, lengths = torch.randint(5, 60, (3, 9)), [9, 4, 6]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    offsets = torch.arange(9).expand(3, -1)[mask]
    packed = encoder.forward_packed(ids[mask], offsets, layout_of(lengths))
    theirs = encoder.encoder(input_ids=ids.masked_fill(~mask, 1), attention_mask=mask).last_hidden_state[mask]
    assert_close(packed, theirs, atol=1e-6, rtol=0)
    assert_close(encoder(ids.masked_fill(~mask, 1), mask)[mask], theirs, atol=1e-6, rtol=0)


def test_architectures_whose_positions_we_do_not_know_are_not_packed():
    assert not roberta_like(Data2VecTextConfig, Data2VecTextModel).can_pack
    assert roberta_like(XLMRobertaConfig, XLMRobertaModel).can_pack


def test_fetched_values_keep_their_shapes():
    first, second = torch.arange(6).view(2, 3), torch.tensor([True, False])
    values = fetch([first, second])
    assert (values[0] == first.numpy()).all()
    assert values[1].tolist() == [1, 0]
    assert fetch([]) == []
