"""In which order rows are visited: a function of (seed, epoch, position), without a shuffled list and without state.

Whole shards are shuffled; then the rows within each window of consecutive shards. So a reader has only one window of
shards open, and any position can be looked up directly. `x2vlm.data.loading.weighted_order` is the same for sources
that are drawn more or less often than once per pass, and for images with a row per caption.
"""

import bisect
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from x2vlm.data.randomness import Draws
from x2vlm.errors import ConfigError

NUM_ROUNDS = 6


def permuted(index: int, size: int, *labels: str | int) -> int:
    """The image of `index` under the permutation of 0..size-1 that belongs to `labels`.

    A Feistel network over the next even number of bits; results outside the range are permuted again (cycle walking),
    at most four times on average because the domain is less than four times too large.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is not in 0..{size - 1}")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    key = hashlib.sha256(repr(labels).encode()).digest()
    while True:
        index = _feistel(index, half_bits, key)
        if index < size:
            return index


def _feistel(index: int, half_bits: int, key: bytes) -> int:
    mask = (1 << half_bits) - 1
    left, right = index >> half_bits, index & mask
    for number in range(NUM_ROUNDS):
        digest = hashlib.blake2b(right.to_bytes(8, "big"), key=key, salt=bytes([number]), digest_size=8).digest()
        left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
    return left << half_bits | right


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


class WindowedOrder:
    """The order of a stream whose shard i has `counts[i]` rows; each epoch visits every row once.

    `window` shards are shuffled together. ConfigError if there are no rows.
    """

    def __init__(self, counts: Sequence[int], seed: int, name: str, window: int = 16) -> None:
        self.size = sum(counts)
        if not self.size:
            raise ConfigError(f"stream {name}: no shard holds a row for it; check the stream's kind and sources")
        self._counts, self._seed, self._name, self._window = tuple(counts), seed, name, window
        self._epoch = -1
        self._shards: list[int] = []
        self._ends: list[int] = []

    def place(self, position: int) -> Place:
        """Which row comes at `position`, counted from 0 over all epochs."""
        epoch, index = divmod(position, self.size)
        self._arrange(epoch)
        number = bisect.bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        shards = self._shards[number * self._window : (number + 1) * self._window]
        row = permuted(index - start, self._ends[number] - start, self._seed, self._name, "rows", epoch, number)
        for shard in shards:
            if row < self._counts[shard]:
                return Place(epoch, shard, row)
            row -= self._counts[shard]
        raise AssertionError("windows and counts disagree")

    def substitute(self, position: int, attempt: int) -> Place:
        """A row of the same epoch that replaces the unusable one at `position`."""
        epoch = position // self.size
        draws = Draws(self._seed, self._name, "substitute", position, attempt)
        return self.place(epoch * self.size + draws.integer(0, self.size - 1))

    def _arrange(self, epoch: int) -> None:
        """Lay out the windows of `epoch`; cached until another epoch is requested."""
        if epoch == self._epoch:
            return
        self._shards = Draws(self._seed, self._name, "shards", epoch).shuffled(range(len(self._counts)))
        rows = [self._counts[shard] for shard in self._shards]
        windows = [sum(rows[start : start + self._window]) for start in range(0, len(rows), self._window)]
        self._ends = list(itertools.accumulate(windows))
        self._epoch = epoch
