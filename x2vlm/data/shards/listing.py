"""The shards of a run as one Parquet file: a start reads it, and no shard, whatever their number.

One row a shard, in the order of their numbers: where payloads and index lie, their sha256, and how many rows it has of
which medium, source and texts (`x2vlm.data.shards.row_counts`).
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.data.shards.row_counts import CountTable, ShardCounts, Texts
from x2vlm.errors import CorruptArtifact

ROWS = "rows"
_SORT = pa.struct(
    [
        ("medium", pa.string()),
        ("source", pa.string()),
        ("captions", pa.int32()),  # of one row
        ("phrases", pa.int32()),
        ("has_objects", pa.bool_()),
        ("rows", pa.int64()),  # of this sort
    ]
)
SCHEMA = pa.schema(
    [
        ("media", pa.string()),
        ("media_sha256", pa.binary(32)),
        ("index", pa.string()),
        ("index_sha256", pa.binary(32)),
        (ROWS, pa.list_(_SORT)),  # null: unknown, of shards that an earlier release packed
    ]
)


@dataclass(frozen=True, eq=False)
class ShardListing:
    """A table with SCHEMA in one chunk, and the counts of its shards; None if those of any are unknown."""

    table: pa.Table
    counts: CountTable | None

    @classmethod
    def of_table(cls, table: pa.Table) -> "ShardListing":
        """The listing in a table with SCHEMA."""
        table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        return cls(table, None if table[ROWS].null_count else _counts(table))

    @classmethod
    def of_shards(cls, shards: Sequence[Mapping[str, Any]]) -> "ShardListing":
        """The listing of shards with `media`, `media_sha256`, `index`, `index_sha256` and perhaps `rows`, their counts
        as `ShardCounts.to_json` gives them."""
        rows = [_sorts(shard[ROWS]) if ROWS in shard else None for shard in shards]
        columns = [
            [shard["media"] for shard in shards],
            [bytes.fromhex(shard["media_sha256"]) for shard in shards],
            [shard["index"] for shard in shards],
            [bytes.fromhex(shard["index_sha256"]) for shard in shards],
            rows,
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        return cls.of_table(pa.Table.from_arrays(arrays, schema=SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def shard(self, number: int) -> dict[str, Any]:
        """One shard, as `of_shards` takes it."""
        media, media_sha256, index, index_sha256 = (self.table[name][number].as_py() for name in SCHEMA.names[:-1])
        files = {"media": media, "media_sha256": media_sha256.hex(), "index": index, "index_sha256": index_sha256.hex()}
        rows = self.table[ROWS][number].as_py()
        if rows is None:
            return files
        counts: dict[tuple[str, str], dict[Texts, int]] = {}
        for row in rows:
            texts = (row["captions"], row["phrases"], row["has_objects"])
            counts.setdefault((row["medium"], row["source"]), {})[texts] = row["rows"]
        return {**files, ROWS: ShardCounts(counts).to_json()}

    def part(self, first: int, end: int) -> "ShardListing":
        """The listing of shards first..end-1."""
        counts = None if self.counts is None else self.counts.part(first, end)
        return ShardListing(self.table.slice(first, end - first), counts)

    def to_bytes(self) -> bytes:
        """The listing as Parquet: equal listings give equal bytes."""
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd")
        return sink.getvalue()


def read_listing(data: bytes, sha256: str, where: str) -> ShardListing:
    """The listing in `data`. CorruptArtifact unless it has that sha256."""
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise CorruptArtifact(
            f"{where}: the listing of the shards has sha256 {found[:12]}…, the job says {sha256[:12]}…; run the "
            "training again: its driver writes both anew"
        )
    return ShardListing.of_table(pq.read_table(pa.BufferReader(data)))


def _sorts(counts: Mapping[str, Sequence[Sequence[int]]]) -> list[dict[str, Any]]:
    return [
        {
            **{"medium": medium, "source": source, "captions": texts[0], "phrases": texts[1]},
            **{"has_objects": texts[2], "rows": count},
        }
        for (medium, source), found in ShardCounts.from_json(counts).rows.items()
        for texts, count in found.items()
    ]


def _counts(table: pa.Table) -> CountTable:
    """The counts of all shards, from the flattened lists: a number for each sort of row, without an object a shard."""
    lists = table[ROWS].combine_chunks()
    lists = lists.chunk(0) if isinstance(lists, pa.ChunkedArray) else lists
    flat = lists.flatten()
    columns, names = [], []
    for name in ("medium", "source"):
        encoded = flat.field(name).dictionary_encode()
        columns.append(encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64))
        names.append(encoded.dictionary.to_pylist())
    for name in ("captions", "phrases", "has_objects"):
        columns.append(flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64))
    sorts, sort_F = _numbered(columns)
    media, sources = names
    shard_F = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    return CountTable(
        len(lists),
        tuple((media[one[0]], sources[one[1]], (one[2], one[3], bool(one[4]))) for one in sorts),
        shard_F,
        sort_F,
        flat.field("rows").to_numpy(zero_copy_only=False).astype(np.int64),
    )


def _numbered(columns: Sequence[np.ndarray]) -> tuple[list[list[int]], np.ndarray]:
    """The different rows of these columns of whole numbers, and the number of each row among them."""
    codes = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        codes = codes * (int(column.max(initial=0)) + 1) + column
    _, first, numbers = np.unique(codes, return_index=True, return_inverse=True)
    return np.stack([column[first] for column in columns], axis=1).tolist(), numbers
