"""The shards of a run: where the files of each lie, how many rows of each sort it has, and a few of them open."""

import functools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from x2vlm.data.kinds import StreamKind
from x2vlm.data.shards.row_counts import CountTable, ShardCounts, count_rows
from x2vlm.data.shards.rows import RowTexts, ShardRows
from x2vlm.data.shards.shard import OpenableFile, PayloadFile
from x2vlm.errors import ConfigError

Phrases = tuple[tuple[str, int], ...]  # sources whose region phrases are captions, and how many of an image in a pass


@dataclass(frozen=True)
class ShardFiles:
    """The payloads (a tar or Parquet file) and the index of a shard: paths, or files fetched when they are opened.

    `counts` are those of the index, where the pack stage recorded them.
    """

    media: OpenableFile
    index: OpenableFile
    counts: ShardCounts | None = None


class CountedShards(Sequence[ShardFiles]):
    """Shards whose counts are known as one table: nothing is made of a shard before it is asked for."""

    @property
    @abstractmethod
    def counts(self) -> CountTable:
        """The counts of all of them."""


class ShardSet:
    """The shards of a run, by number; a few are open at a time. Cheap to pickle."""

    def __init__(self, files: Sequence[ShardFiles], max_open: int = 64) -> None:
        if not files:
            raise ConfigError("no shards to train on; did the pack stage drop everything?")
        self.files = files if isinstance(files, CountedShards) else tuple(files)
        self._max_open = max_open
        self.rows = functools.lru_cache(max_open)(lambda shard: ShardRows(self.files[shard].index))
        self.payloads = functools.lru_cache(max_open)(lambda shard: PayloadFile(self.files[shard].media))
        self.usable = functools.lru_cache(8 * max_open)(self._usable)
        self.texts = functools.lru_cache(8 * max_open)(self._texts)
        self.counts_of = functools.lru_cache(8 * max_open)(lambda shard: self._table().shard(shard))
        self._counts: CountTable | None = None

    def counts(self, kind: StreamKind, sources: tuple[str, ...]) -> np.ndarray:
        """(S,) how many rows of each shard a stream of that kind can use."""
        return self._table().of(kind, sources)

    def text_counts(self, kind: StreamKind, sources: tuple[str, ...], phrases: Phrases) -> np.ndarray:
        """(S,) how many rows of each shard a stream with a row per caption has in a pass."""
        return self._table().texts_of(kind, sources, dict(phrases))

    def grain_counts(self, kind: StreamKind, sources: tuple[str, ...], grains: tuple[str, ...]) -> np.ndarray:
        """(S,) how many rows of each shard have a box of one of these grains."""
        return self._table().of(kind, sources, grains)

    def sources(self) -> list[str]:
        """Every source that has a row in a shard."""
        return self._table().sources()

    def _table(self) -> CountTable:
        if self._counts is None:
            self._counts = self.files.counts if isinstance(self.files, CountedShards) else self._count()
        return self._counts

    def _count(self) -> CountTable:
        counted = iter(count_rows([files.index for files in self.files if files.counts is None]))
        return CountTable.of_shards([files.counts or next(counted) for files in self.files])

    def _usable(
        self, shard: int, kind: StreamKind, sources: tuple[str, ...], grains: tuple[str, ...] = ()
    ) -> np.ndarray:
        """Row numbers of a shard that a stream of that kind can use."""
        return self.rows(shard).usable(kind, sources, grains)

    def _texts(
        self, shard: int, kind: StreamKind, sources: tuple[str, ...], phrases: Phrases
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of a shard's rows of these sources, ascending, and at which text of a pass each ends."""
        rows = RowTexts(self.files[shard].index)
        num_captions, num_phrases = rows.num_texts()
        numbers = np.sort(np.concatenate([rows.of(kind, (source,)) for source in sources]))
        limits = np.zeros(len(rows), dtype=np.int64)
        for source, most in phrases:
            limits[rows.of(kind, (source,))] = most
        return numbers, np.cumsum(num_captions[numbers] + np.minimum(num_phrases, limits)[numbers])

    def __reduce__(self) -> tuple[Callable[..., "ShardSet"], tuple[Any, ...]]:
        # Of listed shards the table is in the listing, and would be sent twice.
        counts = None if isinstance(self.files, CountedShards) else self._counts
        return _shard_set, (self.files, self._max_open, counts)


def _shard_set(files: Sequence[ShardFiles], max_open: int, counts: CountTable | None) -> ShardSet:
    shards = ShardSet(files, max_open)
    shards._counts = counts
    return shards
