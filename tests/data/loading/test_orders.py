"""Orders as arrays and backwards: equal to the order position by position, for windows, weights and lanes."""

import pickle
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.loading.orders.lanes import LanedOrder, deal, num_lanes
from x2vlm.data.loading.orders.permutation import all_permuted, permuted, unpermuted
from x2vlm.data.loading.orders.weighted import Group, WeightedOrder
from x2vlm.data.loading.orders.windowed import WindowedOrder

ITEMS = 8
weights = st.sampled_from(["1", "2", "1/2", "3/20", "5/2"])


class PairedImages:
    """Two rows for every image; picklable."""

    def __init__(self, groups):
        self.groups = groups

    def __call__(self, group, shard):
        return np.arange(self.groups[group].counts[shard]) // 2


@st.composite
def orders(draw):
    """An order of a few shards, and the number of positions that a range of it must be a multiple of."""
    num_shards, window, seed = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(0, 99))
    counts = st.lists(st.integers(0, 6), min_size=num_shards, max_size=num_shards)
    groups = [
        Group(tuple(of_group), Fraction(weight))
        for of_group, weight in draw(st.lists(st.tuples(counts, weights), min_size=1, max_size=3))
    ]
    groups[0] = Group((5, *groups[0].counts[1:]), Fraction(1))  # a pass has a row at least

    def make(shards, name, sorts=True):
        some = [Group(tuple(group.counts[shard] for shard in shards), group.weight) for group in groups]
        if len(groups) == 1:
            return WindowedOrder(some[0].counts, seed, name, window, sorts)
        return WeightedOrder(some, seed, name, window, PairedImages(some), sorts)

    total = np.array([group.counts for group in groups]).sum(axis=0)
    lanes = num_lanes(draw(st.sampled_from([1, 2, 4])), ITEMS, window, total, seed)
    if lanes > 1:
        dealt = deal(num_shards, lanes, seed)
        if all(sum(group.weight * sum(group.counts[s] for s in shards) for group in groups) >= 1 for shards in dealt):
            return LanedOrder(num_shards, lanes, ITEMS, seed, "image", make), ITEMS
    return make(range(num_shards), "image", sorts=False), 1


def fields(place):
    return place.epoch, place.shard, place.row, place.group


@settings(deadline=None, max_examples=80)
@given(orders(), st.data())
def test_arrays_and_inverses_are_the_order(made, data):
    order, multiple = made
    length = min(3 * order.size + 5, 150) // multiple * multiple
    expected = [fields(order.place(position)) for position in range(length)]
    first, end = sorted(data.draw(st.integers(0, length // multiple)) * multiple for _ in "ab")
    found = []
    for block in order.places(first, end):
        assert block.position == first + len(found)
        found += zip(*(column.tolist() for column in (block.epoch, block.shard, block.row, block.group)), strict=True)
    assert found == expected[first:end]
    drawn_at = {}
    for position in range(first, end):
        drawn_at.setdefault(expected[position][1:], []).append(position)
    for shard, row, group in {place[1:] for place in expected}:
        positions = order.positions_of(group, shard, row, first, end).tolist()
        assert positions == drawn_at.get((shard, row, group), [])
    assert drawn_rows(order.drawn(first, end)) == Counter((group, shard) for _, shard, _, group in found)
    again = pickle.loads(pickle.dumps(order))
    assert [fields(again.substitute(position, 1)) for position in range(9)] == [
        fields(order.substitute(position, 1)) for position in range(9)
    ]


def drawn_rows(drawn):
    """How many draws of each (group, shard); no draw may come twice."""
    draws = [
        (group, shard, draw)
        for (group, shard), first in np.ndenumerate(drawn.first_GS)
        for draw in range(first, drawn.end_GS[group, shard])
    ]
    draws += [tuple(draw) for draw in drawn.single.T.tolist()]
    assert len(set(draws)) == len(draws) == len(drawn)
    return Counter((group, shard) for group, shard, _ in draws)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000, 4097])
def test_a_permutation_as_an_array_and_its_inverse(size):
    images = all_permuted(size, 1, "rows").tolist()
    assert images == [permuted(index, size, 1, "rows") for index in range(size)]
    assert [unpermuted(image, size, 1, "rows") for image in images] == list(range(size))


def test_every_batch_takes_equally_many_rows_of_each_lane_and_a_lane_has_shards_of_its_own():
    counts = [20 + number % 3 for number in range(32)]

    def make(shards, name):
        return WindowedOrder([counts[shard] for shard in shards], 3, name, 2, True)

    order = LanedOrder(32, 4, ITEMS, 3, "image", make)
    shards = [set() for _ in range(4)]
    for batch in range(200):
        for slot in range(ITEMS):
            shards[slot // 2].add(order.place(batch * ITEMS + slot).shard)
    assert sorted(map(len, shards)) == [8] * 4
    assert set.union(*shards) == set(range(32))
    assert [set(order.shards_of(lane).tolist()) for lane in order.lanes_of(0, ITEMS)] == shards
    halves = [set(some.tolist()) for some in deal(32, 2, 3)]
    assert halves == [shards[0] | shards[1], shards[2] | shards[3]]


def test_a_row_less_moves_rows_of_its_lane_alone():
    counts = [20] * 32

    def places(counts):
        def make(shards, name):
            return WindowedOrder([counts[shard] for shard in shards], 3, name, 2, True)

        order = LanedOrder(32, 4, ITEMS, 3, "image", make)
        return np.array([fields(order.place(position)) for position in range(40 * ITEMS)]).reshape(40, 4, -1)

    moved = (places(counts) != places([19, *counts[1:]])).any(axis=(0, 2))
    assert moved.sum() == 1


def test_lanes_divide_a_batch_and_have_a_window_of_shards_each():
    assert num_lanes(64, 624, 16, [5] * 100_000, 1) == 16
    assert num_lanes(64, 3072, 16, [5] * 100_000, 1) == 64
    assert num_lanes(64, 3072, 16, [5] * 512, 1) == 32
    assert num_lanes(64, 3072, 16, [5] * 31, 1) == 1
    assert num_lanes(64, 63, 1, [5] * 1000, 1) == 1
    assert num_lanes(2, 8, 1, [5, *[0] * 99], 1) == 1  # one lane would have no row
