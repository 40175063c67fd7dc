"""The order of a stream whose sources are drawn more or less often than once per pass, or whose images have many rows.

As in `windowed` a position is looked up directly, from (seed, position) alone. Two things differ:

* A source of weight w is drawn w times its rows per pass. Where w is not whole, every pass takes other rows, so that
  every row has been drawn before any is drawn again.
* The rows of one image (its captions, or the same row drawn more than once) are spread over the window in which they
  lie: two of them are at least half of their mean distance apart.

G groups of sources of equal weight, S shards, N rows of a window.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from x2vlm.data.loading.orders.passes import Layout, PassOrder, Place, Runs
from x2vlm.data.loading.orders.windowed import shards_of_pass
from x2vlm.data.randomness import Draws, derive_seed, uniforms
from x2vlm.errors import ConfigError

# (group, shard) -> the image of each of the shard's rows of that group, by number.
ImagesOf = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Group:
    """Rows that are drawn equally often: how many every shard has, and how often a pass draws each."""

    counts: tuple[int, ...]
    weight: Fraction


class WeightedOrder(PassOrder):
    """The order of a stream of several groups; interface of `WindowedOrder`. ConfigError if there are no rows."""

    def __init__(
        self, groups: Sequence[Group], seed: int, name: str, window: int, images_of: ImagesOf, sorts: bool = False
    ) -> None:
        self._groups, self._seed, self._name, self._window = tuple(groups), seed, name, window
        self._images_of, self._sorts = images_of, sorts
        self._counts_GS = np.array([group.counts for group in groups], dtype=np.int64)
        if not self._counts_GS.sum():
            raise ConfigError(f"stream {name}: no shard holds a row for it; check the stream's kind and sources")
        self._up_G1 = np.array([[group.weight.numerator] for group in groups], dtype=np.int64)
        self._down_G1 = np.array([[group.weight.denominator] for group in groups], dtype=np.int64)
        # Where each shard begins to round: so that the roundings of a pass cancel out over the shards.
        wanted_GS = self._counts_GS * self._up_G1
        self._offsets_GS = (np.cumsum(wanted_GS, axis=1) - wanted_GS) % self._down_G1
        self._mean_size = sum(group.weight * sum(group.counts) for group in groups)
        self._layout: Layout | None = None
        self._runs = functools.lru_cache(4)(lambda epoch, number: self._layout_of(epoch).runs(number))
        self._arranged = functools.lru_cache(2)(self._arrange_window)
        self._rows = functools.lru_cache(4 * window)(self._shuffled_rows)

    def __reduce__(self) -> tuple[Callable[..., "WeightedOrder"], tuple[Any, ...]]:
        """To processes that read: without what is laid out here."""
        return WeightedOrder, (self._groups, self._seed, self._name, self._window, self._images_of, self._sorts)

    @property
    def size(self) -> int:
        """Rows of a pass: of passes of different length (weights that are not whole), the mean."""
        return max(1, round(self._mean_size))

    def place(self, position: int) -> Place:
        """Which row comes at `position`, counted from 0 over all passes."""
        layout = self.layout_at(position)
        number, start = layout.window_at(position)
        return self._locate(layout, number, int(self._arranged(layout.epoch, number)[position - start]))

    def substitute(self, position: int, attempt: int) -> Place:
        """A row of the same pass that replaces the unusable one at `position`."""
        layout = self.layout_at(position)
        draws = Draws(self._seed, self._name, "substitute", position, attempt)
        other = layout.start + draws.integer(0, layout.end - layout.start - 1)
        number, start = layout.window_at(other)
        # Not arranged: that would read the indexes of another window for one row.
        return self._locate(layout, number, other - start)

    def layout_at(self, position: int) -> Layout:
        found = self._layout
        if found is not None and found.start <= position < found.end:
            return found
        epoch = max(0, math.floor(position / self._mean_size))
        while epoch and self._draws_before(epoch).sum() > position:
            epoch -= 1
        while self._draws_before(epoch + 1).sum() <= position:
            epoch += 1
        return self._layout_of(epoch)

    def ranks(self, layout: Layout, number: int) -> np.ndarray:
        return self._arranged(layout.epoch, number)

    def rank_positions(self, layout: Layout, number: int, ranks: np.ndarray) -> np.ndarray:
        return np.flatnonzero(np.isin(self._arranged(layout.epoch, number), ranks))

    def rows(self, group: int, shard: int, draws: np.ndarray) -> np.ndarray:
        count = int(self._counts_GS[group, shard])
        cycles, rows = np.divmod(draws, count)
        if self._is_whole(group):
            return rows
        for cycle in np.unique(cycles).tolist():
            mine = cycles == cycle
            rows[mine] = self._rows_of(group, shard, cycle, count)[rows[mine]]
        return rows

    def draws_of(self, group: int, shard: int, row: int, first: int, length: int) -> np.ndarray:
        count = int(self._counts_GS[group, shard])
        cycles = np.arange(first // count, -(-(first + length) // count))
        if self._is_whole(group):
            draws = cycles * count + row
        else:
            shuffled = [self._rows_of(group, shard, cycle, count) for cycle in cycles.tolist()]
            places = [int(np.flatnonzero(rows == row)[0]) for rows in shuffled]
            draws = cycles * count + np.array(places, dtype=np.int64)
        return draws[(draws >= first) & (draws < first + length)]

    def count(self, group: int, shard: int) -> int:
        return int(self._counts_GS[group, shard])

    def _draws_before(self, epoch: int) -> np.ndarray:
        """(G, S) how many rows of each group and shard the passes before `epoch` have drawn."""
        found: np.ndarray = (epoch * self._counts_GS * self._up_G1 + self._offsets_GS) // self._down_G1
        return found

    def _layout_of(self, epoch: int) -> Layout:
        """The windows of a pass; cached until another pass is asked for."""
        if self._layout is None or self._layout.epoch != epoch:
            first_GS, end_GS = self._draws_before(epoch), self._draws_before(epoch + 1)
            number = self._counts_GS.shape[1]
            shards = shards_of_pass(number, self._sorts, self._seed, self._name, "shards", epoch)
            self._layout = Layout(epoch, int(first_GS.sum()), shards, first_GS, end_GS - first_GS, self._window)
        return self._layout

    def _locate(self, layout: Layout, number: int, rank: int) -> Place:
        """The row of that rank in a window of a pass."""
        group, shard, draw = self._runs(layout.epoch, number).locate(rank)
        count = int(self._counts_GS[group, shard])
        cycle, row = divmod(draw, count)
        return Place(cycle, shard, int(self._rows_of(group, shard, cycle, count)[row]), group)

    def _rows_of(self, group: int, shard: int, cycle: int, count: int) -> np.ndarray:
        """The rows of a group in a shard in the order in which passes draw them."""
        return np.arange(count) if self._is_whole(group) else self._rows(group, shard, cycle, count)

    def _is_whole(self, group: int) -> bool:
        """Whether every pass draws all rows of a group: then it takes them in order, and its window shuffles."""
        return self._groups[group].weight.denominator == 1

    def _shuffled_rows(self, group: int, shard: int, cycle: int, count: int) -> np.ndarray:
        seed = derive_seed(self._seed, self._name, "rows", group, shard, cycle)
        return np.argsort(uniforms(seed, count), kind="stable")

    def _arrange_window(self, epoch: int, number: int) -> np.ndarray:
        """(N,) the ranks of a window of `epoch` in the order in which they are read.

        A row that is the j-th of k of its image lies at (j + a + b / 2) / k of the window (modulo 1), with a random a
        of the image and a random b of the row: evenly spread, without that two images meet again and again.
        """
        images_N = self._images(self._runs(epoch, number))
        num_images = int(images_N.max()) + 1
        draws = [
            uniforms(derive_seed(self._seed, self._name, what, epoch, number), size)
            for what, size in (("turns", len(images_N)), ("starts", num_images), ("shifts", len(images_N)))
        ]
        turns_N, starts_M, shifts_N = draws
        by_image_N = np.lexsort((turns_N, images_N))
        times_M = np.bincount(images_N, minlength=num_images)
        firsts_M = np.cumsum(times_M) - times_M
        ordinals_N = np.empty(len(images_N), dtype=np.int64)
        ordinals_N[by_image_N] = np.arange(len(images_N)) - firsts_M[images_N[by_image_N]]
        places_N = (ordinals_N + starts_M[images_N] + shifts_N / 2) / times_M[images_N]
        return np.argsort(places_N % 1.0, kind="stable")

    def _images(self, runs: Runs) -> np.ndarray:
        """(N,) the image of every rank of a window, numbered over its shards and groups."""
        found, num_images = [], 0
        columns = (runs.groups, runs.shards, runs.firsts, runs.lengths)
        for group, shard, first, length in zip(*(column.tolist() for column in columns), strict=True):
            images = self._images_of(group, shard)
            if len(images) != self._counts_GS[group, shard]:
                raise AssertionError("rows and counts disagree")
            found.append(num_images + images[self.rows(group, shard, first + np.arange(length))])
            num_images += int(images.max()) + 1
        return np.concatenate(found)
