"""Pairs of near hashes: exactly those that comparing everything with everything finds."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from x2vlm.data.duplicates.hamming import Table, cross_pairs, near_pairs, tables

Pairs = list[tuple[int, int, int]]


def naive_pairs(left: NDArray[np.uint64], right: NDArray[np.uint64], radius: int) -> Pairs:
    distances = np.bitwise_count(left[:, None] ^ right[None, :])
    return [(int(i), int(j), int(distances[i, j])) for i, j in zip(*np.nonzero(distances <= radius), strict=True)]


def as_list(pairs: Iterator[NDArray[np.int64]]) -> Pairs:
    return [tuple(int(value) for value in row) for row in zip(*pairs, strict=True)]  # type: ignore[misc]


def crowded(seed: int, families: int, members: int, flips: int) -> NDArray[np.uint64]:
    """Distinct sorted hashes in families that differ in few bits, so that every distance from 1 on occurs."""
    draws = np.random.default_rng(seed)
    hashes = [draws.integers(0, 2**64, families, dtype=np.uint64)]
    for _ in range(members):
        child = hashes[0].copy()
        for _ in range(int(draws.integers(1, flips + 1))):
            child ^= np.uint64(1) << draws.integers(0, 64, families).astype(np.uint64)
        hashes.append(child)
    return np.unique(np.concatenate(hashes))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.sampled_from((0, 1, 3, 6, 8)), size=st.sampled_from((0, 1, 2, 7, 60)))
def test_finds_what_comparing_everything_finds(seed: int, radius: int, size: int) -> None:
    hashes = crowded(seed, size, 6, 10)
    expected = [pair for pair in naive_pairs(hashes, hashes, radius) if pair[0] < pair[1]]
    assert as_list(near_pairs(hashes, radius)) == expected
    few = hashes[:: max(1, len(hashes) // 40)]
    assert as_list(cross_pairs(hashes, few, radius)) == naive_pairs(hashes, few, radius)
    assert as_list(cross_pairs(few, hashes, radius)) == naive_pairs(few, hashes, radius)


@pytest.mark.parametrize("num_hashes", [10, 10**5, 10**6, 10**7, 10**9])
def test_every_choice_of_tables_covers_every_pattern_of_difference_once(num_hashes: int) -> None:
    """Table sets for large N are too slow to search small ones with, so the pigeonhole itself is tested.

    Whatever bits differ, exactly one table claims the pair: it agrees on all chosen blocks and on no earlier one.
    """
    draws = np.random.default_rng(3)
    made = tables(6, num_hashes)
    assert all(table.num_bits + sum(width for _, width in table.others) == 64 for table in made)
    for _ in range(300):
        bits = draws.choice(64, size=int(draws.integers(0, 7)), replace=False)
        claimed = [table for table in made if _agrees(bits, table.chosen) and all(_hit(bits, b) for b in table.earlier)]
        assert len(claimed) == 1


def _hit(bits: NDArray[np.int64], block: tuple[int, int]) -> bool:
    return bool(((bits >= block[0]) & (bits < sum(block))).any())


def _agrees(bits: NDArray[np.int64], blocks: tuple[tuple[int, int], ...]) -> bool:
    return not any(_hit(bits, block) for block in blocks)


def test_tables_grow_with_the_number_of_hashes() -> None:
    """A table's front must be so long that a hash meets few others by chance: that makes the search linear."""
    sizes = {number: tables(6, number) for number in (10**4, 10**6, 10**7, 10**8)}
    assert [len(made) for made in sizes.values()] == [28, 28, 84, 210]
    for number, made in sizes.items():
        assert all(number / 2**table.num_bits < 40 for table in made), number


def test_a_pair_that_every_table_sees_is_found_once() -> None:
    hashes = np.array([0, 1], dtype=np.uint64)
    assert as_list(near_pairs(hashes, 6)) == [(0, 1, 1)]
    assert all(isinstance(table, Table) for table in tables(6, 2))


def test_the_edge_of_the_radius() -> None:
    hashes = np.array([0, 0b111111, 0b1111111 << 40], dtype=np.uint64)
    assert as_list(near_pairs(hashes, 6)) == [(0, 1, 6)]
    assert as_list(near_pairs(hashes, 7)) == [(0, 1, 6), (0, 2, 7)]


def test_refuses_what_it_would_search_wrongly() -> None:
    with pytest.raises(ValueError, match="sorted and distinct"):
        near_pairs(np.array([2, 1], dtype=np.uint64), 6)
    with pytest.raises(ValueError, match="sorted and distinct"):
        cross_pairs(np.array([1, 1], dtype=np.uint64), np.array([1], dtype=np.uint64), 6)
    with pytest.raises(ValueError, match="uint64"):
        near_pairs(np.array([1, 2]), 6)
    with pytest.raises(ValueError, match="radius 17"):
        near_pairs(np.array([1, 2], dtype=np.uint64), 17)
