"""Which samples a range of steps has read, and which steps have read a sample: computed from the order, not recorded.

The record of a run is its configuration, its shards, its first and last step, and the rows that were replaced because
their media were unusable (they are in the metrics). Three questions are answered from it:

* `drawn`: how often was which row drawn? Intervals of draws by shard: a walk over shards, not over steps.
* `seen`: which steps read this sample? The permutations that make the order are inverted.
* `samples`: which samples did these steps read, one by one? The order is computed as arrays.

A region stream draws images, and then chooses rows among their boxes: `drawn` and `seen` tell the images drawn, of
which a few get no row; `samples` leaves these out, for which it must plan every step of such a stream.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from x2vlm.data.loading.config import DataConfig
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.orders.passes import Drawn, Order, Places
from x2vlm.data.loading.shard_set import ShardFiles, ShardSet
from x2vlm.data.loading.streams import RowGroups, Stream, streams_of

ITEMS_AT_ONCE = 200_000


class HasStreams(Protocol):
    """A `StepLoader`, or the order of its steps alone."""

    @property
    def streams(self) -> list[Stream]: ...


@dataclass(frozen=True)
class StepOrder:
    """The order of the steps of a run over its shards, for questions that need nothing of a sample."""

    streams: list[Stream]

    @classmethod
    def of(cls, shards: Sequence[ShardFiles], config: DataConfig) -> "StepOrder":
        """The order that a `StepLoader` of these shards has."""
        return cls(streams_of(ShardSet(shards), config))

    @property
    def num_shards(self) -> int:
        """Shards that are trained on."""
        return len(self.streams[0].shards.files)


@dataclass(frozen=True, order=True)
class Seen:
    """A step that draws a sample, in which stream, and at which position of the stream's main or aux order.

    A region stream may have chosen other images of the step (`is_certain` False).
    """

    step: int
    stream: str
    position: int
    is_aux: bool
    is_certain: bool


@dataclass(frozen=True)
class Samples:
    """(K,) samples in the order in which steps read them: step, number of the stream, position in its order, key."""

    step: np.ndarray
    stream: np.ndarray
    position: np.ndarray
    key: np.ndarray  # bytes


def seen(loader: HasStreams, shard: int, key: str, first_step: int, end_step: int) -> list[Seen]:
    """Every draw of a sample, which lies in that shard of the run, in first_step..end_step-1, by step.

    Before rows are replaced. Empty if the shard does not have it. Opens the index of that shard and, for streams with a
    row per text and several texts of an image, those of one window for every pass.
    """
    found: list[Seen] = []
    keys = loader.streams[0].shards.rows(shard).keys
    number = int(np.searchsorted(keys, key.encode()))
    if number == len(keys) or keys[number] != key.encode():
        return found
    for stream in loader.streams:
        for is_aux, order, rows in stream.parts():
            span = stream.positions(first_step, end_step, is_aux)
            drawn = [
                order.positions_of(group, shard, row, span.start, span.stop)
                for group, members in enumerate(rows.groups)
                for row in members.rows_of(shard, number)
            ]
            if drawn:
                positions = np.concatenate(drawn)
                steps, certain = stream.steps_at(positions, is_aux), stream.config.kind != "region"
                found += [
                    Seen(step, stream.config.label, position, is_aux, certain)
                    for step, position in zip(steps.tolist(), positions.tolist(), strict=True)
                ]
    return sorted(found)


def drawn(loader: HasStreams, first_step: int, end_step: int) -> Iterator[tuple[Stream, bool, RowGroups, Drawn]]:
    """For the main and the aux part of every stream: whether it is aux, its rows, and what the steps have drawn."""
    for stream in loader.streams:
        for is_aux, order, rows in stream.parts():
            span = stream.positions(first_step, end_step, is_aux)
            yield stream, is_aux, rows, order.drawn(span.start, span.stop)


def samples(
    loader: StepLoader, first_step: int, end_step: int, substitutes: Mapping[int, Sequence[Mapping[str, Any]]]
) -> Iterator[Samples]:
    """The samples of first_step..end_step-1 over all ranks, some steps at a time, after the recorded substitutions.

    `substitutes` are those of each step that has any, as its line of metrics tells them.
    """
    items = sum(stream.config.items_per_step for stream in loader.streams)
    size = max(1, ITEMS_AT_ONCE // items)
    readers = [_KeyReader(stream, first_step, end_step) for stream in loader.streams]
    for first in range(first_step, end_step, size):
        end = min(first + size, end_step)
        columns = [
            _of_regions(loader, stream, number, first, end)
            if stream.config.kind == "region"
            else reader.take(number, first, end)
            for number, (stream, reader) in enumerate(zip(loader.streams, readers, strict=True))
        ]
        steps, streams, positions, keys = (np.concatenate(column) for column in zip(*columns, strict=True))
        by_step = np.argsort(steps, kind="stable")
        block = Samples(steps[by_step], streams[by_step], positions[by_step], keys[by_step])
        for step in range(first, end):
            if step in substitutes:
                _replace(loader, block, step, substitutes[step])
        yield block


class _KeyReader:
    """The keys of a stream's steps, in order, from its main and its aux order."""

    def __init__(self, stream: Stream, first_step: int, end_step: int) -> None:
        self._stream = stream
        self._parts = {}
        for is_aux, order, rows in stream.parts():
            span = stream.positions(first_step, end_step, is_aux)
            self._parts[is_aux] = _keys_of(stream, order, rows, span), span.start

    def take(self, number: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Step, number of the stream, position and key of the items of steps first..end-1."""
        size = self._stream.config.items_per_step
        aux = [self._stream.is_aux_step(step) for step in range(first, end)]
        positions = [np.zeros(0, np.int64)]
        keys = []
        for is_aux in aux:
            found, position = self._parts[is_aux]
            self._parts[is_aux] = found, position + size
            positions.append(np.arange(position, position + size))
            keys.append(found.take(size))
        steps = np.repeat(np.arange(first, end), size)
        return steps, np.full(len(steps), number), np.concatenate(positions), np.concatenate(keys)


class _Keys:
    """Keys of consecutive positions, some at a time."""

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self._left = np.zeros(0, dtype="S1")
        self._taken = 0

    def take(self, size: int) -> np.ndarray:
        while len(self._left) - self._taken < size:
            self._left = np.concatenate([self._left[self._taken :], next(self._blocks)])
            self._taken = 0
        self._taken += size
        return self._left[self._taken - size : self._taken]


def _keys_of(stream: Stream, order: Order, rows: RowGroups, span: range) -> _Keys:
    return _Keys(_keys(stream, rows, places) for places in order.places(span.start, span.stop))


def _keys(stream: Stream, rows: RowGroups, places: Places) -> np.ndarray:
    """(K,) the keys at some places."""
    by_owner = np.lexsort((places.group, places.shard))
    owners = places.shard[by_owner] * len(rows.groups) + places.group[by_owner]
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    pieces = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(owners)], strict=True):
        shard, group = divmod(int(owners[start]), len(rows.groups))
        numbers = rows.groups[group].numbers(shard, places.row[by_owner[start:stop]])
        pieces.append(stream.shards.rows(shard).keys[numbers])
    found = np.concatenate(pieces)
    keys = np.empty_like(found)
    keys[by_owner] = found
    return keys


def _of_regions(
    loader: StepLoader, stream: Stream, number: int, first: int, end: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    items = [
        (step, item.slot.position, item.row.key) for step in range(first, end) for item in loader.plan(stream, step, [])
    ]
    steps, positions, keys = zip(*items, strict=True)
    return np.array(steps), np.full(len(items), number), np.array(positions), np.array(keys, dtype="S")


def _replace(loader: StepLoader, block: Samples, step: int, substitutes: Sequence[Mapping[str, Any]]) -> None:
    """Write the replacements of a step into `block`: of one replacement after the other, the last."""
    begin, stop = np.searchsorted(block.step, [step, step + 1]).tolist()
    labels = [stream.config.label for stream in loader.streams]
    used = {(item["stream"], item.get("slot"), item["key"]): item["used"] for item in substitutes}
    changes: list[tuple[np.ndarray, bytes]] = []
    for stream, slot, key in used:
        mine = (block.stream[begin:stop] == labels.index(stream)) & (block.key[begin:stop] == key.encode())
        if slot is not None:
            mine &= block.position[begin:stop] == slot
        if mine.any():
            passed = set()
            while (stream, slot, key) in used and key not in passed:
                passed.add(key)
                key = used[stream, slot, key]
            changes.append((begin + np.flatnonzero(mine), key.encode()))
    for places, found in changes:  # only now: a replacement may itself be the first choice of another row
        block.key[places] = found
