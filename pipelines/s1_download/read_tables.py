"""What a part of `read` writes: its rows in upstream order as tables of so many rows, or by key as segments; its drops.

With `key_ranges` a source's rows leave in the order of their keys, which are hashes. The keys are cut into so many
equal ranges: range = floor(key64 * N / 2^64), `key64` being the first 8 bytes of a key. Each part of `read` sorts its
rows and writes one segment for every SEGMENT_RANGES ranges (`pipelines.flow.segments`); each part of `sort`
(`pipelines.s1_download.sort`) reads one segment of every part and writes one table a range.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.segments import SegmentWriter
from pipelines.flow.stage import Count
from pipelines.s1_download.read_set import write_members
from x2vlm.data.readers.own.files import Member
from x2vlm.samples import DROP_SCHEMA, SAMPLE_SCHEMA, Drop, Sample, drop_table, sample_table, write_table

UNITS = ("rows", "concepts", "captions")
SEGMENTS_FILE = "rows.arrow"
SEGMENT_RANGES = 128  # of a segment: 10,000 rows each are 1.3 million rows in a part of `sort`, about 1 GB
SORT_ROWS = 10_000  # held as samples before they become a table


def num_segments(key_ranges: int) -> int:
    """How many segments the parts of `read` cut their rows into."""
    return -(-key_ranges // SEGMENT_RANGES)


def segment_name(number: int) -> str:
    return f"{number:05d}"


def sorted_by_key(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table["key"]))


def cut_by_key(
    table: pa.Table, key_ranges: int, first: int, last: int, step: int = 1
) -> Iterator[tuple[int, pa.Table]]:
    """(range, its rows) of a table that is sorted by key, for every `step`-th range of `first` to `last`; a step of
    more than one takes that many ranges together. Ranges without rows are left out."""
    keys = table["key"].to_pylist()
    for start in range(first, last, step):
        begin, end = (bisect_left(keys, _first_key(min(at, last), key_ranges)) for at in (start, start + step))
        if end > begin:
            yield start, table.slice(begin, end - begin)


def _first_key(number: int, key_ranges: int) -> str:
    """What all keys of this range and of later ones are not below."""
    return f"{-(-(number << 64) // key_ranges):016x}" if number < key_ranges else "g"


class RowTables:
    """The output files, written as they fill up, and how much went into them."""

    def __init__(self, folder: Path, rows_per_file: int, has_members: bool, key_ranges: int | None) -> None:
        self.file_rows: dict[str, int] = {}
        self._folder = folder
        self._rows_per_file = SORT_ROWS if key_ranges else rows_per_file
        self._key_ranges = key_ranges
        self._to_sort: list[pa.Table] = []
        self._samples: list[Sample] = []
        self._members: list[tuple[str, Member]] | None = [] if has_members else None
        self._num_files = 0
        self._drops: list[Drop] = []
        self._out: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = {unit: Counter() for unit in UNITS}
        self._drop_file = pq.ParquetWriter(folder / "drops.parquet", DROP_SCHEMA, compression="zstd")
        self._num_drops = 0
        self.num_hashes = 0  # rows that say what their bytes should be

    def add(self, item: Sample | Drop, member: Member | None) -> None:
        if isinstance(item, Drop):
            self._dropped[f"{item.unit}s"][item.rule] += 1
            self._drops.append(item)
            if len(self._drops) == 10_000:
                self._write_drops()
            return
        self.num_hashes += bool(item.published_hash)
        self._samples.append(item)
        if self._members is not None and member is not None:
            self._members.append((item.key, member))
        if len(self._samples) == self._rows_per_file:
            self._write_samples()

    def close(self) -> None:
        if self._samples:
            self._write_samples()
        if self._key_ranges is not None:
            self._write_segments(self._key_ranges)
        self._write_drops()
        self._drop_file.close()
        self.file_rows["drops.parquet"] = self._num_drops

    def count(self, unit: str, num_in: int) -> Count:
        """The balance of a unit; whether it adds up is for the engine to check."""
        return Count(num_in, self._out[unit], dict(sorted(self._dropped[unit].items())))

    def _write_samples(self) -> None:
        self._out["rows"] += len(self._samples)
        self._out["concepts"] += sum(len(sample.concepts) for sample in self._samples)
        self._out["captions"] += sum(len(sample.captions) for sample in self._samples)
        if self._key_ranges is not None:
            self._to_sort.append(sample_table(self._samples))
            self._samples = []
            return
        digits = f"{self._num_files:05d}"
        name = f"rows-{digits}.parquet"
        write_table(sample_table(self._samples), self._folder / name)
        self.file_rows[name] = len(self._samples)
        if self._members is not None:
            write_members(self._members, self._folder / f"members-{digits}.parquet")
            self.file_rows[f"members-{digits}.parquet"] = len(self._members)
            self._members = []
        self._num_files += 1
        self._samples = []

    def _write_segments(self, key_ranges: int) -> None:
        table = sorted_by_key(pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *self._to_sort]))
        self._to_sort = []
        with SegmentWriter(self._folder / SEGMENTS_FILE) as writer:
            for start, rows in cut_by_key(table, key_ranges, 0, key_ranges, SEGMENT_RANGES):
                writer.add(segment_name(start // SEGMENT_RANGES), rows)
        self.file_rows |= writer.file_rows

    def _write_drops(self) -> None:
        self._drop_file.write_table(drop_table(self._drops))
        self._num_drops += len(self._drops)
        self._drops = []
