"""What all orders share: passes made of windows of shards, found from a position, and positions found from a row.

The rows of a group of sources in a shard are drawn over and over. Each draw has a number from the first one of the
training on; with `count` rows, draw n is row n % count (or its place in a shuffled list of them) for the (n // count)th
time. A pass takes consecutive draws of every shard, so what a range of positions has drawn are intervals of draws, and
single draws in the two windows that it cuts.

G groups of sources that are drawn equally often, S shards, R runs of a window, N rows of a window, K draws.
"""

import bisect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a row lies: number of the shard, and rank of the row among the shard's rows of this stream.

    `epoch` says how often the row was drawn before; without weights that is the number of the pass. With weights
    `group` numbers those sources of the stream whose rows are ranked together.
    """

    epoch: int
    shard: int
    row: int
    group: int = 0


@dataclass(frozen=True)
class Places:
    """Consecutive places of an order, from `position` on: (K,) arrays of the fields of `Place`."""

    position: int
    epoch: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Drawn:
    """What a range of positions has drawn: of each group and shard an interval of draws, and single ones.

    `first_GS` and `end_GS` are equal where the interval is empty. `single` has (group, shard, draw) in three rows (3,
    K): the rows of windows that are not drawn to the end, in the order of their positions.
    """

    first_GS: np.ndarray
    end_GS: np.ndarray
    single: np.ndarray

    def __len__(self) -> int:
        return int((self.end_GS - self.first_GS).sum()) + int(self.single.shape[1])


class Order(Protocol):
    """Which row comes at which position, counted from 0 over all passes."""

    @property
    def size(self) -> int:
        """Rows of a pass: of passes of different length (weights that are not whole), the mean."""

    def place(self, position: int) -> Place:
        """Which row comes at `position`."""

    def substitute(self, position: int, attempt: int) -> Place:
        """A row of the same pass that replaces the unusable one at `position`."""

    def places(self, first: int, end: int) -> Iterator[Places]:
        """The places at positions first..end-1 in order, as arrays."""

    def positions_of(self, group: int, shard: int, row: int, first: int, end: int) -> np.ndarray:
        """Ascending positions in first..end-1 at which that row is drawn."""

    def drawn(self, first: int, end: int) -> Drawn:
        """What positions first..end-1 draw; without a look at passes in between."""


@dataclass(frozen=True)
class Layout:
    """One pass: which shards follow each other, and which draws of them it has. `start` is its first position."""

    epoch: int
    start: int
    shards_S: np.ndarray  # in the order in which they are read
    first_GS: np.ndarray  # by number of the shard
    length_GS: np.ndarray
    window: int

    @cached_property
    def ends(self) -> list[int]:
        """Where each window ends, from `start`."""
        sums_S = np.cumsum(self.length_GS.sum(axis=0)[self.shards_S])
        last = np.append(np.arange(self.window - 1, len(sums_S) - 1, self.window), len(sums_S) - 1)
        ends: list[int] = sums_S[last].tolist()
        return ends

    @property
    def end(self) -> int:
        """The first position after the pass."""
        return self.start + self.ends[-1]

    def window_at(self, position: int) -> tuple[int, int]:
        """Number of the window in which a position of this pass lies, and the window's first position."""
        number = bisect.bisect_right(self.ends, position - self.start)
        return number, self.begin(number)

    def begin(self, number: int) -> int:
        """The first position of a window; of the one after the last, the end of the pass."""
        return self.start + (self.ends[number - 1] if number else 0)

    def window_of(self, shard: int) -> int:
        """Number of the window that has a shard."""
        return int(np.flatnonzero(self.shards_S == shard)[0]) // self.window

    def runs(self, number: int) -> "Runs":
        """The draws of a window, by shard and then by group."""
        shards = self.shards_S[number * self.window : (number + 1) * self.window]
        shape = (len(shards), self.length_GS.shape[0])
        groups = np.broadcast_to(np.arange(shape[1]), shape).ravel()
        owners = np.repeat(shards, shape[1])
        lengths = self.length_GS[groups, owners]
        kept = lengths > 0
        groups, owners, lengths = groups[kept], owners[kept], lengths[kept]
        return Runs(groups, owners, self.first_GS[groups, owners], lengths)


@dataclass(frozen=True)
class Runs:
    """(R,) consecutive draws of one group in one shard each; draws of a window are ranked in this order."""

    groups: np.ndarray
    shards: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray

    @cached_property
    def ends(self) -> np.ndarray:
        """The rank at which each run ends."""
        return np.cumsum(self.lengths)

    @cached_property
    def _listed(self) -> list[list[int]]:
        """Ends, draws before rank 0 of each run, groups and shards: lists, whose single values are found faster."""
        befores = self.firsts + self.lengths - self.ends
        return [column.tolist() for column in (self.ends, befores, self.groups, self.shards)]

    def locate(self, rank: int) -> tuple[int, int, int]:
        """Group, shard and draw of a rank."""
        ends, befores, groups, shards = self._listed
        run = bisect.bisect_right(ends, rank)
        return groups[run], shards[run], befores[run] + rank

    def located(self, ranks: np.ndarray) -> np.ndarray:
        """(3, K) group, shard and draw of each rank."""
        runs = np.searchsorted(self.ends, ranks, side="right")
        draws = self.firsts[runs] + ranks - (self.ends - self.lengths)[runs]
        return np.stack([self.groups[runs], self.shards[runs], draws])

    def rank_of(self, group: int, shard: int) -> int:
        """The rank of the first draw of that group in that shard."""
        run = int(np.flatnonzero((self.groups == group) & (self.shards == shard))[0])
        return int(self.ends[run] - self.lengths[run])


class PassOrder(Order, ABC):
    """`Order` of one list of shards whose windows are read one after the other."""

    @abstractmethod
    def layout_at(self, position: int) -> Layout:
        """The pass in which a position lies; the last one asked for is kept."""

    @abstractmethod
    def ranks(self, layout: Layout, number: int) -> np.ndarray:
        """(N,) the ranks of a window in the order in which they are read."""

    @abstractmethod
    def rank_positions(self, layout: Layout, number: int, ranks: np.ndarray) -> np.ndarray:
        """Where ranks of a window lie in `ranks`."""

    @abstractmethod
    def rows(self, group: int, shard: int, draws: np.ndarray) -> np.ndarray:
        """The rows that draws of a group in a shard take."""

    @abstractmethod
    def draws_of(self, group: int, shard: int, row: int, first: int, length: int) -> np.ndarray:
        """Which of the draws first..first+length-1 of a group in a shard take that row."""

    @abstractmethod
    def count(self, group: int, shard: int) -> int:
        """Rows of a group in a shard."""

    def places(self, first: int, end: int) -> Iterator[Places]:
        """As `Order.places`: a window or less at a time."""
        for position, (groups, shards, draws) in self._draws(first, end):
            epochs, rows = np.empty_like(draws), np.empty_like(draws)
            pairs, own = np.unique(np.stack([groups, shards]), axis=1, return_inverse=True)
            for number, (group, shard) in enumerate(pairs.T.tolist()):
                mine = own == number
                epochs[mine] = draws[mine] // self.count(group, shard)
                rows[mine] = self.rows(group, shard, draws[mine])
            yield Places(position, epochs, shards, rows, groups)

    def positions_of(self, group: int, shard: int, row: int, first: int, end: int) -> np.ndarray:
        """As `Order.positions_of`. Of each pass it lays out one window."""
        found, position = [np.zeros(0, dtype=np.int64)], first
        while position < end:
            layout = self.layout_at(position)
            position = layout.end
            begin, length = int(layout.first_GS[group, shard]), int(layout.length_GS[group, shard])
            if not length or not len(draws := self.draws_of(group, shard, row, begin, length)):
                continue
            number = layout.window_of(shard)
            start = layout.begin(number)
            if start >= end or layout.begin(number + 1) <= first:
                continue
            ranks = layout.runs(number).rank_of(group, shard) + draws - begin
            found.append(np.sort(start + self.rank_positions(layout, number, ranks)))
        positions = np.concatenate(found)
        return positions[(positions >= first) & (positions < end)]

    def drawn(self, first: int, end: int) -> Drawn:
        """As `Order.drawn`: lays out the first and the last pass, and of these one window each."""
        layout = self.layout_at(first)
        if first >= end:
            return Drawn(layout.first_GS, layout.first_GS, np.zeros((3, 0), dtype=np.int64))
        last = self.layout_at(end - 1)
        singles, window = [], layout.window_at(first)[0]
        # Windows of the first pass that are drawn from their first row on, and of the last one up to their last row.
        whole_from = window + (layout.begin(window) < first)
        whole_to = last.window_at(end - 1)[0]
        whole_to += last.begin(whole_to + 1) == end
        lows, highs = _windows_from(layout, whole_from), _windows_before(last, whole_to)
        if layout.epoch == last.epoch:
            inside_S = lows & highs
            first_GS, end_GS = layout.first_GS, layout.first_GS + layout.length_GS * inside_S
            cuts = sorted({number for number in (window, last.window_at(end - 1)[0])})
            cut = [number for number in cuts if not whole_from <= number < whole_to]
            spans = [(max(first, layout.begin(number)), min(end, layout.begin(number + 1))) for number in cut]
        else:
            first_GS = layout.first_GS + layout.length_GS * ~lows
            end_GS = last.first_GS + last.length_GS * highs
            spans = [(first, layout.begin(whole_from)), (last.begin(whole_to), end)]
        for begin, stop in spans:
            singles += [drawn for _, drawn in self._draws(begin, stop)]
        return Drawn(first_GS, end_GS, np.concatenate([np.zeros((3, 0), dtype=np.int64), *singles], axis=1))

    def _draws(self, first: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """The position of the first, and (3, K) group, shard and draw, of positions first..end-1, by window."""
        position = first
        while position < end:
            layout = self.layout_at(position)
            number, start = layout.window_at(position)
            stop = min(end, layout.begin(number + 1))
            ranks = self.ranks(layout, number)[position - start : stop - start]
            yield position, layout.runs(number).located(ranks)
            position = stop


def _windows_from(layout: Layout, number: int) -> np.ndarray:
    """(S,) True for shards of that window and of later ones."""
    return _where(layout, layout.shards_S[number * layout.window :])


def _windows_before(layout: Layout, number: int) -> np.ndarray:
    return _where(layout, layout.shards_S[: number * layout.window])


def _where(layout: Layout, shards: np.ndarray) -> np.ndarray:
    found = np.zeros(len(layout.shards_S), dtype=bool)
    found[shards] = True
    return found
