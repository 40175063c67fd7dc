"""Streams: the rows of the shards that one kind of batch is made of, and which of them belong to which step.

The only state is the step. A stream of `batch_size` items reads positions step * batch_size onwards of its order; with
aux sources, exactly floor(steps * aux_share) of all batches so far come from those instead.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from x2vlm.data.kinds import StreamKind
from x2vlm.data.loading.config import DataConfig, StreamConfig
from x2vlm.data.loading.orders.lanes import LanedOrder, num_lanes
from x2vlm.data.loading.orders.passes import Order, PassOrder, Place
from x2vlm.data.loading.orders.weighted import Group, ImagesOf, WeightedOrder
from x2vlm.data.loading.orders.windowed import WindowedOrder
from x2vlm.data.loading.shard_set import Phrases, ShardSet
from x2vlm.data.randomness import Draws
from x2vlm.data.shards.rows import Row


@dataclass(frozen=True)
class RowGroup:
    """The rows of some sources of a stream, ranked together in each shard: images, or with `per_caption` texts.

    The texts of an image are its captions, then as many of its region phrases as `phrases` allows in a pass. With
    `grains` its boxes are those of these grains alone.
    """

    shards: ShardSet
    kind: StreamKind
    sources: tuple[str, ...]
    per_caption: bool = False
    phrases: Phrases = ()
    grains: tuple[str, ...] = ()

    def counts(self) -> np.ndarray:
        """(S,) rows of each shard."""
        if self.grains:
            return self.shards.grain_counts(self.kind, self.sources, self.grains)
        if self.per_caption:
            return self.shards.text_counts(self.kind, self.sources, self.phrases)
        return self.shards.counts(self.kind, self.sources)

    def images(self, shard: int) -> np.ndarray:
        """The image of every row of a shard, by number."""
        if not self.per_caption:
            return np.arange(len(self.shards.usable(shard, self.kind, self.sources, self.grains)))
        counts = self.shards.counts_of(shard)
        if counts.have_one_text(self.kind, self.sources, dict(self.phrases)):  # pairs of the web: no index is opened
            return np.arange(counts.texts_of(self.kind, self.sources, dict(self.phrases)))
        _, ends = self.shards.texts(shard, self.kind, self.sources, self.phrases)
        return np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))

    def number(self, place: Place) -> int:
        """Number of the row in the shard's index."""
        if not self.per_caption:
            return int(self.shards.usable(place.shard, self.kind, self.sources, self.grains)[place.row])
        numbers, ends = self.shards.texts(place.shard, self.kind, self.sources, self.phrases)
        return int(numbers[np.searchsorted(ends, place.row, side="right")])

    def numbers(self, shard: int, rows: np.ndarray) -> np.ndarray:
        """`number` of rows of one shard."""
        if not self.per_caption:
            found: np.ndarray = self.shards.usable(shard, self.kind, self.sources, self.grains)[rows]
            return found
        numbers, ends = self.shards.texts(shard, self.kind, self.sources, self.phrases)
        found = numbers[np.searchsorted(ends, rows, side="right")]
        return found

    def rows_of(self, shard: int, number: int) -> range:
        """The rows of a shard that `number` gives this number of: several where a text is a row, none if unusable."""
        if not self.per_caption:
            numbers = self.shards.usable(shard, self.kind, self.sources, self.grains)
            ends = np.arange(1, len(numbers) + 1)
        else:
            numbers, ends = self.shards.texts(shard, self.kind, self.sources, self.phrases)
        place = int(np.searchsorted(numbers, number))
        if place == len(numbers) or numbers[place] != number:
            return range(0)
        return range(int(ends[place - 1]) if place else 0, int(ends[place]))

    def row(self, place: Place, seed: int) -> Row:
        """The row; with `per_caption` it has one caption and a variant of its own."""
        rows, number = self.shards.rows(place.shard), self.number(place)
        row = rows.row(number)
        if self.grains:
            kept = rows.of_grains(number, self.grains)
            labels, texts = (tuple(each[place] for place in kept) for each in (row.labels, row.texts))
            boxes = tuple(row.boxes[place] for place in kept)
            return replace(row, labels=labels, texts=texts, boxes=boxes)
        if not self.per_caption:
            return row
        numbers, ends = self.shards.texts(place.shard, self.kind, self.sources, self.phrases)
        image = int(np.searchsorted(numbers, number))
        text = place.row - (int(ends[image - 1]) if image else 0)
        if text < len(row.captions):
            caption = row.captions[text]
        else:
            phrases = Draws(seed, row.key, "phrases").shuffled(rows.phrases(number))
            in_a_pass = int(ends[image]) - (int(ends[image - 1]) if image else 0) - len(row.captions)
            caption = phrases[(place.epoch * in_a_pass + text - len(row.captions)) % len(phrases)]
        return replace(row, captions=(caption,), variant=f"/text{text}")


@dataclass(frozen=True)
class RowGroups:
    """The rows of a stream, or of its aux part, in groups of sources that a pass draws equally often."""

    groups: tuple[RowGroup, ...]
    weights: tuple[Fraction, ...]

    def images(self, group: int, shard: int) -> np.ndarray:
        """The image of every row of a group in a shard, by number."""
        return self.groups[group].images(shard)

    def order(self, seed: int, name: str, window: int, lanes: int, items: int) -> Order:
        """The order in which a stream of that name reads them, `items` a batch, in up to `lanes` lanes."""
        counts_GS = np.array([rows.counts() for rows in self.groups], dtype=np.int64)
        number = num_lanes(lanes, items, window, counts_GS.sum(axis=0), seed)
        if number == 1:
            return self._order(counts_GS, self.images, seed, name, window, False)

        def of_lane(shards: np.ndarray, lane: str) -> PassOrder:
            return self._order(counts_GS[:, shards], _LaneImages(self, shards), seed, lane, window, True)

        return LanedOrder(counts_GS.shape[1], number, items, seed, name, of_lane)

    def _order(
        self, counts_GS: np.ndarray, images: ImagesOf, seed: int, name: str, window: int, sorts: bool
    ) -> PassOrder:
        if not self.groups[0].per_caption and self.weights == (Fraction(1),):
            return WindowedOrder(counts_GS[0].tolist(), seed, name, window, sorts)
        groups = [Group(tuple(counts), weight) for counts, weight in zip(counts_GS.tolist(), self.weights, strict=True)]
        return WeightedOrder(groups, seed, name, window, images, sorts)


@dataclass(frozen=True)
class _LaneImages:
    """`RowGroups.images` by the number that a shard has in its lane."""

    rows: RowGroups
    shards: np.ndarray

    def __call__(self, group: int, shard: int) -> np.ndarray:
        return self.rows.images(group, int(self.shards[shard]))


def row_groups(shards: ShardSet, config: StreamConfig, sources: tuple[str, ...]) -> RowGroups:
    """The rows of a stream that come from `sources` (none named: all)."""
    per_caption = config.rows_per == "caption"
    phrases = tuple(sorted(config.region_captions.items()))
    if not per_caption and not config.weights:
        return RowGroups((RowGroup(shards, config.kind, sources, grains=config.grains),), (Fraction(1),))
    by_weight: dict[Fraction, list[str]] = {}
    for source in sorted(sources or shards.sources()):
        by_weight.setdefault(weight_of(config, source), []).append(source)
    groups = tuple(
        RowGroup(shards, config.kind, tuple(members), per_caption, phrases, config.grains)
        for members in by_weight.values()
    )
    return RowGroups(groups, tuple(by_weight))


def weight_of(config: StreamConfig, source: str) -> Fraction:
    """How often a pass draws a row of that source, as a ratio of whole numbers."""
    return Fraction(str(config.weights.get(source, 1))).limit_denominator(10**6)


@dataclass(frozen=True)
class Slot:
    """One item of a step: its position in its order, and whether that is the aux order."""

    position: int
    is_aux: bool


class Stream:
    """A stream over a set of shards. ConfigError if it can use no row."""

    def __init__(self, config: StreamConfig, shards: ShardSet, seed: int, window: int, lanes: int = 1) -> None:
        self.config, self.shards, self._seed = config, shards, seed
        self.tells_slots = config.repeats_images or lanes > 1  # a step may have two rows of one image
        sources = {False: config.sources, True: config.aux_sources}
        self._rows = {
            is_aux: row_groups(shards, config, names) for is_aux, names in sources.items() if names or not is_aux
        }
        self._orders = {
            is_aux: rows.order(seed, f"{config.label}{'-aux' if is_aux else ''}", window, lanes, config.items_per_step)
            for is_aux, rows in self._rows.items()
        }

    def size(self, is_aux: bool = False) -> int:
        """Rows per epoch."""
        return self._orders[is_aux].size

    def rows_of_sources(self, is_aux: bool = False) -> Mapping[str, float]:
        """Rows per epoch by source, on average where a weight is not whole."""
        groups = self._rows[is_aux].groups
        sources = [source for group in groups for source in group.sources or self.shards.sources()]
        return {
            source: float(weight_of(self.config, source) * int(replace(groups[0], sources=(source,)).counts().sum()))
            for source in sorted(sources)
        }

    def num_lanes(self, step: int) -> int:
        """From how many lanes the batch of a step comes."""
        order = self._orders[self.is_aux_step(step)]
        return order.num_lanes if isinstance(order, LanedOrder) else 1

    def is_aux_step(self, step: int) -> bool:
        """True if the batch of `step` comes from the aux sources."""
        return self._num_aux(step + 1) > self._num_aux(step)

    def slots(self, step: int) -> list[Slot]:
        """The items of `step` over all processes, in order."""
        is_aux = self.is_aux_step(step)
        batch = self._num_aux(step) if is_aux else step - self._num_aux(step)
        size = self.config.items_per_step
        return [Slot(position, is_aux) for position in range(batch * size, (batch + 1) * size)]

    def place(self, slot: Slot, attempt: int = 0) -> Place:
        """The row of a slot; from attempt 1 on, a substitute for an unusable one."""
        order = self._orders[slot.is_aux]
        return order.substitute(slot.position, attempt) if attempt else order.place(slot.position)

    def row(self, slot: Slot, place: Place) -> Row:
        """The row at `place`, from the shard's index."""
        return self._group(slot, place).row(place, self._seed)

    def payload(self, slot: Slot, place: Place) -> bytes:
        """The stored media bytes at `place`; CorruptArtifact if the shard is damaged."""
        location = self.shards.rows(place.shard).location(self._group(slot, place).number(place))
        return self.shards.payloads(place.shard).read(location.key, location.offset, location.bytes, location.sha256)

    def parts(self) -> Iterator[tuple[bool, Order, RowGroups]]:
        """Main and, if there is one, aux part: whether it is aux, its order, and the rows that this orders."""
        for is_aux, order in self._orders.items():
            yield is_aux, order, self._rows[is_aux]

    def positions(self, first_step: int, end_step: int, is_aux: bool) -> range:
        """The positions of the main or the aux order that a range of steps reads."""
        first, end = (self._num_aux(step) if is_aux else step - self._num_aux(step) for step in (first_step, end_step))
        return range(first * (size := self.config.items_per_step), end * size)

    def steps_at(self, positions: np.ndarray, is_aux: bool) -> np.ndarray:
        """The steps that read some positions of the main or the aux order: the reverse of `slots`."""
        wanted, share = positions // self.config.items_per_step + 1, self.config.aux_share

        def read_before(steps: np.ndarray) -> np.ndarray:  # batches of this part, computed as `_num_aux` does
            num_aux = np.floor(steps * share + 1e-9).astype(np.int64)
            return num_aux if is_aux else steps - num_aux

        ends = np.floor(wanted / (share if is_aux else 1 - share)).astype(np.int64)
        while (late := read_before(ends) < wanted).any():
            ends += late
        while (early := read_before(ends - 1) >= wanted).any():
            ends -= early
        return ends - 1

    def _group(self, slot: Slot, place: Place) -> RowGroup:
        return self._rows[slot.is_aux].groups[place.group]

    def _num_aux(self, steps: int) -> int:
        """How many of the first `steps` batches are aux; the small addition corrects rounding (0.15 * 20 = 2.99...)."""
        return math.floor(steps * self.config.aux_share + 1e-9)


def streams_of(shards: ShardSet, config: DataConfig) -> list[Stream]:
    """The streams of a configuration over these shards. ConfigError if one can use no row."""
    return [Stream(item, shards, config.seed, config.window_shards, config.lanes) for item in config.streams]
