"""The rows that `partition` hands to `pack`: which shard a key belongs to, and how rows of many shards lie in one file.

The keys of samples are hashes of 128 bits. A shard is a range of them, and its rows lie in the order of their keys: the
rows of a part that come from a range of keys then belong to few shards. A file of a part has a segment for each slice,
a range of about a hundredth of all shards, and in it a group for each shard (`pipelines.flow.segments`): a segment for
each shard would cost more than its rows where a part has a row or two of each.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.flow.row_digests import digests_of_runs
from pipelines.flow.segments import Group, SegmentWriter, combined, read_segment
from pipelines.flow.stage import InputFile, PartReader
from x2vlm.data.shards.shard import SCORED_SCHEMA
from x2vlm.errors import CorruptArtifact

ROWS = "rows.arrow"
MAX_SLICES = 100  # of a part's file
# Where the payload of a row lies in the media pack of the part that downloaded it. It is not part of a group's digest:
# a pack may be written anew, with other media around those of a shard, without the shard being written again.
PLACE_TYPE = pa.struct([("offset", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())])
PLACE = pa.field("place", PLACE_TYPE)
PLACED_SCHEMA = SCORED_SCHEMA.append(PLACE)


def shard_of(key: str, num_shards: int) -> int:
    """The shard of the sample `key`: the place of its first 64 bits among all such numbers, in `num_shards` ranges."""
    return int(key[:16], 16) * num_shards >> 64


def shards_of(keys: pa.ChunkedArray, num_shards: int) -> NDArray[np.int64]:
    """`shard_of` every key; CorruptArtifact for one that is no hexadecimal number of 32 digits."""
    texts = keys.to_pylist()
    try:
        numbers = np.array([int(key[:16], 16) for key in texts], dtype=np.uint64)
    except (ValueError, TypeError):
        numbers = None
    if numbers is None or any(len(key) != 32 for key in texts):
        wrong = next(key for key in texts if not _is_key(key))
        raise CorruptArtifact(f"{wrong!r} is no key of a sample: 32 hexadecimal digits; rerun the read stage")
    # numbers * num_shards needs up to 81 bits, so it is put together from halves.
    high, low, half = numbers >> np.uint64(32), numbers & np.uint64(0xFFFFFFFF), np.uint64(32)
    shards = np.uint64(num_shards)
    found: NDArray[np.int64] = (((high * shards) + (low * shards >> half)) >> half).astype(np.int64)
    return found


def numbered(shard: int) -> str:
    """The number of a shard as it stands in names."""
    return f"{shard:05d}"


def write_slices(folder: Path, rows: pa.Table, num_shards: int) -> dict[str, int]:
    """Write `rows` (PLACED_SCHEMA) to the file ROWS in `folder`, in the order of their keys; rows by file name."""
    rows = rows.select(PLACED_SCHEMA.names).cast(PLACED_SCHEMA).sort_by("key").combine_chunks()
    shards = shards_of(rows["key"], num_shards)
    numbers, starts = np.unique(shards, return_index=True)
    ends = [*starts[1:].tolist(), len(shards)] if len(shards) else []
    # Of all rows at once: each call looks at every column, and there are a hundred slices.
    digests = digests_of_runs(rows.select(SCORED_SCHEMA.names), ends)
    groups = [
        Group(numbered(shard), digest, end - start)
        for shard, digest, start, end in zip(numbers.tolist(), digests, starts.tolist(), ends, strict=True)
    ]
    with SegmentWriter(folder / ROWS) as writer:
        for (first, last), start, own in _slices(shards, num_shards):
            of_slice = slice(*np.searchsorted(numbers, (first, last + 1)).tolist())
            writer.add(f"{numbered(first)}-{numbered(last)}", rows.slice(start, len(own)), groups[of_slice])
    return writer.file_rows


def rows_of_shard(
    inputs: PartReader, slices: Sequence[InputFile], shard: int, num_shards: int, sha256: str
) -> tuple[pa.Table, NDArray[np.int64]]:
    """The rows of a shard (PLACED_SCHEMA) in the order of `slices`, and which of these each is from.

    `sha256` is that of the `read_of_groups`; CorruptArtifact if the rows are not those.
    """
    tables = [PLACED_SCHEMA.empty_table()]
    for file in slices:
        table = read_segment(inputs.open(file))
        own = np.flatnonzero(shards_of(table["key"], num_shards) == shard)
        # Rows of a slice are in the order of their keys, so those of a shard are neighbours.
        tables.append(table.slice(int(own[0]), len(own)) if len(own) else table.slice(0, 0))
    rows = pa.concat_tables([table.cast(PLACED_SCHEMA) for table in tables]).combine_chunks()
    lengths = [table.num_rows for table in tables[1:]]
    digests = digests_of_runs(rows.select(SCORED_SCHEMA.names), np.cumsum(lengths, dtype=np.int64).tolist())
    if combined(digests) != sha256:
        places = ", ".join(file.uri for file in slices[:3])
        raise CorruptArtifact(
            f"shard {shard}: its {rows.num_rows} rows in {len(slices)} files ({places}, ...) are not those that the "
            "listings of these files promise; rerun partition with --force"
        )
    return rows, np.repeat(np.arange(len(slices)), lengths)


def _slices(shards: NDArray[np.int64], num_shards: int) -> Iterator[tuple[tuple[int, int], int, NDArray[np.int64]]]:
    """Of each slice with rows: its first and last shard, the number of its first row, and the shard of every row."""
    num_slices = min(num_shards, MAX_SLICES)
    slices = shards * num_slices // num_shards
    numbers, starts = np.unique(slices, return_index=True)
    for number, start, end in zip(numbers.tolist(), starts.tolist(), [*starts[1:].tolist(), len(shards)], strict=False):
        first, following = (-(-one * num_shards // num_slices) for one in (number, number + 1))
        yield (first, following - 1), start, shards[start:end]


def _is_key(text: object) -> bool:
    return isinstance(text, str) and len(text) == 32 and set(text) <= set("0123456789abcdef")
