"""`partition`: drops what scores too low and deals the other rows into shards.

Scores are computed once (stage `score`) and thresholds are applied here, so trying another threshold costs no GPU. A
row's shard depends on its key and the seed alone: rows that come or go elsewhere never move it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.flow.stage import Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s4_materialize.grains import add_up_grains, count_grains, count_units
from x2vlm.config import FrozenConfig
from x2vlm.data.shards import SCORED_SCHEMA
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.samples import Drop, count_rules, drop_table, write_table

SCORE_COLUMNS = {"mean": "clip_score", "max": "clip_score_max", "middle": "clip_score_middle"}


class PartitionConfig(FrozenConfig):
    """How rows become shards.

    The thresholds apply to the CLIP score of a row's first caption, `score` saying how the frames of a clip are made
    one number. The paper (X2-VLM A.1) drops clips below 0.25 without naming model or aggregate; exactly 0.25 is kept.
    None = no threshold. 0.25 means something only for the model it was chosen with.
    """

    num_shards: int = Field(ge=1, le=99_999)
    seed: int = Field(default=0, ge=0)
    score: Literal["mean", "max", "middle"] = "mean"
    min_clip_score: float | None = Field(default=0.25, allow_inf_nan=False)  # of clips
    image_min_clip_score: float | None = Field(default=None, allow_inf_nan=False)


def shard_of(key: str, seed: int, num_shards: int) -> int:
    """The shard that holds the sample `key`: 64 bits of sha256 over seed and key, modulo the number of shards."""
    return int(hashlib.sha256(f"{seed}{key}".encode()).hexdigest()[:16], 16) % num_shards


def bucket_name(shard: int) -> str:
    """File with one part's rows of a shard."""
    return f"bucket-{shard:05d}.parquet"


def plan_partition(config: PartitionConfig, inputs: Inputs) -> list[Part]:
    """One part per part of every `rows` artifact; rows[i] is scored by the part of the same name of scores[i]."""
    rows, scores = inputs["rows"], inputs["scores"]
    if len(rows) != len(scores):
        raise ConfigError(
            f"partition reads {len(rows)} rows artifacts but {len(scores)} scores artifacts; "
            "name them in the same order, one scores artifact for each rows artifact"
        )
    parts = []
    for number, (rows_input, scores_input) in enumerate(zip(rows, scores, strict=True)):
        scored = {part.name: part for part in scores_input.parts}
        if missing := [part.name for part in rows_input.parts if part.name not in scored]:
            raise ConfigError(
                f"{scores_input.node} has no part {missing[0]} of {rows_input.node}; is it of that source?"
            )
        for part in rows_input.parts:
            reads = (
                Read("rows", part.file("rows.parquet")),
                Read("scores", scored[part.name].file("scores.parquet")),
            )
            parts.append(Part(name=f"{number:03d}-{part.name}", reads=reads))
    return parts


def partition_part(config: PartitionConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Bucket files of one filter part and its drops."""
    rows_path, scores_path = (inputs.local_path(read.file) for read in part.reads)
    rows = _scored_rows(rows_path, scores_path, SCORE_COLUMNS[config.score])
    low = find_low_scores(config, rows)
    drops = [drop for drop in low if drop is not None]
    kept = rows.filter(pa.array([drop is None for drop in low], pa.bool_()))
    file_rows = {"drops.parquet": len(drops)}
    for shard, bucket in split_by_shard(kept, config.seed, config.num_shards):
        write_table(bucket, out.path / bucket_name(shard))
        file_rows[bucket_name(shard)] = bucket.num_rows
    write_table(drop_table(drops), out.path / "drops.parquet")
    counts = count_units(rows, kept, count_rules(drops, "row"))
    return PartResult(counts, file_rows, {"grains": count_grains(kept)})


def find_low_scores(config: PartitionConfig, rows: pa.Table) -> list[Drop | None]:
    """Per row of `rows`, why it goes: its `clip_score` is below the threshold for its kind, or missing where there is
    one (never kept); None where it stays.

    Compared as float32, which is how scores are stored: a score that equals the threshold stays, for every threshold.
    """
    thresholds = {"image": config.image_min_clip_score, "video": config.min_clip_score}
    columns = rows.select(["key", "source", "source_row", "kind", "clip_score"])
    return [_low_score(config, row, thresholds[row["kind"]]) for row in columns.to_pylist()]


def _low_score(config: PartitionConfig, row: Mapping[str, Any], threshold: float | None) -> Drop | None:
    if threshold is None:
        return None
    score = row["clip_score"]
    rule, value, reason = "", None, ""
    if score is None or np.isnan(score):
        rule, reason = "clip_score_missing", "no caption, or media that could not be scored"
    elif np.float32(score) < np.float32(threshold):
        rule, value, reason = "min_clip_score", score, f"{config.score} of the scores of the frames"
    if not rule:
        return None
    names = {name: row[name] for name in ("key", "source", "source_row")}
    return Drop(**names, stage="partition", rule=rule, value=value, threshold=threshold, reason=reason)


def split_by_shard(rows: pa.Table, seed: int, num_shards: int) -> Iterator[tuple[int, pa.Table]]:
    """Each non-empty shard with its rows sorted by key, shards in ascending order."""
    keys = np.array(rows["key"].to_pylist(), dtype="U32")
    shards = np.array([shard_of(str(key), seed, num_shards) for key in keys], dtype=np.int64)
    order = np.lexsort((keys, shards))
    numbers, starts = np.unique(shards[order], return_index=True)
    ends = [*starts[1:], len(order)]
    for shard, start, end in zip(numbers, starts, ends, strict=False):  # no shard at all: `ends` alone has an item
        yield int(shard), rows.take(pa.array(order[start:end]))


def _scored_rows(rows_path: Path, scores_path: Path, column: str) -> pa.Table:
    """The rows with the chosen score beside them; CorruptArtifact unless both files hold the same keys in order."""
    rows = pq.read_table(rows_path).combine_chunks()
    scores = pq.read_table(scores_path, columns=["key", column])
    if not rows["key"].equals(scores["key"]):
        raise CorruptArtifact(
            f"{scores_path}: its keys are not those of {rows_path} ({scores.num_rows} and {rows.num_rows} rows); "
            "rerun the score stage of this source"
        )
    return rows.append_column("clip_score", scores[column]).select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)


PARTITION = Stage(
    name="partition",
    version=1,
    config_type=PartitionConfig,
    slots=("rows", "scores"),
    plan_parts=plan_partition,
    run_part=partition_part,
    finish=add_up_grains,
)
