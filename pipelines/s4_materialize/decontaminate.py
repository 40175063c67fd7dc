"""`decontaminate`: which rows of all sources show an image or clip of a downstream test, and what happens to them.

Test images come from the experiment's held-out sources (pixels, and variants of them), and from annotation files of
tests whose images need not be at hand (ids). All rows were compared with them before (`buckets.leaks`); one part
decides, which sees the leaks and, with policy `strict`, the rows of components with a leaking row: what shows the image
of a leaking one is in its component (`buckets`). The summary is included in every evaluation result.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.segments import segments_name, segments_of
from pipelines.flow.stage import (
    Count,
    InputFile,
    Inputs,
    Json,
    Part,
    PartReader,
    PartResult,
    PartSummary,
    PartWriter,
    Read,
    Stage,
)
from pipelines.s4_materialize.buckets.captions import write_gone
from pipelines.s4_materialize.buckets.exact import BUSY, HOMES
from pipelines.s4_materialize.buckets.leaks import (
    IDENTITIES,
    IDS,
    IMAGES,
    LEAKS,
    OWNED_LEAKS,
    index_reads,
    read_index,
)
from pipelines.s4_materialize.buckets.near import num_buckets_of
from pipelines.s4_materialize.buckets.routing import bucket_name, bucket_of, tables
from pipelines.s4_materialize.decisions import DECISION_SCHEMA, OWNED_SCHEMA, write_decisions
from pipelines.s4_materialize.decontaminate_config import DecontaminateConfig
from pipelines.s4_materialize.evidence import first_of_each_key, row_ids
from x2vlm.data.duplicates.compact_rows import expand
from x2vlm.data.duplicates.decontamination import Training, decide, summarize
from x2vlm.data.duplicates.duplicates import CLUSTER_SCHEMA, ROW_SCHEMA, DuplicateConfig, find_duplicates
from x2vlm.data.duplicates.identities import ID_SCHEMA
from x2vlm.data.duplicates.leaks import LEAK_SCHEMA
from x2vlm.samples import write_table

SUMMARY = "contamination.json"
CERTAIN = ("id", "sha256", "pixels")  # exact methods


def plan_decontaminate(config: DecontaminateConfig, inputs: Inputs) -> list[Part]:
    """One part that reads all leaks, the tests, and keys and components of rows that are not alone.

    Rows of components are opened as far as they are needed; listings, which it reads, name them by sha256.
    """
    leaks = [part for one in inputs["leaks"] for part in one.parts]
    exact = [part for one in inputs["exact"] for part in one.parts]
    reads = [Read("leaks", part.file(LEAKS)) for part in leaks]
    reads += index_reads(inputs, IMAGES, IDS, IDENTITIES)
    names = {segments_name(HOMES), BUSY}
    reads += [Read("exact", file) for part in exact for file in part.files if file.path in names]
    lookups = [Read("exact", file) for part in exact for file in part.files if file.path == HOMES]
    owners = [name for part in leaks for name in part.summary["owners"]]
    spec = {"owners": owners, "buckets": num_buckets_of(inputs, "exact")}
    return [Part("all", tuple(reads), spec, tuple(lookups))]


def decontaminate_part(config: DecontaminateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """leaks.parquet (every leak and its action), contamination.json, and the decisions about every part's rows."""
    owned = pa.concat_tables(
        [
            OWNED_LEAKS.empty_table(),
            *(pq.read_table(inputs.local_path(read.file)) for read in part.reads if read.slot == "leaks"),
        ]
    )
    evaluation, identities = read_index(inputs, part.reads, IDENTITIES)
    is_strict = config.rule.policy == "strict"
    related = _related_rows(inputs, part, owned["key"]) if is_strict else _nothing()
    leaks = decide(owned.select(LEAK_SCHEMA.names), _training(config, related), identities, config.rule)
    summary = summarize(leaks, evaluation, config.rule)
    write_table(leaks, out.path / LEAKS)
    (out.path / SUMMARY).write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    decisions = _decisions(leaks)
    owners = pa.concat_tables([owned.select(["key", "owner"]), related.select(["key", "owner"])])
    file_rows = write_decisions(out.path, _owned(decisions, owners))
    busy = [read.file for read in part.reads if read.file.path == BUSY]
    file_rows |= write_gone(out, decisions["key"].to_pylist(), inputs, busy, part.spec["buckets"])
    count = Count(decisions.num_rows, decisions.num_rows)  # of decisions: rows are dropped in `partition`
    facts = {"contamination": summary, "owners": part.spec["owners"]}
    return PartResult({"rows": count}, {**file_rows, LEAKS: leaks.num_rows}, facts)


def _nothing() -> pa.Table:
    texts = [(name, pa.string()) for name in ("owner", "source_row", "url")]
    return pa.schema([*ROW_SCHEMA, *texts]).empty_table()


def _related_rows(inputs: PartReader, part: Part, keys: pa.ChunkedArray) -> pa.Table:
    """The rows of all components with one of `keys`, in the order of sources, parts and rows."""
    wanted = pa.array([bytes.fromhex(key) for key in pc.unique(keys).to_pylist()], pa.binary(16))
    labels = [np.empty(0, np.uint64)]
    for read in part.reads:
        if read.file.path == BUSY and len(wanted):
            rows = pq.read_table(inputs.local_path(read.file))
            labels.append(rows["label"].filter(pc.is_in(rows["key"], value_set=wanted)).to_numpy())
    hot = np.unique(np.concatenate(labels))
    homes = sorted({bucket_name(int(one)) for one in bucket_of(hot, part.spec["buckets"])})
    found = [
        table.filter(pc.is_in(table["label"], value_set=pa.array(hot)))
        for table in tables(inputs, list(_home_files(inputs, part, homes)))
    ]
    if not found:
        return _nothing()
    return expand(pa.concat_tables(found).sort_by([("owner", "ascending"), ("row", "ascending")]))


def _home_files(inputs: PartReader, part: Part, homes: Sequence[str]) -> Iterator[InputFile]:
    """The segments of these buckets of components, of all files that have some."""
    listings = [read.file for read in part.reads if read.file.path == segments_name(HOMES)]
    for file, listing in zip((read.file for read in part.lookups), listings, strict=True):
        segments = segments_of(file, inputs.local_path(listing).read_bytes()) if homes else {}
        yield from (segments[home] for home in homes if home in segments)


def _training(config: DecontaminateConfig, related: pa.Table) -> Training:
    """What `decide` needs of the rows that may show a leaking one's image, duplicates among them included."""
    if not related.num_rows:
        return Training(related, ID_SCHEMA.empty_table())
    ids = []
    sources = np.array([int(name.partition("-")[0]) for name in related["owner"].to_pylist()])
    for source in np.unique(sources).tolist():
        ids.append(row_ids(related.filter(pa.array(sources == source)), config.readers[source]))
    rows = first_of_each_key(related)
    rule = DuplicateConfig(
        radius=config.rule.radius, min_correlation=config.rule.min_correlation, min_cosine=config.rule.min_cosine
    )
    clusters = find_duplicates(rows, rule) if rows.num_rows else CLUSTER_SCHEMA.empty_table()
    return Training(rows, pa.concat_tables([ID_SCHEMA.empty_table(), *ids]), clusters)


def _owned(decisions: pa.Table, owners: pa.Table) -> pa.Table:
    """Each decision for every part that has the row, as OWNED_SCHEMA."""
    owners = owners.group_by(["key", "owner"]).aggregate([])
    place = pc.index_in(owners["key"], value_set=decisions["key"].combine_chunks())
    known = pc.is_valid(place)
    made = decisions.take(place.filter(known)).append_column("owner", owners["owner"].filter(known))
    return made.cast(OWNED_SCHEMA)


def _decisions(leaks: pa.Table) -> pa.Table:
    """One decision for every dropped row: its most certain leak, and the number of others."""
    found: dict[str, list[dict[str, Any]]] = {}
    for leak in leaks.filter(pc.equal(leaks["action"], "drop")).to_pylist():
        found.setdefault(leak["key"], []).append(leak)
    made = []
    for key, own in found.items():
        leak = min(own, key=lambda one: (one["via"] != "", one["method"] not in CERTAIN))  # of equals the first
        via = f", as does {leak['via']}" if leak["via"] else ""
        others = f", and {len(own) - 1} more" if len(own) > 1 else ""
        reason = f"shows {leak['eval_set']} {leak['split']} {leak['eval_id']}, by {leak['method']}{via}{others}"
        made.append({"key": key, "rule": "leaked", "value": leak["score"], "threshold": None, "reason": reason})
    return pa.Table.from_pylist(made, schema=DECISION_SCHEMA)


def finish_decontaminate(config: DecontaminateConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The summary of the only part."""
    return {"contamination": parts[0].summary["contamination"]}


DECONTAMINATE = Stage(
    name="decontaminate",
    version=3,  # 3: sees leaks and components, no longer all rows
    config_type=DecontaminateConfig,
    slots=("leaks", "index", "exact"),
    plan_parts=plan_decontaminate,
    run_part=decontaminate_part,
    finish=finish_decontaminate,
    allow_zero_rows=True,
)

__all__ = ["DECONTAMINATE", "DecontaminateConfig"]
