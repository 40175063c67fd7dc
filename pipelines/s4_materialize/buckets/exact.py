"""`exact`: the rows that may show what another one shows, together by component.

A part has one bucket of looks. Of most rows it reads 8 bytes: those that are alone with their look and linked to none
end here. The others go to the bucket of their component, where all that it could be compared with is.
"""

import numpy as np
import pyarrow as pa

from pipelines.flow.stage import Count, Inputs, Part, PartReader, PartResult, PartWriter, Stage
from pipelines.s4_materialize.buckets.evidence_rows import ROWS
from pipelines.s4_materialize.buckets.near import LABELS, ComponentsConfig, num_buckets_of
from pipelines.s4_materialize.buckets.routing import (
    SegmentReads,
    bucket_name,
    bucket_of,
    of_file,
    tables,
    write_routed,
)
from x2vlm.data.duplicates.components import busy_rows
from x2vlm.samples import write_table

HOMES, BUSY = "homes.arrow", "busy.parquet"


def plan_exact(config: ComponentsConfig, inputs: Inputs) -> list[Part]:
    """One part a bucket of looks."""
    num_buckets = num_buckets_of(inputs, "evidence")
    rows, labels = (
        SegmentReads(slot, inputs[slot], name) for slot, name in (("evidence", ROWS), ("components", LABELS))
    )
    spec = {"buckets": num_buckets}
    names = [bucket_name(bucket) for bucket in range(num_buckets)]
    return [Part(name, tuple([*rows.of(name), *labels.of(name)]), spec) for name in names]


def exact_part(config: ComponentsConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """homes.arrow, a segment for every bucket of components, and busy.parquet with keys and components alone."""
    files, num_buckets = of_file(part.reads, ROWS), part.spec["buckets"]
    nodes = [table["node"].to_numpy() for table in tables(inputs, files, ["node"])]
    none = np.empty(0, np.uint64)
    known = [(one["node"].to_numpy(), one["label"].to_numpy()) for one in tables(inputs, of_file(part.reads, LABELS))]
    labelled, label = (np.concatenate(column) for column in zip((none, none), *known, strict=True))
    busy, name = busy_rows(np.concatenate([none, *nodes]), labelled, label)
    num_rows, taken, start = sum(map(len, nodes)), [], 0
    for size, table in zip(map(len, nodes), tables(inputs, files), strict=True):
        own = slice(*np.searchsorted(busy, [start, start + size]))
        found = table.take(pa.array(busy[own] - start))
        taken.append(found.append_column("label", pa.array(name[own])))
        start += size
    file_rows: dict[str, int] = {}
    if taken:
        rows = pa.concat_tables(taken).combine_chunks()
        place = bucket_of(rows["label"].to_numpy(), num_buckets)
        file_rows |= write_routed(out.path / HOMES, rows, place, bucket_name)
        write_table(rows.select(["key", "label"]), out.path / BUSY)
        file_rows[BUSY] = rows.num_rows
    summary = {"buckets": num_buckets, "metrics": {"busy_rows": len(busy)}}
    return PartResult({"rows": Count(num_rows, num_rows)}, file_rows, summary)


EXACT = Stage(
    name="exact",
    version=1,
    config_type=ComponentsConfig,
    slots=("evidence", "components"),
    plan_parts=plan_exact,
    run_part=exact_part,
)
