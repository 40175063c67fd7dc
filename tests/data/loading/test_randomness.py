"""Draws and orders: equal labels give equal numbers, orders visit every row once, and nothing depends on history."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.loading.orders.permutation import permuted
from x2vlm.data.loading.orders.windowed import WindowedOrder
from x2vlm.data.randomness import Draws, derive_seed
from x2vlm.errors import ConfigError


def test_equal_labels_give_equal_draws_and_other_labels_do_not():
    first, again, other = (Draws(1, 2, "key", purpose) for purpose in ("mask", "mask", "crop"))
    numbers = [first.word() for _ in range(20)]
    assert numbers == [again.word() for _ in range(20)]
    assert not set(numbers) & {other.word() for _ in range(20)}


def test_labels_cannot_run_into_each_other():
    assert derive_seed("a", "bc") != derive_seed("ab", "c") != derive_seed("a", "b", "c")
    assert derive_seed(1, "1") != derive_seed("1", 1)


def test_the_stream_is_pinned():
    """Changing how draws are made changes what every checkpoint was trained on: that must not happen unseen."""
    draws = Draws(42, 0, "sample", "mask")
    assert [draws.integer(0, 999) for _ in range(5)] == PINNED_INTEGERS
    assert [permuted(index, 10, 42, "image", 0) for index in range(10)] == PINNED_ORDER


PINNED_INTEGERS = [342, 876, 561, 152, 756]
PINNED_ORDER = [8, 3, 5, 9, 1, 2, 7, 6, 4, 0]


def test_integers_cover_both_ends_evenly():
    draws = Draws("even")
    counts = Counter(draws.integer(3, 7) for _ in range(5000))
    assert sorted(counts) == [3, 4, 5, 6, 7]
    assert max(abs(count - 1000) for count in counts.values()) < 150  # 5 deviations


def test_no_whole_number_between_is_an_error():
    with pytest.raises(ValueError, match="no whole number"):
        Draws("x").integer(4, 3)


def test_chance_is_exact_at_its_ends():
    draws = Draws("ends")
    assert not any(draws.chance(0.0) for _ in range(1000))
    assert all(draws.chance(1.0) for _ in range(1000))


@given(st.lists(st.integers(), max_size=20), st.integers())
def test_shuffling_keeps_what_is_there(items, label):
    assert sorted(Draws(label).shuffled(items)) == sorted(items)


@settings(deadline=None)
@given(st.integers(1, 400), st.integers())
def test_permuted_is_a_permutation(size, label):
    assert sorted(permuted(index, size, label) for index in range(size)) == list(range(size))


def test_permuted_looks_random():
    """Neighbours end up apart: about as far as random pairs, a third of the size."""
    size = 1000
    places = [permuted(index, size, "spread") for index in range(size)]
    mean = sum(abs(places[index] - places[index + 1]) for index in range(size - 1)) / (size - 1)
    assert abs(mean - size / 3) < 30  # deviation of the mean is 7.5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_visits_every_row_once(counts, window, epoch):
    if not sum(counts):
        return
    order = WindowedOrder(counts, seed=3, name="image", window=window)
    places = [order.place(epoch * order.size + index) for index in range(order.size)]
    expected = sorted((shard, row) for shard, count in enumerate(counts) for row in range(count))
    assert sorted((place.shard, place.row) for place in places) == expected
    assert {place.epoch for place in places} == {epoch}


def test_a_place_does_not_depend_on_what_was_asked_before():
    counts = [5, 0, 7, 3]
    fresh = [WindowedOrder(counts, 1, "image", 2).place(position) for position in range(60)]
    order = WindowedOrder(counts, 1, "image", 2)
    backwards = [order.place(position) for position in reversed(range(60))]
    assert fresh == backwards[::-1]
    first, second = fresh[: order.size], fresh[order.size : 2 * order.size]
    assert [(place.shard, place.row) for place in first] != [(place.shard, place.row) for place in second]


def test_a_window_reads_its_own_shards_only():
    order = WindowedOrder([4] * 6, seed=5, name="image", window=2)
    shards = [order.place(position).shard for position in range(24)]
    assert [len(set(shards[start : start + 8])) for start in (0, 8, 16)] == [2, 2, 2]


def test_a_stream_without_rows_is_refused():
    with pytest.raises(ConfigError, match="no shard holds a row"):
        WindowedOrder([0, 0], 1, "video")
