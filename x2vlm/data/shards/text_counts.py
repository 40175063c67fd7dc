"""How many captions and region phrases the rows of each shard hold, and which have objects.

Streams with a row per caption, and region streams of one grain, count by it. A histogram for each medium and source, so
that the number of rows follows for any limit of phrases per image without opening an index again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from x2vlm.data.kinds import StreamKind
from x2vlm.data.shards.rows import encoded, list_ends, num_of_grains
from x2vlm.data.shards.shard import OpenableFile, read_index
from x2vlm.samples import Grain

COLUMNS = ("source", "kind", "captions.list.element.language", "concepts.list.element.grain")

Texts = tuple[int, int, bool]  # captions and region phrases of one row, and whether it has objects


@dataclass(frozen=True)
class TextCounts:
    """Rows of one shard by (medium, source), and of these by what texts they have."""

    rows: Mapping[tuple[str, str], Mapping[Texts, int]]

    def of(self, kind: StreamKind, sources: Sequence[str], phrases: Mapping[str, int]) -> int:
        """Texts that a pass of a stream shows of these sources: every caption, and up to `phrases` of each image."""
        medium = "video" if kind == "video" else "image"
        return sum(
            rows * num_texts(texts, phrases.get(source, 0))
            for source in sources
            for texts, rows in self.rows.get((medium, source), {}).items()
        )

    def with_grain(self, kind: StreamKind, sources: Sequence[str], grains: Sequence[str]) -> int:
        """Rows with a box of one of these grains."""
        medium = "video" if kind == "video" else "image"
        return sum(
            rows
            for (of, source), found in self.rows.items()
            if of == medium and (not sources or source in sources)
            for (_, phrases, has_objects), rows in found.items()
            if (phrases and Grain.REGION in grains) or (has_objects and Grain.OBJECT in grains)
        )


def num_texts(texts: Texts, most_phrases: int) -> int:
    """Texts of a row in one pass: all captions, and at most that many of its phrases."""
    captions, phrases, _ = texts
    return captions + min(phrases, most_phrases)


def count_texts(indexes: Sequence[OpenableFile]) -> tuple[TextCounts, ...]:
    """The counts of every index. CorruptArtifact if one is missing or not an index."""
    return tuple(_count(read_index(path, COLUMNS).combine_chunks()) for path in indexes)


def _count(table: pa.Table) -> TextCounts:
    if not table.num_rows:
        return TextCounts({})
    captions = np.diff(list_ends(table["captions"].chunk(0)))
    concepts = table["concepts"].chunk(0)
    regions, objects = (num_of_grains(concepts, (grain,)) for grain in (Grain.REGION, Grain.OBJECT))
    (kinds, kind_names), (sources, source_names) = (encoded(table[name].chunk(0)) for name in ("kind", "source"))
    found, times = np.unique(
        np.stack([kinds, sources, captions, regions, objects > 0], axis=1), axis=0, return_counts=True
    )
    rows: dict[tuple[str, str], dict[Texts, int]] = {}
    for (kind, source, *texts), count in zip(found.tolist(), times.tolist(), strict=True):
        rows.setdefault((kind_names[kind], source_names[source]), {})[texts[0], texts[1], bool(texts[2])] = count
    return TextCounts(rows)
