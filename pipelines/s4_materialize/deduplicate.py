"""`deduplicate`: over all sources together, which rows show what another row shows, and which of them stays.

Rows that leave for another reason are not looked at: a row never gives way to one that goes itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.stage import Count, Inputs, Json, Part, PartReader, PartResult, PartSummary, PartWriter, Read, Stage
from pipelines.s4_materialize.decisions import DECISION_SCHEMA, decisions_about, rows_parts, write_decisions
from pipelines.s4_materialize.evidence import EMBEDDINGS, FINGERPRINTS, SCORES, read_evidence
from pipelines.s4_materialize.thresholds import ScoreThresholds, score_drops
from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates import DuplicateConfig, count_duplicates, find_duplicates
from x2vlm.data.merging import merge_captions, merge_concepts
from x2vlm.samples import Sample, samples_of, write_table

CLUSTERS = "clusters.parquet"


class DeduplicateConfig(FrozenConfig):
    """What counts as a duplicate, and what the row that stays takes over from those that go (`x2vlm.data.merging`)."""

    rule: DuplicateConfig = DuplicateConfig()
    merge_captions: bool = False
    merge_concepts: bool = False  # of pictures with the same pixels only
    thresholds: ScoreThresholds = ScoreThresholds()  # of the experiment's partition


def plan_deduplicate(config: DeduplicateConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the rows and fingerprints of all sources, and earlier decisions about them."""
    files = (SCORES, FINGERPRINTS, *((EMBEDDINGS,) if config.rule.min_cosine is not None else ()))
    reads: list[Read] = []
    sizes: list[list[Json]] = []
    for part in rows_parts(inputs, "deduplicate"):
        own = (*part.reads(*files), *decisions_about(part, inputs))
        reads += own
        sizes.append([part.name, len(own)])
    return [Part("all", tuple(reads), {"parts": sizes})]


def deduplicate_part(config: DeduplicateConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """clusters.parquet and the decisions about every part's rows."""
    evidence, owners = [], []
    for name, reads in split_reads(part):
        table = read_evidence(inputs, reads, config.thresholds.score, config.rule.min_cosine is not None)
        owners.append((f"decisions-{name}.parquet", table["key"].to_pylist()))
        evidence.append(table.filter(pa.array(stays(config.thresholds, table, inputs, reads))))
    rows = pa.concat_tables(evidence)
    clusters = find_duplicates(rows, config.rule)
    additions = list(_additions(config, inputs, part, clusters))
    file_rows = write_decisions(out.path, owners, _decisions(clusters, config.rule, additions))
    write_table(clusters, out.path / CLUSTERS)
    num_rows = sum(len(keys) for _, keys in owners)
    return PartResult(
        {"rows": Count(num_rows, num_rows)},  # of decisions asked for: rows leave in `partition`
        {**file_rows, CLUSTERS: clusters.num_rows},
        {**count_duplicates(clusters), "rows_compared": rows.num_rows},
    )


def split_reads(part: Part) -> list[tuple[str, list[Read]]]:
    """The reads of each part of the rows, which `plan` put one after another."""
    found, start = [], 0
    for name, size in part.spec["parts"]:
        found.append((name, list(part.reads[start : start + size])))
        start += size
    return found


def stays(thresholds: ScoreThresholds, rows: pa.Table, inputs: PartReader, reads: Sequence[Read]) -> np.ndarray:
    """True for rows that no score and no earlier decision takes out."""
    keep, _ = score_drops(thresholds, rows)
    for read in reads:
        if read.slot == "decisions":
            decisions = pq.read_table(inputs.local_path(read.file), columns=["key", "rule"])
            gone = decisions.filter(pc.not_equal(decisions["rule"], ""))["key"]
            keep &= ~pc.is_in(rows["key"], value_set=gone.combine_chunks()).to_numpy(zero_copy_only=False)
    return keep


def _decisions(clusters: pa.Table, rule: DuplicateConfig, additions: Sequence[dict[str, Any]]) -> pa.Table:
    limits = {"phash": rule.radius, "embedding": None if rule.min_cosine is None else 1 - rule.min_cosine}
    made: list[dict[str, Any]] = [
        {
            "key": row["key"],
            "rule": "duplicate",
            "value": row["distance"],
            "threshold": float(limits.get(row["method"]) or 0.0),
            "reason": f"shows what {row['keeper']} shows, by {row['method']}",
        }
        for row in clusters.to_pylist()
        if row["action"] == "drop"
    ]
    return pa.Table.from_pylist([*made, *additions], schema=DECISION_SCHEMA)


def _additions(
    config: DeduplicateConfig, inputs: PartReader, part: Part, clusters: pa.Table
) -> Iterator[dict[str, Any]]:
    """A decision for every row that takes over something: the captions and concepts that it gets behind its own."""
    going: dict[str, dict[str, str]] = {}  # keeper -> key of a row that goes for it -> how they match
    for row in clusters.to_pylist():
        if row["action"] == "drop":
            going.setdefault(row["keeper"], {})[row["key"]] = row["method"]
    if not going or not (config.merge_captions or config.merge_concepts):
        return
    wanted = pa.array(sorted({*going, *(key for keys in going.values() for key in keys)}), pa.string())
    samples: dict[str, Sample] = {}
    for _, reads in split_reads(part):
        rows = pq.read_table(inputs.local_path(reads[0].file), filters=pc.field("key").isin(wanted))
        samples |= {sample.key: sample for sample in samples_of(rows)}
    for key in sorted(going):
        keeper, others = samples[key], [(samples[other], method) for other, method in going[key].items()]
        added: dict[str, Any] = {}
        if config.merge_captions:
            merged = merge_captions(keeper, [sample for sample, _ in others])
            added["captions"] = [asdict(one) for one in merged.captions[len(keeper.captions) :]]
        if config.merge_concepts:
            merged = merge_concepts(keeper, others)
            added["concepts"] = [asdict(one) for one in merged.concepts[len(keeper.concepts) :]]
        if any(added.values()):
            yield {"key": key, "rule": "", **added}


def finish_deduplicate(config: DeduplicateConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The counts of the only part."""
    return dict(parts[0].summary)


DEDUPLICATE = Stage(
    name="deduplicate",
    version=1,
    config_type=DeduplicateConfig,
    slots=("rows", "scores", "decisions"),
    plan_parts=plan_deduplicate,
    run_part=deduplicate_part,
    finish=finish_deduplicate,
)
