"""The `sort` stage: a source's rows in the order of their keys, one table for each range of keys.

For sources of more than about 10 million images. Keys are hashes, so a range holds rows from everywhere in the source,
and the rows of a range lie in few shards: what comes after this stage reads and writes a shard's rows together. What is
shuffled are rows, about 100 bytes each when packed, and not the images of a hundred times that size.

A row that is added upstream changes the table of its range, and with it that part of the download: rows appended to a
source change every range, where without `key_ranges` they are parts of their own. So this is off by default.
"""

import pyarrow as pa
import pydantic

from pipelines.flow.segments import read_segment
from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s1_download.read_tables import (
    SEGMENT_RANGES,
    SEGMENTS_FILE,
    cut_by_key,
    num_segments,
    segment_name,
    sorted_by_key,
)
from x2vlm.config import FrozenConfig
from x2vlm.samples import SAMPLE_SCHEMA, write_table


class SortConfig(FrozenConfig):
    """Into how many ranges of keys the rows are cut."""

    key_ranges: int = pydantic.Field(ge=1)


def plan_sort(config: SortConfig, inputs: Inputs) -> list[Part]:
    """One part for every segment that parts of `read` have, named by the segment; it reads that one of each of them."""
    segments = [part.segments(SEGMENTS_FILE) for artifact in inputs["rows"] for part in artifact.parts]
    parts = []
    for number in range(num_segments(config.key_ranges)):
        name = segment_name(number)
        reads = tuple(Read("rows", found[name]) for found in segments if name in found)
        if reads:
            parts.append(Part(name, reads, {"segment": number}))
    return parts


def run_sort(config: SortConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes rows-0000000.parquet and so on, numbered by range, the rows of each in the order of their keys."""
    tables = [read_segment(inputs.open(read.file)) for read in part.reads]
    table = sorted_by_key(pa.concat_tables([SAMPLE_SCHEMA.empty_table(), *tables]))
    first = int(part.spec["segment"]) * SEGMENT_RANGES
    file_rows = {}
    for number, rows in cut_by_key(table, config.key_ranges, first, min(first + SEGMENT_RANGES, config.key_ranges)):
        name = f"rows-{number:07d}.parquet"
        write_table(rows, out.path / name)
        file_rows[name] = rows.num_rows
    return PartResult({"rows": Count(table.num_rows, sum(file_rows.values()))}, file_rows)


SORT = Stage(name="sort", version=1, config_type=SortConfig, slots=("rows",), plan_parts=plan_sort, run_part=run_sort)
