"""The order of sources with weights and of images with many rows: what every pass draws, and how it is spread."""

import pickle
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.loading.orders.weighted import Group, WeightedOrder
from x2vlm.errors import ConfigError


class Alike:
    """Images with `rows` rows each, one after the other; a shard may end within one."""

    def __init__(self, groups: list[Group], rows: int) -> None:
        self.groups, self.rows = groups, rows

    def __call__(self, group: int, shard: int) -> np.ndarray:
        return np.arange(self.groups[group].counts[shard]) // self.rows


def order_of(
    groups: list[tuple[list[int], str]], rows: int = 1, window: int = 3, seed: int = 3, name: str = "image"
) -> WeightedOrder:
    made = [Group(tuple(counts), Fraction(weight)) for counts, weight in groups]
    return WeightedOrder(made, seed, name, window, Alike(made, rows))


counts_of_shards = st.lists(st.integers(0, 12), min_size=3, max_size=3)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(counts_of_shards, st.sampled_from(["1", "2", "1/2", "0.15", "2.5", "3/7"])), min_size=1),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_a_source_is_drawn_as_often_as_its_weight_says_and_no_row_before_its_turn(groups, rows, window):
    if sum(Fraction(weight) * sum(counts) for counts, weight in groups) < 2:
        return
    order = order_of(groups, rows, window)
    passes, drawn, epochs = 6, Counter(), {}
    total = int(order._draws_before(passes).sum())
    for position in range(total):
        place = order.place(position)
        row = place.group, place.shard, place.row
        drawn[row] += 1
        epochs.setdefault(row, []).append(place.epoch)
    # `epoch` numbers the draws of a row, so that each is cut and masked in its own way.
    assert all(sorted(found) == list(range(len(found))) for found in epochs.values())
    for number, (counts, weight) in enumerate(groups):
        of_group = sum(times for (group, *_), times in drawn.items() if group == number)
        # Off by less than a row for every shard, however many passes.
        assert abs(of_group - passes * Fraction(weight) * sum(counts)) < len(counts)
        for shard, count in enumerate(counts):
            times = [drawn[number, shard, row] for row in range(count)]
            assert max(times, default=0) - min(times, default=0) <= 1


def test_a_pass_of_whole_weights_has_every_row_exactly_that_often():
    order = order_of([([5, 0, 7, 4], "1"), ([3, 2, 0, 1], "3")])
    assert order.size == 16 + 18
    for epoch in range(3):
        places = [order.place(epoch * order.size + index) for index in range(order.size)]
        times = Counter((place.group, place.shard, place.row) for place in places)
        assert {group: {n for (g, *_), n in times.items() if g == group} for group in (0, 1)} == {0: {1}, 1: {3}}
        assert len(times) == 16 + 6
        assert {place.epoch for place in places if place.group == 1} == {3 * epoch, 3 * epoch + 1, 3 * epoch + 2}


def test_two_passes_of_half_a_source_are_the_source():
    order = order_of([([40, 40, 40], "1/2")])
    first, second = ({(p.shard, p.row) for p in map(order.place, range(n * 60, n * 60 + 60))} for n in (0, 1))
    assert len(first) == len(second) == 60
    assert not first & second
    third = {(place.shard, place.row) for place in map(order.place, range(120, 180))}
    assert third not in (first, second)


def test_a_weight_that_gives_most_shards_no_row_still_draws_its_share_in_every_pass():
    """200 shards of 3 rows at 0.05: 30 rows a pass, from changing shards, every row once in 20 passes."""
    order = order_of([([10] * 200, "1"), ([3] * 200, "0.05")], window=16)
    assert order.size == 2030
    drawn = Counter()
    for epoch in range(20):
        places = [order.place(epoch * 2030 + index) for index in range(2030)]
        rare = Counter((place.shard, place.row) for place in places if place.group == 1)
        assert abs(sum(rare.values()) - 30) <= 10
        drawn += rare
    assert sorted(set(drawn.values())) == [1]
    assert len(drawn) == 600


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(4, 40), st.integers(1, 4), st.integers(0, 5))
def test_rows_of_one_image_stay_apart(rows, images_per_shard, shards, seed):
    """Two rows of an image are half of their mean distance apart, but for what the density of others varies."""
    order = order_of([([rows * images_per_shard] * shards, "1")], rows, window=shards, seed=seed)
    size = order.size
    last, gaps = {}, []
    for position in range(size):
        place = order.place(position)
        image = place.shard, place.row // rows
        if image in last:
            gaps.append(position - last[image])
        last[image] = position
    expected = size / rows / 2
    assert min(gaps) >= expected - 4 * expected**0.5 - 1


def test_no_batch_is_crowded_by_one_image_where_a_shuffle_would_crowd_it():
    rows, images, batch = 8, 400, 128
    order = order_of([([rows * images // 4] * 4, "1")], rows, window=4)
    most = []
    for start in range(0, order.size, batch):
        places = [order.place(position) for position in range(start, start + batch)]
        most.append(max(Counter((place.shard, place.row // rows) for place in places).values()))
    shuffled = np.random.default_rng(0).permutation(np.repeat(np.arange(images), rows)).reshape(-1, batch)
    assert max(most) == 1
    assert np.mean([np.bincount(one).max() for one in shuffled]) > 2


def test_images_do_not_meet_the_same_partners_again_and_again():
    """Of the images beside an image in one batch, few are beside its next row as well."""
    rows, images, batch = 5, 1000, 100
    order = order_of([([rows * images], "1")], rows, window=1)
    batches: dict[int, list[set[int]]] = {}
    for start in range(0, order.size, batch):
        members = {order.place(position).row // rows for position in range(start, start + batch)}
        for image in members:
            batches.setdefault(image, []).append(members - {image})
    shared = [len(a & b) / len(a) for found in batches.values() for a, b in pairwise(found)]
    assert np.mean(shared) < 0.35  # by chance alone 0.1; all of them if rows were only turned


def test_a_place_depends_on_nothing_but_seed_and_position():
    groups = [([9, 0, 14, 6], "1"), ([8, 5, 0, 4], "0.3")]
    fresh = [order_of(groups, 3, 2).place(position) for position in range(150)]
    order = order_of(groups, 3, 2)
    assert [order.place(position) for position in reversed(range(150))] == fresh[::-1]
    assert [pickle.loads(pickle.dumps(order)).place(position) for position in range(150)] == fresh
    assert [order_of(groups, 3, 2, seed=4).place(position) for position in range(150)] != fresh
    assert [order_of(groups, 3, 2, name="other").place(position) for position in range(150)] != fresh


def test_a_window_reads_its_own_shards_only_and_substitutes_come_from_the_same_pass():
    order = order_of([([6] * 6, "1"), ([4] * 6, "2")], rows=2, window=2)
    shards = [order.place(position).shard for position in range(order.size)]
    assert [len(set(shards[start : start + 28])) for start in (0, 28, 56)] == [2, 2, 2]
    for position in (3, order.size + 5, 2 * order.size - 1):
        places = {order.substitute(position, attempt) for attempt in range(1, 40)}
        assert len(places) > 15
        epoch = position // order.size
        assert {p.epoch for p in places if p.group == 0} == {epoch}
        assert {p.epoch // 2 for p in places if p.group == 1} == {epoch}
    assert order.substitute(7, 1) == order_of([([6] * 6, "1"), ([4] * 6, "2")], rows=2, window=2).substitute(7, 1)


def test_a_stream_without_rows_is_refused():
    with pytest.raises(ConfigError, match="stream image: no shard holds a row"):
        order_of([([0, 0], "1"), ([0, 0], "2")])
