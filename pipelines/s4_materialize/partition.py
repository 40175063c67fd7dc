"""`partition`: drops rows by score or earlier decisions, and assigns the others to shards.

Scores are computed once (stage `score`) and thresholds are applied here, so trying another threshold costs no GPU. A
row's shard depends only on its key and the seed: adding or removing other rows never changes it.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.flow.stage import Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s4_materialize.decisions import decisions_about, read_decisions, rows_parts
from pipelines.s4_materialize.grains import add_up_grains, count_grains, count_units
from pipelines.s4_materialize.thresholds import SCORE_COLUMNS, ScoreThresholds, score_drops
from x2vlm.data.shards.shard import SCORED_SCHEMA
from x2vlm.errors import CorruptArtifact
from x2vlm.samples import Drop, count_rules, drop_table, write_table

ADDED = ("captions", "concepts")
Additions = dict[str, dict[str, list[dict[str, Any]]]]  # key -> items added to the row, by unit


class PartitionConfig(ScoreThresholds):
    """Which rows are kept, and how they are assigned to shards."""

    num_shards: int = Field(ge=1, le=99_999)
    seed: int = Field(default=0, ge=0)
    without_grains: tuple[Literal["object", "region"], ...] = ()  # boxes of these grains are left out of the shards


def shard_of(key: str, seed: int, num_shards: int) -> int:
    """The shard of the sample `key`: 64 bits of sha256 over seed and key, modulo the number of shards."""
    return int(hashlib.sha256(f"{seed}{key}".encode()).hexdigest()[:16], 16) % num_shards


def bucket_name(shard: int) -> str:
    """The file with one part's rows of a shard."""
    return f"bucket-{shard:05d}.parquet"


def plan_partition(config: PartitionConfig, inputs: Inputs) -> list[Part]:
    """One part per part of every `rows` artifact; rows[i] is scored by the part of the same name of scores[i]."""
    return [
        Part(name=part.name, reads=(*part.reads("scores.parquet"), *decisions_about(part, inputs)))
        for part in rows_parts(inputs, "partition")
    ]


def partition_part(config: PartitionConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes the bucket files of one filter part and its drops."""
    rows = _scored_rows(inputs, part.reads[0], part.reads[1], SCORE_COLUMNS[config.score])
    keep, drops = score_drops(config, rows)
    additions: Additions = {}
    for read in part.reads[2:]:
        keep, drops = apply_decisions(read_decisions(inputs, read), rows, keep, drops, additions)
    rows = add_items(rows.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA), additions)
    kept, num_left_out = leave_out_grains(rows.filter(pa.array(keep, pa.bool_())), config.without_grains)
    file_rows = {"drops.parquet": len(drops)}
    for shard, bucket in split_by_shard(kept, config.seed, config.num_shards):
        write_table(bucket, out.path / bucket_name(shard))
        file_rows[bucket_name(shard)] = bucket.num_rows
    write_table(drop_table(drops), out.path / "drops.parquet")
    counts = count_units(rows, kept, count_rules(drops, "row"), {"grain_left_out": num_left_out})
    added = {unit: sum(len(items[unit]) for items in additions.values()) for unit in ADDED}
    summary = {"grains": count_grains(kept), "added": added}
    return PartResult(counts, file_rows, summary)


def apply_decisions(
    decisions: pa.Table,
    rows: pa.Table,
    keep: np.ndarray,
    drops: Sequence[Drop],
    additions: Additions,
) -> tuple[np.ndarray, list[Drop]]:
    """`keep` and `drops` after `decisions` on the remaining rows; items to add are put into `additions`."""
    place = {key: number for number, key in enumerate(rows["key"].to_pylist())}
    keep, drops = keep.copy(), list(drops)
    for decision in decisions.to_pylist():
        row = place.get(decision["key"])
        if row is None or not keep[row]:
            continue
        if any(decision[unit] for unit in ADDED):
            additions[decision["key"]] = {unit: decision[unit] or [] for unit in ADDED}
        if decision["rule"]:
            keep[row] = False
            names = {name: rows[name][row].as_py() for name in ("key", "source", "source_row")}
            facts = {name: decision[name] for name in ("rule", "value", "threshold", "reason")}
            drops.append(Drop(**names, stage="partition", **facts))
    return keep, drops


def add_items(rows: pa.Table, additions: Additions) -> pa.Table:
    """`rows` with the captions and concepts of `additions` appended, by key."""
    for unit in ADDED if additions else ():
        pairs = zip(rows["key"].to_pylist(), rows[unit].to_pylist(), strict=True)
        items = [[*(own or ()), *additions.get(key, {}).get(unit, ())] for key, own in pairs]
        place = rows.schema.get_field_index(unit)
        rows = rows.set_column(place, rows.schema.field(place), pa.array(items, rows.schema.field(place).type))
    return rows


def leave_out_grains(rows: pa.Table, grains: Collection[str]) -> tuple[pa.Table, int]:
    """`rows` without the concepts of these grains, and their number. Rows are kept even if nothing else is left."""
    lists = [concepts or [] for concepts in rows["concepts"].to_pylist()] if grains else []
    kept = [[concept for concept in concepts if concept["grain"] not in grains] for concepts in lists]
    num_left_out = sum(map(len, lists)) - sum(map(len, kept))
    if num_left_out:
        place = rows.schema.get_field_index("concepts")
        field = rows.schema.field(place)
        rows = rows.set_column(place, field, pa.array(kept, field.type))
    return rows, num_left_out


def split_by_shard(rows: pa.Table, seed: int, num_shards: int) -> Iterator[tuple[int, pa.Table]]:
    """Each non-empty shard with its rows sorted by key, shards in ascending order."""
    keys = np.array(rows["key"].to_pylist(), dtype="U32")
    shards = np.array([shard_of(str(key), seed, num_shards) for key in keys], dtype=np.int64)
    order = np.lexsort((keys, shards))
    numbers, starts = np.unique(shards[order], return_index=True)
    ends = [*starts[1:], len(order)]
    for shard, start, end in zip(numbers, starts, ends, strict=False):  # without shards only `ends` has an item
        yield int(shard), rows.take(pa.array(order[start:end]))


def _scored_rows(inputs: PartReader, rows_read: Read, scores_read: Read, column: str) -> pa.Table:
    """The rows with columns for the chosen score and the reason for a missing one; CorruptArtifact unless both files
    have the same keys in order."""
    rows_path, scores_path = inputs.local_path(rows_read.file), inputs.local_path(scores_read.file)
    rows = pq.read_table(rows_path).combine_chunks()
    scores = pq.read_table(scores_path, columns=["key", column, "missing"])
    if not rows["key"].equals(scores["key"]):
        raise CorruptArtifact(
            f"{scores_path}: its keys are not those of {rows_path} ({scores.num_rows} and {rows.num_rows} rows); "
            "rerun the score stage of this source"
        )
    score = scores[column].cast(pa.float32())
    return rows.append_column("clip_score", score).append_column("missing", scores["missing"])


PARTITION = Stage(
    name="partition",
    version=3,  # 3: grains may be left out
    config_type=PartitionConfig,
    slots=("rows", "scores", "decisions"),
    plan_parts=plan_partition,
    run_part=partition_part,
    finish=add_up_grains,
)
