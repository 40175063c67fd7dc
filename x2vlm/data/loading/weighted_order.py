"""The order of a stream whose sources are drawn more or less often than once per pass, or whose images have many rows.

As in `x2vlm.data.loading.order` a position is looked up directly, from (seed, position) alone. Two things differ:

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

from x2vlm.data.loading.order import Place
from x2vlm.data.randomness import Draws, derive_seed, uniforms
from x2vlm.errors import ConfigError

# (group, shard) -> the image of each of the shard's rows of that group, by number.
ImagesOf = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Group:
    """Rows that are drawn equally often: how many every shard has, and how often a pass draws each."""

    counts: tuple[int, ...]
    weight: Fraction


@dataclass(frozen=True)
class _Run:
    """Consecutive draws of the rows of one group in one shard, numbered from the first draw of the training."""

    group: int
    shard: int
    first: int
    length: int


class WeightedOrder:
    """The order of a stream of several groups; interface of `WindowedOrder`. ConfigError if there are no rows."""

    def __init__(self, groups: Sequence[Group], seed: int, name: str, window: int, images_of: ImagesOf) -> None:
        self._groups, self._seed, self._name, self._window = tuple(groups), seed, name, window
        self._images_of = images_of
        self._counts_GS = np.array([group.counts for group in groups], dtype=np.int64)
        if not self._counts_GS.sum():
            raise ConfigError(f"stream {name}: no shard holds a row for it; check the stream's kind and sources")
        self._up_G1 = np.array([[group.weight.numerator] for group in groups], dtype=np.int64)
        self._down_G1 = np.array([[group.weight.denominator] for group in groups], dtype=np.int64)
        # Where each shard begins to round: so that the roundings of a pass cancel out over the shards.
        wanted_GS = self._counts_GS * self._up_G1
        self._offsets_GS = (np.cumsum(wanted_GS, axis=1) - wanted_GS) % self._down_G1
        self._mean_size = sum(group.weight * sum(group.counts) for group in groups)
        self._epoch, self._start, self._end = -1, 0, 0
        self._windows: list[list[_Run]] = []
        self._ends = np.zeros(0, dtype=np.int64)
        self._arranged = functools.lru_cache(2)(self._arrange_window)
        self._rows = functools.lru_cache(4 * window)(self._shuffled_rows)

    def __reduce__(self) -> tuple[Callable[..., "WeightedOrder"], tuple[Any, ...]]:
        """To processes that read: without what is laid out here."""
        return WeightedOrder, (self._groups, self._seed, self._name, self._window, self._images_of)

    @property
    def size(self) -> int:
        """Rows of a pass: of passes of different length (weights that are not whole), the mean."""
        return max(1, round(self._mean_size))

    def place(self, position: int) -> Place:
        """Which row comes at `position`, counted from 0 over all passes."""
        self._find_epoch(position)
        index = position - self._start
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        return self._locate(number, int(self._arranged(self._epoch, number)[index - first]))

    def substitute(self, position: int, attempt: int) -> Place:
        """A row of the same pass that replaces the unusable one at `position`."""
        self._find_epoch(position)
        draws = Draws(self._seed, self._name, "substitute", position, attempt)
        index = draws.integer(0, self._end - self._start - 1)
        number = int(np.searchsorted(self._ends, index, side="right"))
        # Not arranged: that would read the indexes of another window for one row.
        return self._locate(number, index - (int(self._ends[number - 1]) if number else 0))

    def _draws_before(self, epoch: int) -> np.ndarray:
        """(G, S) how many rows of each group and shard the passes before `epoch` have drawn."""
        found: np.ndarray = (epoch * self._counts_GS * self._up_G1 + self._offsets_GS) // self._down_G1
        return found

    def _find_epoch(self, position: int) -> None:
        """Lay out the pass in which `position` lies; cached until another pass is asked for."""
        if self._epoch >= 0 and self._start <= position < self._end:
            return
        epoch = max(0, math.floor(position / self._mean_size))
        while epoch and self._draws_before(epoch).sum() > position:
            epoch -= 1
        while self._draws_before(epoch + 1).sum() <= position:
            epoch += 1
        first_GS, end_GS = self._draws_before(epoch), self._draws_before(epoch + 1)
        lengths_GS = end_GS - first_GS
        shards = Draws(self._seed, self._name, "shards", epoch).shuffled(range(self._counts_GS.shape[1]))
        self._windows = [
            [
                _Run(group, shard, int(first_GS[group, shard]), int(lengths_GS[group, shard]))
                for shard in shards[start : start + self._window]
                for group in range(len(self._groups))
                if lengths_GS[group, shard]
            ]
            for start in range(0, len(shards), self._window)
        ]
        self._ends = np.cumsum([sum(run.length for run in runs) for runs in self._windows])
        self._epoch, self._start, self._end = epoch, int(first_GS.sum()), int(end_GS.sum())

    def _locate(self, number: int, rank: int) -> Place:
        """The row of that rank in a window of the pass that is laid out."""
        for run in self._windows[number]:
            if rank < run.length:
                count = int(self._counts_GS[run.group, run.shard])
                cycle, row = divmod(run.first + rank, count)
                return Place(cycle, run.shard, int(self._rows_of(run, cycle, count)[row]), run.group)
            rank -= run.length
        raise AssertionError("windows and counts disagree")

    def _rows_of(self, run: _Run, cycle: int, count: int) -> np.ndarray:
        """The rows of a group in a shard in the order in which passes draw them."""
        if self._groups[run.group].weight.denominator == 1:  # every pass draws all of them, and its window shuffles
            return np.arange(count)
        return self._rows(run.group, run.shard, cycle, count)

    def _shuffled_rows(self, group: int, shard: int, cycle: int, count: int) -> np.ndarray:
        seed = derive_seed(self._seed, self._name, "rows", group, shard, cycle)
        return np.argsort(uniforms(seed, count), kind="stable")

    def _arrange_window(self, epoch: int, number: int) -> np.ndarray:
        """(N,) the ranks of a window of `epoch`, which is laid out, in the order in which they are read.

        A row that is the j-th of k of its image lies at (j + a + b / 2) / k of the window (modulo 1), with a random a
        of the image and a random b of the row: evenly spread, without that two images meet again and again.
        """
        images_N = self._images(self._windows[number])
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

    def _images(self, runs: Sequence[_Run]) -> np.ndarray:
        """(N,) the image of every rank of a window, numbered over its shards and groups."""
        found, num_images = [], 0
        for run in runs:
            count = int(self._counts_GS[run.group, run.shard])
            images = self._images_of(run.group, run.shard)
            if len(images) != count:
                raise AssertionError("rows and counts disagree")
            numbers = run.first + np.arange(run.length)
            cycles, rows = numbers // count, numbers % count
            for cycle in range(int(cycles[0]), int(cycles[-1]) + 1):
                mine = cycles == cycle
                rows[mine] = self._rows_of(run, cycle, count)[rows[mine]]
            found.append(num_images + images[rows])
            num_images += int(images.max()) + 1
        return np.concatenate(found)
