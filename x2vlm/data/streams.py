"""Streams: which rows of the shards one kind of batch is made of, and which of them come in which step.

The only state is the step. A stream of `batch_size` items reads positions step * batch_size onwards of its order; with
aux sources, exactly floor(steps * aux_share) of all batches so far come from those instead.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig
from x2vlm.data.order import Place, WindowedOrder
from x2vlm.data.shards import ShardReader
from x2vlm.errors import ConfigError
from x2vlm.samples import Sample

Kind = Literal["image", "region", "video"]


class StreamConfig(FrozenConfig):
    """One kind of batch in every step.

    `batch_size` counts text rows over all processes; a region stream draws them from `num_images` pictures. `sources`
    restricts the stream (none named: all). A share of `aux_share` of the batches comes from `aux_sources` (the clean
    sets beside a noisy one); `match_main=False` leaves the matching loss to those (released 1B recipe).
    `negative_group_size` wins over that of the objective.
    """

    kind: Kind
    batch_size: int = Field(ge=1)
    name: str = ""
    num_images: int | None = Field(default=None, ge=1)
    loss_weight: float = Field(default=1.0, gt=0)
    sources: tuple[str, ...] = ()
    aux_sources: tuple[str, ...] = ()
    aux_share: float = Field(default=0.0, ge=0, lt=1)
    match_main: bool = True
    negative_group_size: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _is_complete(self) -> "StreamConfig":
        if (self.kind == "region") != (self.num_images is not None):
            raise ValueError("num_images belongs to region streams, and they need it: pictures per step")
        if bool(self.aux_sources) != bool(self.aux_share):
            raise ValueError("aux_sources and aux_share belong together")
        if not self.match_main and not self.aux_sources:
            raise ValueError("match_main: false leaves no batch with a matching loss unless there are aux_sources")
        return self

    @property
    def label(self) -> str:
        """What the stream is called in metrics and in the record of consumed samples."""
        return self.name or self.kind

    @property
    def items_per_step(self) -> int:
        """Samples drawn per step over all processes."""
        return self.num_images or self.batch_size


@dataclass(frozen=True)
class ShardFiles:
    """Where the payloads (a tar or Parquet file) and the index of a shard lie on this machine."""

    media: Path
    index: Path


class ShardSet:
    """The shards of a run, by number; a few are open at a time. Cheap to pickle."""

    def __init__(self, files: Sequence[ShardFiles], max_open: int = 64) -> None:
        if not files:
            raise ConfigError("no shards to train on; did the pack stage drop everything?")
        self.files = tuple(files)
        self._max_open = max_open
        self.reader = functools.lru_cache(max_open)(self._open)
        self.rows = functools.lru_cache(8 * max_open)(self._rows)

    def _open(self, shard: int) -> ShardReader:
        return ShardReader(self.files[shard].media, self.files[shard].index)

    def _rows(self, shard: int, kind: Kind, sources: tuple[str, ...]) -> np.ndarray:
        """Row numbers of a shard that a stream of that kind can use."""
        table = pq.read_table(self.files[shard].index, columns=["kind", "source", "captions", "concepts"])
        return np.flatnonzero(usable(table, kind, sources).to_numpy(zero_copy_only=False)).astype(np.int32)

    def __reduce__(self) -> tuple[type["ShardSet"], tuple[tuple[ShardFiles, ...], int]]:
        return ShardSet, (self.files, self._max_open)


def usable(table: pa.Table, kind: Kind, sources: tuple[str, ...]) -> pa.ChunkedArray:
    """True for rows that a stream can use: right medium and source, with a caption (image, video) or a box (region)."""
    needed = table["concepts"] if kind == "region" else table["captions"]
    mask = pc.and_(
        pc.equal(table["kind"], "video" if kind == "video" else "image"),
        pc.greater(pc.fill_null(pc.list_value_length(needed), 0), 0),
    )
    if sources:
        mask = pc.and_(mask, pc.is_in(table["source"], pa.array(sources)))
    return mask


@dataclass(frozen=True)
class Slot:
    """One item of a step: where it stands in its order, and whether that is the aux order."""

    position: int
    is_aux: bool


class Stream:
    """A stream over a set of shards. ConfigError if no row fits it."""

    def __init__(self, config: StreamConfig, shards: ShardSet, seed: int, window: int) -> None:
        self.config = config
        self.shards = shards
        self._sources = {False: config.sources, True: config.aux_sources}
        self._orders = {
            is_aux: WindowedOrder(
                [len(shards.rows(shard, config.kind, sources)) for shard in range(len(shards.files))],
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
        """Which row a slot stands for; from attempt 1 on, a row to take instead of an unusable one."""
        order = self._orders[slot.is_aux]
        return order.substitute(slot.position, attempt) if attempt else order.place(slot.position)

    def sample(self, slot: Slot, place: Place) -> Sample:
        """The sample at `place`, from the shard's index."""
        return self.shards.reader(place.shard).sample(self._row(slot, place))

    def payload(self, slot: Slot, place: Place) -> bytes:
        """The stored media bytes at `place`; CorruptArtifact if the shard is damaged."""
        return self.shards.reader(place.shard).payload(self._row(slot, place))

    def _row(self, slot: Slot, place: Place) -> int:
        return int(self.shards.rows(place.shard, self.config.kind, self._sources[slot.is_aux])[place.row])

    def _num_aux(self, steps: int) -> int:
        """How many of the first `steps` batches are aux; the tiny addition keeps 0.15 * 20 from being 2.99..."""
        return math.floor(steps * self.config.aux_share + 1e-9)
