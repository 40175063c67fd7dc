"""In which order rows are visited: a function of (seed, epoch, position), without a shuffled list and without state.

Whole shards are shuffled; then the rows within each window of consecutive shards. So a reader has only one window of
shards open, and any position can be looked up directly. `weighted` is the same for sources that are drawn more or less
often than once per pass, and for images with a row per caption; `lanes` reads several such orders side by side.
"""

import functools
from collections.abc import Sequence

import numpy as np

from x2vlm.data.loading.orders.passes import Layout, PassOrder, Place
from x2vlm.data.loading.orders.permutation import all_permuted, permuted, shuffled_numbers, unpermuted
from x2vlm.data.randomness import Draws
from x2vlm.errors import ConfigError


class WindowedOrder(PassOrder):
    """The order of a stream whose shard i has `counts[i]` rows; each epoch visits every row once.

    `window` shards are shuffled together. `sorts` shuffles shards as an array, for orders that have only a part of very
    many; it is another order. ConfigError if there are no rows.
    """

    def __init__(self, counts: Sequence[int], seed: int, name: str, window: int = 16, sorts: bool = False) -> None:
        self._size = sum(counts)
        if not self._size:
            raise ConfigError(f"stream {name}: no shard holds a row for it; check the stream's kind and sources")
        self._counts = np.array(counts, dtype=np.int64)
        self._seed, self._name, self._window, self._sorts = seed, name, window, sorts
        self._layout: Layout | None = None
        self._runs = functools.lru_cache(2)(lambda epoch, number: self._layout_of(epoch).runs(number))

    def __reduce__(self) -> tuple[type["WindowedOrder"], tuple[list[int], int, str, int, bool]]:
        """To processes that read: without what is laid out here."""
        return WindowedOrder, (self._counts.tolist(), self._seed, self._name, self._window, self._sorts)

    @property
    def size(self) -> int:
        """Rows of an epoch."""
        return self._size

    def place(self, position: int) -> Place:
        """Which row comes at `position`, counted from 0 over all epochs."""
        layout = self.layout_at(position)
        number, start = layout.window_at(position)
        size = layout.begin(number + 1) - start
        _, shard, draw = self._runs(layout.epoch, number).locate(
            permuted(position - start, size, *self._labels(layout.epoch, number))
        )
        return Place(layout.epoch, shard, draw - layout.epoch * int(self._counts[shard]))

    def substitute(self, position: int, attempt: int) -> Place:
        """A row of the same epoch that replaces the unusable one at `position`."""
        epoch = position // self.size
        draws = Draws(self._seed, self._name, "substitute", position, attempt)
        return self.place(epoch * self.size + draws.integer(0, self.size - 1))

    def layout_at(self, position: int) -> Layout:
        return self._layout_of(position // self.size)

    def ranks(self, layout: Layout, number: int) -> np.ndarray:
        size = layout.begin(number + 1) - layout.begin(number)
        return all_permuted(size, *self._labels(layout.epoch, number))

    def rank_positions(self, layout: Layout, number: int, ranks: np.ndarray) -> np.ndarray:
        size = layout.begin(number + 1) - layout.begin(number)
        labels = self._labels(layout.epoch, number)
        return np.array([unpermuted(rank, size, *labels) for rank in ranks.tolist()], dtype=np.int64)

    def rows(self, group: int, shard: int, draws: np.ndarray) -> np.ndarray:
        found: np.ndarray = draws % self._counts[shard]
        return found

    def draws_of(self, group: int, shard: int, row: int, first: int, length: int) -> np.ndarray:
        return np.array([first + row])  # a pass has every row of the shard once

    def count(self, group: int, shard: int) -> int:
        return int(self._counts[shard])

    def _labels(self, epoch: int, number: int) -> tuple[int, str, str, int, int]:
        return self._seed, self._name, "rows", epoch, number

    def _layout_of(self, epoch: int) -> Layout:
        """The windows of `epoch`; cached until another epoch is requested."""
        if self._layout is None or self._layout.epoch != epoch:
            shards = shards_of_pass(len(self._counts), self._sorts, self._seed, self._name, "shards", epoch)
            counts_GS = self._counts[None]
            self._layout = Layout(epoch, epoch * self.size, shards, epoch * counts_GS, counts_GS, self._window)
        return self._layout


def shards_of_pass(number: int, sorts: bool, *labels: str | int) -> np.ndarray:
    """The numbers of the shards in the random order of a pass."""
    if sorts:
        return shuffled_numbers(number, *labels)
    return np.array(Draws(*labels).shuffled(range(number)), dtype=np.int64)
