"""Streams: the rows of the shards that one kind of batch is made of, and which of them belong to which step.

The only state is the step. A stream of `batch_size` items reads positions step * batch_size onwards of its order; with
aux sources, exactly floor(steps * aux_share) of all batches so far come from those instead.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig
from x2vlm.data.kinds import StreamKind
from x2vlm.data.loading.order import Place, WindowedOrder
from x2vlm.data.shards.row_counts import IndexCounts, count_rows
from x2vlm.data.shards.rows import Row, ShardRows
from x2vlm.data.shards.shard import OpenableFile, PayloadFile
from x2vlm.errors import ConfigError

IMAGES_PER_GROUP = 50


class StreamConfig(FrozenConfig):
    """One kind of batch in every step.

    `batch_size` counts text rows over all processes; a region stream draws them from `num_images` images. `sources`
    restricts the stream (none named: all). A fraction `aux_share` of the batches comes from `aux_sources` (the clean
    sets beside a noisy one); `match_main=False` leaves the matching loss to those (released 1B recipe).
    `negative_group_size` overrides that of the objective.
    """

    kind: StreamKind
    batch_size: int = Field(ge=1)
    name: str = ""
    num_images: int | None = Field(default=None, ge=1)
    loss_weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    sources: tuple[str, ...] = ()
    aux_sources: tuple[str, ...] = ()
    aux_share: float = Field(default=0.0, ge=0, lt=1)
    match_main: bool = True
    negative_group_size: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _is_complete(self) -> "StreamConfig":
        if (self.kind == "region") != (self.num_images is not None):
            raise ValueError("num_images belongs to region streams, and they need it: images per step")
        if bool(self.aux_sources) != bool(self.aux_share):
            raise ValueError("aux_sources and aux_share belong together")
        if not self.match_main and not self.aux_sources:
            raise ValueError("match_main: false leaves no batch with a matching loss unless there are aux_sources")
        return self

    @property
    def row_groups(self) -> int:
        """Number of groups of the images of a region step; rows are chosen within each group.

        The largest number that divides images and rows evenly and leaves at least 50 images in each group, from which
        a process of the released recipe chose 128 rows. It does not depend on the number of processes, and saves
        them planning images of which they get no row.
        """
        if self.num_images is None:
            return 1
        common = math.gcd(self.num_images, self.batch_size)
        most = max(1, self.num_images // IMAGES_PER_GROUP)
        return max(number for number in range(1, most + 1) if common % number == 0)

    @property
    def label(self) -> str:
        """Name of the stream in metrics and in the record of consumed samples."""
        return self.name or self.kind

    @property
    def items_per_step(self) -> int:
        """Samples drawn per step over all processes."""
        return self.num_images or self.batch_size


@dataclass(frozen=True)
class ShardFiles:
    """The payloads (a tar or Parquet file) and the index of a shard: paths, or files fetched when they are opened."""

    media: OpenableFile
    index: OpenableFile


class ShardSet:
    """The shards of a run, by number; a few are open at a time. Cheap to pickle."""

    def __init__(self, files: Sequence[ShardFiles], max_open: int = 64) -> None:
        if not files:
            raise ConfigError("no shards to train on; did the pack stage drop everything?")
        self.files = tuple(files)
        self._max_open = max_open
        self.rows = functools.lru_cache(max_open)(lambda shard: ShardRows(self.files[shard].index))
        self.payloads = functools.lru_cache(max_open)(lambda shard: PayloadFile(self.files[shard].media))
        self.usable = functools.lru_cache(8 * max_open)(self._usable)
        self._counts: tuple[IndexCounts, ...] = ()

    def counts(self, kind: StreamKind, sources: tuple[str, ...]) -> list[int]:
        """How many rows of each shard a stream of that kind can use."""
        if not self._counts:
            self._counts = count_rows([files.index for files in self.files])
        return [counts.of(kind, sources) for counts in self._counts]

    def _usable(self, shard: int, kind: StreamKind, sources: tuple[str, ...]) -> np.ndarray:
        """Row numbers of a shard that a stream of that kind can use."""
        return self.rows(shard).usable(kind, sources)

    def __reduce__(self) -> tuple[Callable[..., "ShardSet"], tuple[Any, ...]]:
        return _shard_set, (self.files, self._max_open, self._counts)


def _shard_set(files: tuple[ShardFiles, ...], max_open: int, counts: tuple[IndexCounts, ...]) -> ShardSet:
    shards = ShardSet(files, max_open)
    shards._counts = counts
    return shards


@dataclass(frozen=True)
class Slot:
    """One item of a step: its position in its order, and whether that is the aux order."""

    position: int
    is_aux: bool


class Stream:
    """A stream over a set of shards. ConfigError if it can use no row."""

    def __init__(self, config: StreamConfig, shards: ShardSet, seed: int, window: int) -> None:
        self.config = config
        self.shards = shards
        self._sources = {False: config.sources, True: config.aux_sources}
        self._orders = {
            is_aux: WindowedOrder(
                shards.counts(config.kind, sources),
                seed,
                f"{config.label}{'-aux' if is_aux else ''}",
                window,
            )
            for is_aux, sources in self._sources.items()
            if sources or not is_aux
        }

    def size(self, is_aux: bool = False) -> int:
        """Rows per epoch."""
        return self._orders[is_aux].size

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
        return self.shards.rows(place.shard).row(self._number(slot, place))

    def payload(self, slot: Slot, place: Place) -> bytes:
        """The stored media bytes at `place`; CorruptArtifact if the shard is damaged."""
        location = self.shards.rows(place.shard).location(self._number(slot, place))
        return self.shards.payloads(place.shard).read(location.key, location.offset, location.bytes, location.sha256)

    def _number(self, slot: Slot, place: Place) -> int:
        return int(self.shards.usable(place.shard, self.config.kind, self._sources[slot.is_aux])[place.row])

    def _num_aux(self, steps: int) -> int:
        """How many of the first `steps` batches are aux; the small addition corrects rounding (0.15 * 20 = 2.99...)."""
        return math.floor(steps * self.config.aux_share + 1e-9)
