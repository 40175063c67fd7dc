"""`deduplicate`: over all sources together, which rows show what another row shows, and which of them stays.

Rows that leave for another reason are not looked at: a row never gives way to one that goes itself.
"""

from collections.abc import Mapping, Sequence
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
from x2vlm.samples import write_table

CLUSTERS = "clusters.parquet"


class DeduplicateConfig(FrozenConfig):
    """What counts as a duplicate, and whether the row that stays takes over what others said about its picture."""

    rule: DuplicateConfig = DuplicateConfig()
    merge_captions: bool = False
    thresholds: ScoreThresholds = ScoreThresholds()  # of the experiment's partition


def plan_deduplicate(config: DeduplicateConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the rows and fingerprints of all sources, and earlier decisions about them."""
    files = (SCORES, FINGERPRINTS, *((EMBEDDINGS,) if config.rule.min_cosine is not None else ()))
    reads, sizes = [], []
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
    captions = _merged_captions(inputs, part, clusters) if config.merge_captions else {}
    file_rows = write_decisions(out.path, owners, _decisions(clusters, config.rule, captions))
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


def _decisions(clusters: pa.Table, rule: DuplicateConfig, captions: Mapping[str, list[dict[str, str]]]) -> pa.Table:
    limits = {"phash": rule.radius, "embedding": None if rule.min_cosine is None else 1 - rule.min_cosine}
    made: list[dict[str, Any]] = [
        {
            "key": row["key"],
            "rule": "duplicate",
            "value": row["distance"],
            "threshold": float(limits.get(row["method"]) or 0.0),
            "reason": f"shows what {row['keeper']} shows, by {row['method']}",
            "captions": [],
        }
        for row in clusters.to_pylist()
        if row["action"] == "drop"
    ]
    made += [{"key": key, "rule": "", "captions": texts} for key, texts in captions.items() if texts]
    return pa.Table.from_pylist(made, schema=DECISION_SCHEMA)


def _merged_captions(inputs: PartReader, part: Part, clusters: pa.Table) -> dict[str, list[dict[str, str]]]:
    """For every row that stays, what the rows that go for it say and it does not, in the order of their keys."""
    keeper_of = {row["key"]: row["keeper"] for row in clusters.to_pylist() if row["action"] in ("drop", "keep")}
    said: dict[str, list[dict[str, str]]] = {}
    for _, reads in split_reads(part):
        table = pq.read_table(inputs.local_path(reads[0].file), columns=["key", "captions"])
        table = table.filter(pc.is_in(table["key"], value_set=pa.array(list(keeper_of), pa.string())))
        said |= {row["key"]: row["captions"] or [] for row in table.to_pylist()}
    merged: dict[str, list[dict[str, str]]] = {}
    for key in sorted(keeper_of):
        keeper = keeper_of[key]
        known = {text["text"] for text in (*said[keeper], *merged.get(keeper, ()))}
        fresh = {text["text"]: text for text in said[key] if key != keeper and text["text"] not in known}
        merged.setdefault(keeper, []).extend(fresh.values())
    return merged


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
