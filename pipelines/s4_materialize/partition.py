"""`partition`: drops rows by score or earlier decisions, and assigns the others to shards.

Scores are computed once (stage `score`) and thresholds are applied here, so trying another threshold costs no GPU. A
shard is a range of keys, which are hashes: adding or removing other rows never changes the shard of a row, and a part
whose rows come from a range of keys fills few shards.

A part writes its rows into one file (`slices`), with the place of each row's media in the media pack of its part:
whoever packs a shard then opens no index of a pack.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from pipelines.flow.stage import Inputs, Json, Part, PartReader, PartResult, PartSummary, PartWriter, Read, Stage
from pipelines.s4_materialize.decisions import DecisionReads, media_part, read_decisions, rows_parts
from pipelines.s4_materialize.grains import add_up_grains, count_grains, count_units
from pipelines.s4_materialize.slices import PLACE, write_slices
from pipelines.s4_materialize.thresholds import SCORE_COLUMNS, ScoreThresholds, score_drops
from x2vlm.data.shards.packs import INDEX_NAME
from x2vlm.data.shards.shard import SCORED_SCHEMA
from x2vlm.errors import ConfigError, CorruptArtifact
from x2vlm.samples import Drop, count_rules, drop_table, write_table

ADDED = ("captions", "concepts")
Additions = dict[str, dict[str, list[dict[str, Any]]]]  # key -> items added to the row, by unit


class PartitionConfig(ScoreThresholds):
    """Which rows are kept, and how they are assigned to shards.

    `decided_as` is for phases that read some of the sources: the place of each among those that the nodes read which
    decide about rows. The graph sets it; it says where decisions are, not what they are.
    """

    num_shards: int = Field(ge=1, le=99_999)
    decided_as: tuple[int, ...] | None = Field(default=None, exclude=True)
    without_grains: tuple[Literal["object", "region"], ...] = ()  # boxes of these grains are left out of the shards

    @model_validator(mode="before")
    @classmethod
    def _has_no_seed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "seed" in values:
            raise ValueError(
                "seed: a shard is a range of keys, which are hashes already, so no seed deals them; remove the line"
            )
        return values


def plan_partition(config: PartitionConfig, inputs: Inputs) -> list[Part]:
    """One part per part of every `rows` artifact; rows[i] is scored by the part of the same name of scores[i], and its
    media lie in the pack of the part of the same name of media[i]."""
    parts, decisions = rows_parts(inputs, "partition"), DecisionReads(inputs)
    decided_as = config.decided_as
    if decided_as is not None and len(decided_as) != len(inputs["rows"]):
        raise ConfigError(
            f"partition: decided_as has {len(decided_as)} numbers for {len(inputs['rows'])} sources; take it out of "
            "the experiment: the graph sets it"
        )
    return [
        Part(
            name=part.name,
            reads=(
                *part.reads("scores.parquet"),
                Read("media", media_part(part.name, inputs["media"]).file(INDEX_NAME)),
                *decisions.about(part, None if decided_as is None else decided_as[part.source]),
            ),
        )
        for part in parts
    ]


def partition_part(config: PartitionConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Writes the kept rows of one filter part by slices, and its drops."""
    rows = _scored_rows(inputs, part.reads[0], part.reads[1], SCORE_COLUMNS[config.score])
    keep, drops = score_drops(config, rows)
    additions: Additions = {}
    for read in part.reads:
        if read.slot == "decisions":
            keep, drops = apply_decisions(read_decisions(inputs, read), rows, keep, drops, additions)
    rows = add_items(rows.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA), additions)
    kept, num_left_out = leave_out_grains(rows.filter(pa.array(keep, pa.bool_())), config.without_grains)
    (index,) = (read for read in part.reads if read.slot == "media")
    file_rows = write_slices(out.path, _with_places(inputs, kept, index), config.num_shards)
    write_table(drop_table(drops), out.path / "drops.parquet")
    counts = count_units(rows, kept, count_rules(drops, "row"), {"grain_left_out": num_left_out})
    added = {unit: sum(len(items[unit]) for items in additions.values()) for unit in ADDED}
    summary = {"grains": count_grains(kept), "added": added}
    return PartResult(counts, {**file_rows, "drops.parquet": len(drops)}, summary)


def _with_places(inputs: PartReader, rows: pa.Table, index_read: Read) -> pa.Table:
    """`rows` with the place of their payloads in the pack with this index; CorruptArtifact if one is not in it."""
    path = inputs.local_path(index_read.file)
    try:
        index = pq.read_table(path, columns=["sha256", "offset", "bytes", "payload_sha256"]).combine_chunks()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptArtifact(f"{path}: not an index of a media pack ({error}); rerun `download`") from None
    wanted = pc.struct_field(rows["media"], "sha256")
    places = pc.index_in(wanted, value_set=index["sha256"]).combine_chunks()
    if places.null_count:
        missing = rows.filter(pc.is_null(places))
        sha256 = pc.struct_field(missing["media"], "sha256")[0].as_py() or "none"
        raise CorruptArtifact(
            f"{path}: the media {sha256[:12]}… of sample {missing['key'][0]} and {missing.num_rows - 1} more are not "
            "in the media pack of their part; rerun download with --force"
        )
    found = index.select(["offset", "bytes", "payload_sha256"]).take(places).combine_chunks()
    columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in found.columns]
    arrays = [column.cast(field.type) for column, field in zip(columns, PLACE.type, strict=True)]
    return rows.append_column(PLACE, pa.StructArray.from_arrays(arrays, fields=list(PLACE.type)))


def finish_partition(config: PartitionConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The grains of all parts, and the number of shards: `pack` writes them all, also those without rows."""
    return {**add_up_grains(config, parts), "num_shards": config.num_shards}


def apply_decisions(
    decisions: pa.Table,
    rows: pa.Table,
    keep: np.ndarray,
    drops: Sequence[Drop],
    additions: Additions,
) -> tuple[np.ndarray, list[Drop]]:
    """`keep` and `drops` after `decisions` on the remaining rows; items to add are put into `additions`.

    CorruptArtifact for a decision about a row that is not among `rows`: then decisions about these rows are missing.
    """
    place = {key: number for number, key in enumerate(rows["key"].to_pylist())}
    keep, drops = keep.copy(), list(drops)
    for decision in decisions.to_pylist():
        if (row := place.get(decision["key"])) is None:
            raise CorruptArtifact(
                f"sample {decision['key']} is not among the {len(place)} rows about which its decision was written; "
                "rerun the nodes that decide about rows with --force"
            )
        if not keep[row]:
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
    version=4,  # 3: grains may be left out; 4: shards are ranges of keys, the rows of a part lie in one file
    config_type=PartitionConfig,
    slots=("rows", "scores", "media", "decisions"),
    plan_parts=plan_partition,
    run_part=partition_part,
    finish=finish_partition,
)
