"""`deduplicate`: over all sources together, which rows show the same image, and which of them is kept.

Rows that are dropped for another reason are excluded: a row is never dropped in favour of a row that is dropped itself.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipelines.flow.stage import Count, Inputs, Json, Part, PartReader, PartResult, PartSummary, PartWriter, Read, Stage
from pipelines.s4_materialize.decisions import (
    DECISION_SCHEMA,
    decisions_about,
    decisions_name,
    rows_parts,
    write_decisions,
)
from pipelines.s4_materialize.evidence import EMBEDDINGS, FINGERPRINTS, SCORES, evidence_of, read_evidence
from pipelines.s4_materialize.thresholds import ScoreThresholds, score_drops
from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.duplicates import DuplicateConfig, count_duplicates, find_duplicates
from x2vlm.data.duplicates.merging import merge_captions, merge_concepts
from x2vlm.data.duplicates.repeated_captions import caption_occurrences, find_repeats
from x2vlm.samples import SAMPLE_SCHEMA, Sample, samples_of, write_table

CLUSTERS = "clusters.parquet"


class DeduplicateConfig(FrozenConfig):
    """What counts as a duplicate, and what the kept row takes over from others (`x2vlm.data.duplicates.merging`).

    With `max_rows_per_caption` rows whose captions all occur in more rows of their source are dropped first, by rule
    `repeated_caption` (`x2vlm.data.duplicates.repeated_captions`), so that no row is dropped in favour of one of them.
    """

    rule: DuplicateConfig = DuplicateConfig()
    merge_captions: bool = False
    merge_concepts: bool = False  # of images with the same pixels only
    max_rows_per_caption: int | None = Field(default=None, ge=1)
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
    use_embeddings = config.rule.min_cosine is not None
    evidence, owners, occurrences = [], [], []
    for name, reads in split_reads(part):
        table = read_evidence(inputs, reads, config.thresholds.score, use_embeddings)
        owners.append((decisions_name(name), table["key"]))
        evidence.append(table.filter(pa.array(is_kept(config.thresholds, table, inputs, reads), pa.bool_())))
        if config.max_rows_per_caption is not None:
            occurrences.append(_caption_occurrences(inputs, reads[0], evidence[-1]))
    repeats = {} if config.max_rows_per_caption is None else find_repeats(occurrences, config.max_rows_per_caption)
    rows = evidence_of(evidence, use_embeddings)
    rows = rows.filter(pc.invert(pc.is_in(rows["key"], value_set=pa.array(sorted(repeats), pa.string()))))
    clusters = find_duplicates(rows, config.rule)
    dropped = [row for row in clusters.to_pylist() if row["action"] == "drop"]
    decisions = [
        *_repeated_captions(repeats, config.max_rows_per_caption),
        *_duplicates(dropped, config.rule),
        *_additions(config, inputs, part, dropped),
    ]
    file_rows = write_decisions(out.path, owners, pa.Table.from_pylist(decisions, schema=DECISION_SCHEMA))
    write_table(clusters, out.path / CLUSTERS)
    num_rows = sum(len(keys) for _, keys in owners)
    return PartResult(
        {"rows": Count(num_rows, num_rows)},  # of decisions: rows are dropped in `partition`
        {**file_rows, CLUSTERS: clusters.num_rows},
        {**count_duplicates(clusters), "rows_compared": rows.num_rows, "repeated_captions": len(repeats)},
    )


def _caption_occurrences(inputs: PartReader, read: Read, kept_rows: pa.Table) -> NDArray[Any]:
    rows = pq.read_table(inputs.local_path(read.file), columns=["key", "source", "captions"])
    return caption_occurrences(rows.filter(pc.is_in(rows["key"], value_set=kept_rows["key"].combine_chunks())))


def split_reads(part: Part) -> list[tuple[str, list[Read]]]:
    """The reads grouped by part of the rows, as `plan` concatenated them."""
    found, start = [], 0
    for name, size in part.spec["parts"]:
        found.append((name, list(part.reads[start : start + size])))
        start += size
    return found


def is_kept(thresholds: ScoreThresholds, rows: pa.Table, inputs: PartReader, reads: Sequence[Read]) -> np.ndarray:
    """True for rows that no score and no earlier decision drops."""
    keep, _ = score_drops(thresholds, rows)
    for read in reads:
        if read.slot == "decisions":
            decisions = pq.read_table(inputs.local_path(read.file), columns=["key", "rule"])
            gone = decisions.filter(pc.not_equal(decisions["rule"], ""))["key"]
            keep &= ~pc.is_in(rows["key"], value_set=gone.combine_chunks()).to_numpy(zero_copy_only=False)
    return keep


def _repeated_captions(repeats: Mapping[str, int], max_rows: int | None) -> Iterator[dict[str, Any]]:
    for key, num_rows in repeats.items():
        reason = "this many rows of its source say even its rarest caption"
        yield {"key": key, "rule": "repeated_caption", "value": num_rows, "threshold": max_rows, "reason": reason}


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
    config: DeduplicateConfig, inputs: PartReader, part: Part, dropped: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A decision for every keeper with additions: the captions and concepts appended to its own."""
    if not dropped or not (config.merge_captions or config.merge_concepts):
        return
    duplicates_of: dict[str, dict[str, str]] = {}  # keeper -> key of a dropped duplicate -> method of the match
    for row in dropped:
        duplicates_of.setdefault(row["keeper"], {})[row["key"]] = row["method"]
    samples = _samples(inputs, part, {*duplicates_of, *(row["key"] for row in dropped)})
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


def _samples(inputs: PartReader, part: Part, keys: Collection[str]) -> dict[str, Sample]:
    """The rows with these keys, the first of a repeated key."""
    wanted = pa.array(sorted(keys), pa.string())
    samples: dict[str, Sample] = {}
    for _, reads in split_reads(part):
        rows = pq.read_table(inputs.local_path(reads[0].file), columns=SAMPLE_SCHEMA.names)
        found = samples_of(rows.filter(pc.is_in(rows["key"], value_set=wanted)))
        for sample in found:
            samples.setdefault(sample.key, sample)
    return samples


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
