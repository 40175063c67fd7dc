"""All pairs of 64-bit hashes within a small Hamming distance: exact, by the pigeonhole principle, on sorted arrays.

Cut 64 bits into B blocks. Two hashes that differ in at most R bits agree in at least B - R blocks, so in some choice of
A = B - R of them. One table a choice: hashes are sorted with the chosen blocks in front, and only those with equal
fronts are compared (Manku et al., Detecting near-duplicates for web crawling, WWW 2007). A pair belongs to the first
table that finds it, so no pair is in two tables and tables can be searched by different workers. Tables with the same
first block agree on it, so workers can also share the hashes by the value of that block (`searches`, `range_of`).

A table costs a sort and N^2 / 2^(64 A / B) comparisons of random hashes; B grows with N, so that a row is
compared with few others. Memory is a small multiple of the hashes, whatever the number of tables. One million random
hashes took 6 s of CPU, ten million 126 s (tests/benchmarks/leaks.py); faiss 1.15.1 (IndexBinaryMultiHash, exact
settings) 168 s for one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BITS = 64
MAX_TABLES = 210  # more cost more in sorting than they save in comparisons, up to a billion hashes
CHUNK = 1 << 20  # hashes looked up at a time
LONG_RUN = 4096  # hashes with one front that are compared with each other; more are cut by further blocks first

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]


class Pairs(NamedTuple):
    """Pairs of indices, and in how many bits their hashes differ."""

    left: Indices
    right: Indices
    distance: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.left)


Block = tuple[int, int]  # lowest bit, number of bits


@dataclass(frozen=True)
class Table:
    """A choice of blocks on which hashes must agree; `earlier` are the blocks before the last chosen, not chosen."""

    chosen: tuple[Block, ...]
    others: tuple[Block, ...]
    earlier: tuple[Block, ...]
    first: Block  # of the chosen ones that with the lowest bits
    bits: int = BITS  # of a hash

    @property
    def num_bits(self) -> int:
        """Of the front."""
        return sum(width for _, width in self.chosen)


def tables(radius: int, num_hashes: int, bits: int = BITS) -> list[Table]:
    """The tables that together find every pair within `radius` of `bits` bits; their number is chosen for `num_hashes`.

    ValueError unless 0 <= radius <= 16.
    """
    if not 0 <= radius <= 16:
        raise ValueError(f"radius {radius}: this search is for 0 to 16 bits; compare directly beyond")
    # Bits in front: a hash is then compared with at most sixteen others by chance. 4 million: 28 tables 64 s, 84 tables
    # 42 s, 210 tables 62 s of CPU.
    wanted = math.log2(max(num_hashes, 2)) - 4
    agree = 1
    while agree * bits // (agree + radius) < wanted and math.comb(agree + 1 + radius, radius) <= MAX_TABLES:
        if agree + 1 + radius > bits:  # a block has a bit
            break
        agree += 1
    edges = [bits * number // (agree + radius) for number in range(agree + radius + 1)]
    blocks = [(low, high - low) for low, high in pairwise(edges)]
    return [_table(blocks, choice, bits) for choice in combinations(range(len(blocks)), agree)]


def searches(radius: int, num_hashes: int) -> dict[Block, list[Table]]:
    """The tables by their first block, in the order of `tables`.

    All hashes that a table compares agree on its first block. So hashes can be shared out by the value of that block,
    and be searched with the tables of that block in each share alone: one copy of the hashes a block, not one a table.
    """
    found: dict[Block, list[Table]] = {}
    for table in tables(radius, num_hashes):
        found.setdefault(table.first, []).append(table)
    return found


def range_of(hashes: Hashes, block: Block, num_ranges: int) -> NDArray[np.int64]:
    """Which of `num_ranges` shares each hash is in; hashes that agree on `block` are in one share."""
    low, width = block
    value = (hashes >> np.uint64(low)) & _mask(width)
    spread = value * np.uint64(0x9E3779B97F4A7C15)  # neighbouring values are alike often: not one share for them
    return ((spread >> np.uint64(32)) % np.uint64(num_ranges)).astype(np.int64)


def _table(blocks: list[Block], choice: tuple[int, ...], bits: int) -> Table:
    others = [number for number in range(len(blocks)) if number not in choice]
    return Table(
        chosen=_runs(blocks, list(choice)),
        others=_runs(blocks, others),
        earlier=tuple(blocks[number] for number in others if number < choice[-1]),
        first=blocks[choice[0]],
        bits=bits,
    )


def _runs(blocks: list[Block], numbers: list[int]) -> tuple[Block, ...]:
    """The blocks, adjacent ones joined: each saves a shift and a mask."""
    runs: list[Block] = []
    for low, width in (blocks[number] for number in numbers):
        if runs and sum(runs[-1]) == low:
            runs[-1] = (runs[-1][0], runs[-1][1] + width)
        else:
            runs.append((low, width))
    return tuple(runs)


def near_pairs(hashes: Hashes, radius: int) -> Pairs:
    """Every pair of different hashes within `radius` bits, left index < right index, sorted.

    `hashes` must be sorted and distinct (ValueError): group rows with equal hashes first.
    """
    _check_distinct(hashes)
    found = [_self_join(hashes, table, radius) for table in tables(radius, len(hashes))]
    return _sorted_pairs(found)


def cross_pairs(queries: Hashes, hashes: Hashes, radius: int) -> Pairs:
    """Every pair of a query (left) and a hash (right) within `radius` bits, equal ones included, sorted.

    Both must be sorted and distinct (ValueError). The smaller side should be `hashes`: tables are made of it, queries
    stream through in chunks.
    """
    _check_distinct(queries)
    _check_distinct(hashes)
    found = []
    for table in tables(radius, len(hashes)):
        moved = np.sort(_move(hashes, table))
        for start in range(0, len(queries), CHUNK):
            for pairs in _look_up(queries[start : start + CHUNK], moved, hashes, table, radius):
                found.append(Pairs(pairs.left + start, pairs.right, pairs.distance))
    return _sorted_pairs(found)


def _check_distinct(hashes: Hashes) -> None:
    if hashes.dtype != np.uint64:
        raise ValueError(f"hashes are {hashes.dtype}, not uint64")
    if len(hashes) and not bool((hashes[1:] > hashes[:-1]).all()):
        raise ValueError("hashes must be sorted and distinct; use numpy.unique and keep its inverse")


def _sorted_pairs(found: list[Pairs]) -> Pairs:
    if not found:
        return Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    left, right, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((right, left))
    return Pairs(left[order], right[order], distance[order])


def _self_join(hashes: Hashes, table: Table, radius: int) -> Pairs:
    """The pairs of `table`, which no other table finds."""
    found = list(table_pairs(hashes, table, radius))
    if not found:
        return _sorted_pairs([])
    left, right, distance = (np.concatenate(column) for column in zip(*found, strict=True))
    return _indexed(hashes, left, right, distance)


def table_pairs(hashes: Hashes, table: Table, radius: int) -> Iterator[tuple[Hashes, Hashes, NDArray[np.uint8]]]:
    """The pairs of `table`, which no other table finds, as hashes (the smaller, the larger) and bits; in pieces.

    A piece has at most as many pairs as there are hashes. `hashes` must be sorted and distinct.
    """
    moved = np.sort(_move(hashes, table))
    for left, right, distance in _near_in_runs(moved, table, radius):
        left, right = _move_back(left, table), _move_back(right, table)
        own = _is_first(left ^ right, table)
        yield np.minimum(left, right)[own], np.maximum(left, right)[own], distance[own]


def _near_in_runs(moved: Hashes, table: Table, radius: int) -> Iterator[tuple[Hashes, Hashes, NDArray[np.uint8]]]:
    """Near pairs of sorted hashes with one front."""
    rest = table.bits - table.num_bits
    front = moved >> np.uint64(rest)
    same = front[1:] == front[:-1]
    if rest > radius + 1:
        starts = np.flatnonzero(np.concatenate([[True], ~same])) if len(moved) else np.empty(0, np.int64)
        ends = np.append(starts[1:], len(moved))
        # Real hashes clump. What agrees on the front is cut by blocks of the other bits, as if it were all there is.
        for start, end in zip(starts[ends - starts > LONG_RUN], ends[ends - starts > LONG_RUN], strict=True):
            same[start : end - 1] = False
            head, inner = moved[start] & ~_mask(rest), moved[start:end] & _mask(rest)
            for one in tables(radius, len(inner), rest):
                for left, right, distance in table_pairs(inner, one, radius):
                    yield left | head, right | head, distance
    # Those that agree with the entry d places further on; `moved` is sorted, so agreement at d + 1 implies it at d.
    at, step = np.flatnonzero(same), 1
    while len(at):
        left, right = moved[at], moved[at + step]
        distance = np.bitwise_count(left ^ right)
        near = distance <= radius
        if near.any():
            yield left[near], right[near], distance[near]
        step += 1
        at = at[at + step < len(moved)]
        at = at[front[at + step] == front[at]]


def _look_up(queries: Hashes, moved: Hashes, hashes: Hashes, table: Table, radius: int) -> Iterator[Pairs]:
    """The pairs of a chunk of queries with the hashes of one table, those `moved` and sorted."""
    shift = np.uint64(BITS - table.num_bits)
    fronts, own = moved >> shift, _move(queries, table)
    first, last = (np.searchsorted(fronts, own >> shift, side) for side in ("left", "right"))
    at = np.flatnonzero(last > first)
    step = 0
    while len(at):
        distance = np.bitwise_count(own[at] ^ moved[first[at] + step])
        near = distance <= radius
        if near.any():
            query, other = queries[at[near]], _move_back(moved[first[at[near]] + step], table)
            mine = _is_first(query ^ other, table)
            right = np.searchsorted(hashes, other[mine])
            yield Pairs(at[near][mine].astype(np.int64), right.astype(np.int64), distance[near][mine])
        step += 1
        at = at[first[at] + step < last[at]]


def _indexed(hashes: Hashes, left: Hashes, right: Hashes, distance: NDArray[np.uint8]) -> Pairs:
    return Pairs(np.searchsorted(hashes, left), np.searchsorted(hashes, right), distance)


def _is_first(difference: Hashes, table: Table) -> NDArray[np.bool_]:
    """True where no earlier table finds the pair: it disagrees in every block before the last chosen one."""
    first = np.ones(len(difference), dtype=bool)
    for low, width in table.earlier:
        first &= (difference >> np.uint64(low)) & _mask(width) != 0
    return first


def _move(hashes: Hashes, table: Table) -> Hashes:
    """The hashes with the chosen blocks in front; invertible."""
    moved, high = np.zeros_like(hashes), table.bits
    for low, width in (*table.chosen, *table.others):
        high -= width
        moved |= ((hashes >> np.uint64(low)) & _mask(width)) << np.uint64(high)
    return moved


def _move_back(moved: Hashes, table: Table) -> Hashes:
    hashes, high = np.zeros_like(moved), table.bits
    for low, width in (*table.chosen, *table.others):
        high -= width
        hashes |= ((moved >> np.uint64(high)) & _mask(width)) << np.uint64(low)
    return hashes


def _mask(width: int) -> np.uint64:
    return np.uint64((1 << width) - 1)
