"""`deduplicate`: over all sources together, which rows show the same image, and which of them is kept.

The comparison is done in buckets (`pipelines.s4_materialize.buckets`, up to `stars`); here what was decided there is
collected by the part of the rows, a group of parts at a time.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.flow.stage import Count, Inputs, Json, Part, PartReader, PartResult, PartSummary, PartWriter, Stage
from pipelines.s4_materialize.buckets.routing import SegmentReads, tables
from pipelines.s4_materialize.decisions import DECISIONS, OWNED_SCHEMA, groups_of, rows_parts, write_decisions
from pipelines.s4_materialize.deduplicate_config import DeduplicateConfig


def plan_deduplicate(config: DeduplicateConfig, inputs: Inputs) -> list[Part]:
    """One part a group of parts of the rows, with what each bucket decided about them."""
    decided = SegmentReads("decisions", inputs["decisions"], DECISIONS)
    parts = []
    for name, own in groups_of(rows_parts(inputs, "deduplicate")).items():
        num_rows = sum(part.rows.file("rows.parquet").rows or 0 for part in own)
        parts.append(Part(name, tuple(decided.of(name)), {"owners": [part.name for part in own], "rows": num_rows}))
    return parts


def deduplicate_part(config: DeduplicateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """The decisions about every part's rows."""
    found = list(tables(inputs, [read.file for read in part.reads]))
    decisions = pa.concat_tables([OWNED_SCHEMA.empty_table(), *found])
    file_rows = write_decisions(out.path, decisions)
    rules = Counter(rule for rule in decisions["rule"].to_pylist() if rule)
    num_added = pc.sum(pc.equal(decisions["rule"], "")).as_py() or 0
    num_rows = part.spec["rows"]
    return PartResult(
        {"rows": Count(num_rows, num_rows)},  # of decisions: rows are dropped in `partition`
        file_rows,
        {"owners": part.spec["owners"], "dropped": dict(sorted(rules.items())), "keepers_with_additions": num_added},
    )


def finish_deduplicate(config: DeduplicateConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """Dropped rows by rule, and keepers that take something over; a row of two parts counts twice."""
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.summary["dropped"])
    added = sum(part.summary["keepers_with_additions"] for part in parts)
    return {"dropped": dict(sorted(dropped.items())), "keepers_with_additions": added}


DEDUPLICATE = Stage(
    name="deduplicate",
    version=2,  # 2: collects what `stars` decided in buckets
    config_type=DeduplicateConfig,
    slots=("rows", "scores", "decisions"),
    plan_parts=plan_deduplicate,
    run_part=deduplicate_part,
    finish=finish_deduplicate,
    allow_zero_rows=True,  # of a source that says nothing of its rows
)

__all__ = ["DEDUPLICATE", "DeduplicateConfig"]
