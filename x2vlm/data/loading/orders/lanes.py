"""Several orders side by side, so that the machines of a run read different shards.

The shards are dealt out to lanes once for a run. Each lane has an order of its own over its shards, and every batch
takes equally many rows of each lane: slots 0 to B / L - 1 are those of lane 0, and so on (batches of B rows, L lanes).
Processes have consecutive slots of a batch, so a machine reads the lanes of its slots and no others, as long as the
number of machines divides the number of lanes. The order knows nothing of processes: with any number of them a batch is
the same. MosaicML Streaming calls the same thing its canonical nodes.

Shards are dealt out by number alone: a row more or less in one moves rows of its lane and of no other. A lane that has
fewer rows than another draws each of them a little more often: with the 1,562 or 1,563 shards of 64 lanes of a hundred
thousand, by a thousandth.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from x2vlm.data.loading.orders.passes import Drawn, PassOrder, Place, Places
from x2vlm.data.loading.orders.permutation import shuffled_numbers

# (shards of a lane, name of the lane) -> its order, which numbers these shards from 0.
LaneOrder = Callable[[np.ndarray, str], PassOrder]


def num_lanes(most: int, items: int, window: int, rows_S: Sequence[int], seed: int) -> int:
    """How many lanes a stream of `items` samples a batch has, of at most `most`.

    The largest number that divides both, leaves every lane a whole window of shards, and a row: `rows_S` are those of
    each shard. So few shards, or a source that lies in few of them, are one lane.
    """
    rows = np.asarray(rows_S)
    common = math.gcd(most, items)
    for number in sorted((number for number in range(2, common + 1) if common % number == 0), reverse=True):
        if number * window <= len(rows) and all(rows[shards].any() for shards in deal(len(rows), number, seed)):
            return number
    return 1


def deal(num_shards: int, number: int, seed: int) -> list[np.ndarray]:
    """The ascending numbers of the shards of each lane; the lanes of a half of `number` have two of these each."""
    lanes = np.arange(num_shards) * number // num_shards
    shuffled = shuffled_numbers(num_shards, seed, "lanes")
    return [np.sort(shuffled[lanes == lane]) for lane in range(number)]


class LanedOrder:
    """`number` orders side by side; interface of `WindowedOrder`, for batches of `items` rows."""

    def __init__(self, num_shards: int, number: int, items: int, seed: int, name: str, make: LaneOrder) -> None:
        self._each = items // number
        self._items, self._num_shards = items, num_shards
        self._shards = deal(num_shards, number, seed)
        self._lanes = [make(shards, f"{name}/lane{lane}") for lane, shards in enumerate(self._shards)]

    @property
    def size(self) -> int:
        """Rows of a pass, all lanes together."""
        return sum(lane.size for lane in self._lanes)

    @property
    def num_lanes(self) -> int:
        """How many orders lie side by side."""
        return len(self._lanes)

    def lanes_of(self, first: int, end: int) -> range:
        """The lanes that slots first..end-1 of a batch read."""
        return range(first // self._each, -(-end // self._each))

    def shards_of(self, lane: int) -> np.ndarray:
        """The numbers of a lane's shards."""
        return self._shards[lane]

    def place(self, position: int) -> Place:
        """Which row comes at `position`."""
        lane, inside = self._inside(position)
        return self._outside(lane, self._lanes[lane].place(inside))

    def substitute(self, position: int, attempt: int) -> Place:
        """A row of the same lane and pass that replaces the unusable one at `position`."""
        lane, inside = self._inside(position)
        return self._outside(lane, self._lanes[lane].substitute(inside, attempt))

    def places(self, first: int, end: int) -> Iterator[Places]:
        """As `Order.places`: a batch at a time."""
        batches = range(first // self._items, -(-end // self._items))
        of_lanes = [
            _Cursor(lane.places(batches.start * self._each, batches.stop * self._each), shards)
            for lane, shards in zip(self._lanes, self._shards, strict=True)
        ]
        for batch in batches:
            start = batch * self._items
            columns = np.concatenate([cursor.take(self._each) for cursor in of_lanes], axis=1)
            low, high = max(first - start, 0), min(end - start, self._items)
            yield Places(start + low, *columns[:, low:high])

    def positions_of(self, group: int, shard: int, row: int, first: int, end: int) -> np.ndarray:
        """As `Order.positions_of`: only one lane has the shard."""
        for lane, shards in enumerate(self._shards):
            place = int(np.searchsorted(shards, shard))
            if place < len(shards) and shards[place] == shard:
                inside = range(first // self._items * self._each, -(-end // self._items) * self._each)
                found = self._lanes[lane].positions_of(group, place, row, inside.start, inside.stop)
                positions = found // self._each * self._items + lane * self._each + found % self._each
                inside_range: np.ndarray = positions[(positions >= first) & (positions < end)]
                return inside_range
        raise IndexError(f"no lane has shard {shard}")

    def drawn(self, first: int, end: int) -> Drawn:
        """As `Order.drawn`, of whole batches; single draws are those of one lane after the other."""
        if first % self._items or end % self._items:
            raise ValueError(f"positions {first} to {end} are not those of whole batches of {self._items}")
        singles = []
        first_GS = end_GS = np.zeros((0, 0), dtype=np.int64)
        for lane, shards in zip(self._lanes, self._shards, strict=True):
            drawn = lane.drawn(first // self._items * self._each, end // self._items * self._each)
            if not first_GS.size:
                first_GS, end_GS = (np.zeros((len(drawn.first_GS), self._num_shards), dtype=np.int64) for _ in "ab")
            first_GS[:, shards], end_GS[:, shards] = drawn.first_GS, drawn.end_GS
            groups, places, draws = drawn.single
            singles.append(np.stack([groups, shards[places], draws]))
        return Drawn(first_GS, end_GS, np.concatenate(singles, axis=1))

    def _inside(self, position: int) -> tuple[int, int]:
        batch, slot = divmod(position, self._items)
        lane, place = divmod(slot, self._each)
        return lane, batch * self._each + place

    def _outside(self, lane: int, place: Place) -> Place:
        return Place(place.epoch, int(self._shards[lane][place.shard]), place.row, place.group)


class _Cursor:
    """Places of a lane, some at a time, with the numbers that its shards have in the run."""

    def __init__(self, blocks: Iterator[Places], shards: np.ndarray) -> None:
        self._blocks, self._shards = blocks, shards
        self._left = np.zeros((4, 0), dtype=np.int64)

    def take(self, number: int) -> np.ndarray:
        """(4, number) epoch, shard, row and group of the next places."""
        while self._left.shape[1] < number:
            block = next(self._blocks)
            more = np.stack([block.epoch, self._shards[block.shard], block.row, block.group])
            self._left = np.concatenate([self._left, more], axis=1)
        taken, self._left = self._left[:, :number], self._left[:, number:]
        return taken
