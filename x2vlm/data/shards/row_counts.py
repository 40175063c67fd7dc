"""How many rows of which sort each shard holds: all that a run must know about every shard before its first step."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from x2vlm.data.kinds import StreamKind
from x2vlm.data.shards.rows import encoded, list_ends
from x2vlm.data.shards.shard import OpenableFile, read_index

# The cheapest leaf of each list: a constant almost everywhere, so its column is a few bytes and its lengths are known.
COLUMNS = ("source", "kind", "captions.list.element.language", "concepts.list.element.grain")
# Key of the summary of a packed shard that holds its counts as JSON; shards of earlier releases have none.
USABLE_ROWS = "usable_rows"
NUM_THREADS = 32  # of reading the indexes of shards without recorded counts: mostly waiting for a store


@dataclass(frozen=True)
class IndexCounts:
    """Rows of one shard by (medium, source): how many have a caption, and how many a box."""

    with_caption: Mapping[tuple[str, str], int]
    with_box: Mapping[tuple[str, str], int]

    def of(self, kind: StreamKind, sources: Sequence[str]) -> int:
        """How many rows a stream can use, by the rule of `x2vlm.data.shards.rows.usable`."""
        medium = "video" if kind == "video" else "image"
        counts = self.with_box if kind == "region" else self.with_caption
        return sum(
            count for (of, source), count in counts.items() if of == medium and (not sources or source in sources)
        )

    def to_json(self) -> dict[str, list[int]]:
        """`<medium>/<source>` -> [rows with a caption, rows with a box]."""
        return {
            f"{medium}/{source}": [count, self.with_box[medium, source]]
            for (medium, source), count in self.with_caption.items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[int]]) -> "IndexCounts":
        """What `to_json` gave."""
        parts = {name.partition("/")[::2]: numbers for name, numbers in values.items()}
        return cls(
            {(medium, source): int(numbers[0]) for (medium, source), numbers in parts.items()},
            {(medium, source): int(numbers[1]) for (medium, source), numbers in parts.items()},
        )


def count_rows(indexes: Sequence[OpenableFile]) -> tuple[IndexCounts, ...]:
    """The counts of every index, NUM_THREADS at a time. CorruptArtifact if one is missing or not an index."""
    if not indexes:
        return ()
    with ThreadPoolExecutor(NUM_THREADS, "count-rows") as pool:
        return tuple(pool.map(lambda path: count_of(read_index(path, COLUMNS)), indexes))


def count_of(index: pa.Table) -> IndexCounts:
    """The counts of an index, or of its COLUMNS."""
    table = index.combine_chunks()
    if not table.num_rows:
        return IndexCounts({}, {})
    has_caption, has_box = (np.diff(list_ends(table[name].chunk(0))) > 0 for name in ("captions", "concepts"))
    (kinds, kind_names), (sources, source_names) = (encoded(table[name].chunk(0)) for name in ("kind", "source"))
    sorts = [(kind, source) for kind in kind_names for source in source_names]
    sort = kinds.astype(np.int64) * len(source_names) + sources
    return IndexCounts(
        *(dict(zip(sorts, _times(sort[flags], len(sorts)), strict=True)) for flags in (has_caption, has_box))
    )


def _times(numbers: np.ndarray, size: int) -> list[int]:
    times: list[int] = np.bincount(numbers, minlength=size).tolist()
    return times
