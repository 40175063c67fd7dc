"""`stars`: which rows of a component show the same image, and which of them is kept.

A part has one bucket of components. Rows that are dropped for another reason are excluded: a row is never dropped in
favour of a row that is dropped itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.flow.segments import SegmentWriter
from pipelines.flow.stage import Count, Inputs, Json, Part, PartReader, PartResult, PartSummary, PartWriter, Stage
from pipelines.s4_materialize.buckets.exact import HOMES
from pipelines.s4_materialize.buckets.near import num_buckets_of
from pipelines.s4_materialize.buckets.routing import SegmentReads, bucket_name, of_file, tables
from pipelines.s4_materialize.decisions import DECISION_SCHEMA, DECISIONS, OWNED_SCHEMA
from pipelines.s4_materialize.deduplicate_config import DeduplicateConfig
from pipelines.s4_materialize.evidence import TEXT_COLUMNS, first_of_each_key
from pipelines.s4_materialize.thresholds import score_drops
from x2vlm.data.duplicates.compact_rows import expand
from x2vlm.data.duplicates.duplicates import CLUSTER_SCHEMA, DuplicateConfig, count_duplicates, find_duplicates
from x2vlm.data.duplicates.merging import merge_captions, merge_concepts
from x2vlm.samples import SAMPLE_SCHEMA, Sample, samples_of, write_table

CLUSTERS, GONE = "clusters.parquet", "gone.arrow"


def plan_stars(config: DeduplicateConfig, inputs: Inputs) -> list[Part]:
    """One part a bucket of components, with what was decided before about its rows."""
    num_buckets = num_buckets_of(inputs, "rows")
    homes, gone = SegmentReads("rows", inputs["rows"], HOMES), SegmentReads("decisions", inputs["decisions"], GONE)
    names = [bucket_name(bucket) for bucket in range(num_buckets)]
    return [Part(name, tuple([*homes.of(name), *gone.of(name)])) for name in names]


def stars_part(config: DeduplicateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """clusters.parquet, and a segment of decisions for every group of parts of the rows."""
    rows = rows_at_home(inputs, part)
    if rows is None:
        write_table(CLUSTER_SCHEMA.empty_table(), out.path / CLUSTERS)
        with SegmentWriter(out.path / DECISIONS) as writer:
            pass
        return PartResult({"rows": Count(0, 0)}, {CLUSTERS: 0, **writer.file_rows}, _summary([]))
    keep, _ = score_drops(config.thresholds, rows)
    gone = [table["key"].combine_chunks() for table in tables(inputs, of_file(part.reads, GONE))]
    is_gone = pc.is_in(rows["key"], value_set=pa.concat_arrays([pa.array([], pa.string()), *gone]))
    kept = first_of_each_key(rows.filter(pc.and_(pa.array(keep, pa.bool_()), pc.invert(is_gone))))
    clusters = find_duplicates(kept, config.rule)
    dropped = [row for row in clusters.to_pylist() if row["action"] == "drop"]
    decisions = [*_duplicates(dropped, config.rule), *_additions(config, kept, dropped)]
    file_rows = write_by_group(out, rows, decisions)
    write_table(clusters, out.path / CLUSTERS)
    count = {"rows": Count(rows.num_rows, rows.num_rows)}  # of decisions: rows are dropped in `partition`
    return PartResult(count, {**file_rows, CLUSTERS: clusters.num_rows}, _summary([count_duplicates(clusters)]))


def rows_at_home(inputs: PartReader, part: Part) -> pa.Table | None:
    """The rows of whole components, in the order of sources, parts and rows; None if there are none."""
    found = list(tables(inputs, of_file(part.reads, HOMES)))
    if not found:
        return None
    return expand(pa.concat_tables(found).sort_by([("owner", "ascending"), ("row", "ascending")]))


def write_by_group(out: PartWriter, rows: pa.Table, decisions: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Decisions about keys of `rows`, by the group of each row with that key; rows by file name."""
    made = pa.Table.from_pylist(list(decisions), schema=DECISION_SCHEMA)
    places = rows.select(["key", "owner", "group"])
    place = pc.index_in(places["key"], value_set=made["key"].combine_chunks())
    known = pc.is_valid(place)
    places = places.filter(known)
    owned = made.take(place.filter(known)).append_column("owner", places["owner"]).cast(OWNED_SCHEMA)
    with SegmentWriter(out.path / DECISIONS) as writer:
        for group in sorted(pc.unique(places["group"]).to_pylist()):
            own = owned.filter(pc.equal(places["group"], group))
            writer.add(group, own.sort_by([("owner", "ascending"), ("key", "ascending")]))
    return writer.file_rows


def _duplicates(dropped: Sequence[Mapping[str, Any]], rule: DuplicateConfig) -> Iterator[dict[str, Any]]:
    limits = {"phash": rule.radius, "embedding": None if rule.min_cosine is None else 1 - rule.min_cosine}
    for row in dropped:
        yield {
            "key": row["key"],
            "rule": "duplicate",
            "value": row["distance"],
            "threshold": float(limits.get(row["method"]) or 0.0),
            "reason": f"shows what {row['keeper']} shows, by {row['method']}",
        }


def _additions(
    config: DeduplicateConfig, rows: pa.Table, dropped: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A decision for every keeper with additions: the captions and concepts appended to its own."""
    if not dropped or not (config.merge_captions or config.merge_concepts):
        return
    duplicates_of: dict[str, dict[str, str]] = {}  # keeper -> key of a dropped duplicate -> method of the match
    for row in dropped:
        duplicates_of.setdefault(row["keeper"], {})[row["key"]] = row["method"]
    wanted = pa.array(sorted({*duplicates_of, *(row["key"] for row in dropped)}), pa.string())
    samples = {one.key: one for one in _samples(rows.filter(pc.is_in(rows["key"], value_set=wanted)))}
    for key in sorted(duplicates_of):
        keeper, others = samples[key], [(samples[other], method) for other, method in duplicates_of[key].items()]
        added: dict[str, Any] = {}
        if config.merge_captions:
            merged = merge_captions(keeper, [sample for sample, _ in others])
            added["captions"] = [asdict(one) for one in merged.captions[len(keeper.captions) :]]
        if config.merge_concepts:
            merged = merge_concepts(keeper, others)
            added["concepts"] = [asdict(one) for one in merged.concepts[len(keeper.concepts) :]]
        if any(added.values()):
            yield {"key": key, "rule": "", **added}


def _samples(rows: pa.Table) -> list[Sample]:
    """The rows as samples, as far as is known of them here: names and texts."""
    known = {name: rows[name] for name in ("key", "source", "source_row", "kind", *TEXT_COLUMNS)}
    return samples_of(
        pa.table({one.name: known.get(one.name, pa.nulls(rows.num_rows, one.type)) for one in SAMPLE_SCHEMA})
    )


def _summary(counts: Sequence[Mapping[str, Any]]) -> dict[str, Json]:
    """Counts of `count_duplicates` added up."""
    total: dict[str, Json] = {"clusters": 0, "actions": {}, "dropped_by_method": {}, "dropped_by_source": {}}
    for one in counts:
        total["clusters"] += one["clusters"]
        for name in ("actions", "dropped_by_method", "dropped_by_source"):
            for value, count in one[name].items():
                total[name][value] = total[name].get(value, 0) + count
    return {name: dict(sorted(value.items())) if isinstance(value, dict) else value for name, value in total.items()}


def finish_stars(config: DeduplicateConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The counts of all buckets; a cluster has all its rows in one."""
    return _summary([part.summary for part in parts])


STARS = Stage(
    name="stars",
    version=1,
    config_type=DeduplicateConfig,
    slots=("rows", "decisions"),
    plan_parts=plan_stars,
    run_part=stars_part,
    finish=finish_stars,
    allow_zero_rows=True,
)
