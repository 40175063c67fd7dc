"""What texts the rows of each shard have: all that a run must know about every shard before its first step.

A histogram for each medium and source, so that the number of rows of any stream follows without opening an index:
whatever it limits (sources, grains, phrases per image).
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from x2vlm.data.kinds import StreamKind
from x2vlm.data.shards.rows import CAPTION, GRAIN, encoded, list_ends, num_of_grains
from x2vlm.data.shards.shard import OpenableFile, read_index
from x2vlm.samples import Grain

COLUMNS = ("source", "kind", CAPTION, GRAIN)
# Key of the summary of a packed shard that holds its counts as JSON; shards of earlier releases have none.
ROW_COUNTS = "rows_by_texts"
NUM_THREADS = 32  # of reading the indexes of shards without recorded counts: mostly waiting for a store

Texts = tuple[int, int, bool]  # captions and region phrases of one row, and whether it has objects


@dataclass(frozen=True)
class ShardCounts:
    """Rows of one shard by (medium, source), and of these by what texts they have."""

    rows: Mapping[tuple[str, str], Mapping[Texts, int]]

    def of(self, kind: StreamKind, sources: Sequence[str], grains: Sequence[str] = ()) -> int:
        """How many rows a stream can use: see `x2vlm.data.shards.rows.usable`. `grains` are those of boxes."""
        return sum(
            count
            for (of, source), found in self.rows.items()
            if of == _medium(kind) and (not sources or source in sources)
            for texts, count in found.items()
            if _is_usable(texts, kind, grains)
        )

    def texts_of(self, kind: StreamKind, sources: Sequence[str], phrases: Mapping[str, int]) -> int:
        """Texts that a pass of a stream shows of these sources: every caption, and up to `phrases` of each image."""
        return sum(
            count * _num_texts(texts, phrases.get(source, 0))
            for source in sources
            for texts, count in self.rows.get((_medium(kind), source), {}).items()
        )

    def have_one_text(self, kind: StreamKind, sources: Sequence[str], phrases: Mapping[str, int]) -> bool:
        """Whether a pass shows exactly one text (see `texts_of`) of every row of these sources."""
        return all(
            _num_texts(texts, phrases.get(source, 0)) == 1
            for source in sources
            for texts in self.rows.get((_medium(kind), source), {})
        )

    def sources(self) -> set[str]:
        """Every source that has a row."""
        return {source for _, source in self.rows}

    def to_json(self) -> dict[str, list[list[int]]]:
        """`<medium>/<source>` -> [captions, phrases, 1 with objects, rows] for each sort of row."""
        return {
            f"{medium}/{source}": [[*map(int, texts), count] for texts, count in found.items()]
            for (medium, source), found in self.rows.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[Sequence[int]]]) -> "ShardCounts":
        """What `to_json` gave."""
        rows: dict[tuple[str, str], dict[Texts, int]] = {}
        for name, found in values.items():
            medium, _, source = name.partition("/")
            rows[medium, source] = {(line[0], line[1], bool(line[2])): line[3] for line in found}
        return cls(rows)


@dataclass(frozen=True, eq=False)
class CountTable:
    """The counts of S shards as arrays: a question about all of them is answered at once.

    `sorts` are the different sorts of row (medium, source, texts). Each of F entries says how many rows of one sort a
    shard has; those of a shard follow each other, in the order of the shards.
    """

    num_shards: int
    sorts: tuple[tuple[str, str, Texts], ...]
    shard_F: np.ndarray
    sort_F: np.ndarray
    rows_F: np.ndarray

    @classmethod
    def of_shards(cls, shards: Sequence[ShardCounts]) -> "CountTable":
        """The table of these counts, in this order."""
        numbers: dict[tuple[str, str, Texts], int] = {}
        entries = [
            (shard, numbers.setdefault((medium, source, texts), len(numbers)), rows)
            for shard, counts in enumerate(shards)
            for (medium, source), found in counts.rows.items()
            for texts, rows in found.items()
        ]
        columns = np.array(entries, dtype=np.int64).reshape(-1, 3).T
        return cls(len(shards), tuple(numbers), *columns)

    def shard(self, number: int) -> ShardCounts:
        """The counts of one shard."""
        rows: dict[tuple[str, str], dict[Texts, int]] = {}
        first, end = np.searchsorted(self.shard_F, [number, number + 1]).tolist()
        for sort, count in zip(self.sort_F[first:end].tolist(), self.rows_F[first:end].tolist(), strict=True):
            medium, source, texts = self.sorts[sort]
            rows.setdefault((medium, source), {})[texts] = count
        return ShardCounts(rows)

    def part(self, first: int, end: int) -> "CountTable":
        """The table of shards first..end-1, numbered from 0."""
        span = slice(*np.searchsorted(self.shard_F, [first, end]).tolist())
        return CountTable(end - first, self.sorts, self.shard_F[span] - first, self.sort_F[span], self.rows_F[span])

    def of(self, kind: StreamKind, sources: Sequence[str], grains: Sequence[str] = ()) -> np.ndarray:
        """(S,) as `ShardCounts.of`."""
        return self._sum(
            int(medium == _medium(kind) and (not sources or source in sources) and _is_usable(texts, kind, grains))
            for medium, source, texts in self.sorts
        )

    def texts_of(self, kind: StreamKind, sources: Sequence[str], phrases: Mapping[str, int]) -> np.ndarray:
        """(S,) as `ShardCounts.texts_of`."""
        return self._sum(
            _num_texts(texts, phrases.get(source, 0)) if medium == _medium(kind) and source in sources else 0
            for medium, source, texts in self.sorts
        )

    def sources(self) -> list[str]:
        """Every source that has a row in a shard."""
        return sorted({self.sorts[sort][1] for sort in np.unique(self.sort_F).tolist()})

    def _sum(self, times: Iterable[int]) -> np.ndarray:
        """(S,) the rows of each shard, each counted so many times as its sort says."""
        times_T = np.fromiter(times, np.int64, len(self.sorts))
        found = np.zeros(self.num_shards, dtype=np.int64)
        np.add.at(found, self.shard_F, times_T[self.sort_F] * self.rows_F)
        return found


def count_rows(indexes: Sequence[OpenableFile]) -> tuple[ShardCounts, ...]:
    """The counts of every index, NUM_THREADS at a time. CorruptArtifact if one is missing or not an index."""
    if not indexes:
        return ()
    with ThreadPoolExecutor(NUM_THREADS, "count-rows") as pool:
        return tuple(pool.map(lambda path: count_of(read_index(path, COLUMNS)), indexes))


def count_of(index: pa.Table) -> ShardCounts:
    """The counts of an index, or of its COLUMNS."""
    table = index.combine_chunks()
    if not table.num_rows:
        return ShardCounts({})
    captions, concepts = np.diff(list_ends(table["captions"].chunk(0))), table["concepts"].chunk(0)
    regions, objects = (num_of_grains(concepts, (grain,)) for grain in (Grain.REGION, Grain.OBJECT))
    (kinds, kind_names), (sources, source_names) = (encoded(table[name].chunk(0)) for name in ("kind", "source"))
    found, times = np.unique(
        np.stack([kinds, sources, captions, regions, objects > 0], axis=1), axis=0, return_counts=True
    )
    rows: dict[tuple[str, str], dict[Texts, int]] = {}
    for (kind, source, *texts), count in zip(found.tolist(), times.tolist(), strict=True):
        rows.setdefault((kind_names[kind], source_names[source]), {})[texts[0], texts[1], bool(texts[2])] = count
    return ShardCounts(rows)


def _is_usable(texts: Texts, kind: StreamKind, grains: Sequence[str]) -> bool:
    captions, phrases, has_objects = texts
    if kind != "region":
        return captions > 0
    return (phrases > 0 and Grain.REGION in (grains or Grain)) or (has_objects and Grain.OBJECT in (grains or Grain))


def _num_texts(texts: Texts, most_phrases: int) -> int:
    captions, phrases, _ = texts
    return captions + min(phrases, most_phrases)


def _medium(kind: StreamKind) -> str:
    return "video" if kind == "video" else "image"
