"""`repeated_captions`: rows all of whose captions many rows of their source have; where the experiment limits these.

One part, because the rows that a caption is kept in are the first by key among all: a limit of rows says when that no
longer fits.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from pipelines.flow.segments import SegmentWriter
from pipelines.flow.stage import Count, InputFile, Inputs, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s4_materialize.buckets.exact import BUSY
from pipelines.s4_materialize.buckets.near import num_buckets_of
from pipelines.s4_materialize.buckets.routing import bucket_name, bucket_of
from pipelines.s4_materialize.buckets.stars import GONE, write_by_group
from pipelines.s4_materialize.decisions import DecisionReads, groups_of, read_decisions, rows_parts
from pipelines.s4_materialize.evidence import SCORES
from pipelines.s4_materialize.thresholds import SCORE_COLUMNS, ScoreThresholds, score_drops
from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.repeated_captions import CAPTION_OCCURRENCE_TYPE, caption_occurrences, find_repeats
from x2vlm.errors import ConfigError


class RepeatsConfig(FrozenConfig):
    """How often a caption may occur."""

    max_rows_per_caption: int = 1
    thresholds: ScoreThresholds = ScoreThresholds()
    max_rows: int = Field(default=20_000_000, ge=1)  # that are looked at: about 100 bytes a caption


def plan_repeats(config: RepeatsConfig, inputs: Inputs) -> list[Part]:
    """One part that reads the captions of all rows; ConfigError if they are too many."""
    reads: list[Read] = []
    owners: list[list[Any]] = []
    num_rows, decisions = 0, DecisionReads(inputs)
    for group, parts in groups_of(rows_parts(inputs, "repeated_captions")).items():
        for part in parts:
            own = (*part.reads(SCORES), *decisions.about(part))
            num_rows += part.rows.file("rows.parquet").rows or 0
            reads += own
            owners.append([part.name, group, len(own)])
    if num_rows > config.max_rows:
        raise ConfigError(
            f"deduplicate.max_rows_per_caption: {num_rows} rows, and captions of at most {config.max_rows} are "
            "counted; take the field out"
        )
    reads += busy_reads(inputs)
    return [Part("all", tuple(reads), {"owners": owners, "buckets": num_buckets_of(inputs, "exact")})]


def busy_reads(inputs: Inputs) -> list[Read]:
    """Where the keys and components of all busy rows are."""
    parts = [part for one in inputs["exact"] for part in one.parts]
    return [Read("exact", file) for part in parts for file in part.files if file.path == BUSY]


def repeats_part(config: RepeatsConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """Decisions by group of parts, and the dropped keys by bucket of components."""
    occurrences: list[NDArray[Any]] = [np.empty(0, CAPTION_OCCURRENCE_TYPE)]
    places, start = [], 0
    for owner, group, size in part.spec["owners"]:
        reads = part.reads[start : start + size]
        start += size
        rows = _kept_rows(config, inputs, reads)
        occurrences.append(caption_occurrences(rows))
        marks = {
            name: pa.repeat(pa.scalar(value), rows.num_rows) for name, value in (("owner", owner), ("group", group))
        }
        places.append(pa.table({"key": rows["key"], **marks}))
    repeats = find_repeats(occurrences, config.max_rows_per_caption)
    rows = (
        pa.concat_tables(places)
        if places
        else pa.table({name: pa.array([], pa.string()) for name in ("key", "owner", "group")})
    )
    file_rows = write_by_group(out, rows, list(_decisions(repeats, config.max_rows_per_caption)))
    busy = [read.file for read in part.reads if read.file.path == BUSY]
    file_rows |= write_gone(out, sorted(repeats), inputs, busy, part.spec["buckets"])
    summary = {"repeated_captions": len(repeats)}
    return PartResult({"rows": Count(rows.num_rows, rows.num_rows)}, file_rows, summary)


def _kept_rows(config: RepeatsConfig, inputs: PartReader, reads: Sequence[Read]) -> pa.Table:
    """key, source and captions of the rows that no score and no earlier decision drops."""
    rows = pq.read_table(inputs.local_path(reads[0].file), columns=["key", "source", "source_row", "kind", "captions"])
    scores = pq.read_table(inputs.local_path(reads[1].file))
    judged = rows.append_column("clip_score", scores[SCORE_COLUMNS[config.thresholds.score]].cast(pa.float32()))
    keep, _ = score_drops(config.thresholds, judged.append_column("missing", scores["missing"]))
    for read in reads[2:]:
        decisions = read_decisions(inputs, read)
        gone = decisions.filter(pc.not_equal(decisions["rule"], ""))["key"]
        keep &= ~pc.is_in(rows["key"], value_set=gone.combine_chunks()).to_numpy(zero_copy_only=False)
    return rows.filter(pa.array(keep, pa.bool_()))


def _decisions(repeats: Mapping[str, int], max_rows: int) -> Iterator[dict[str, Any]]:
    for key, num_rows in repeats.items():
        reason = "this many rows of its source say even its rarest caption"
        yield {"key": key, "rule": "repeated_caption", "value": num_rows, "threshold": max_rows, "reason": reason}


def write_gone(
    out: PartWriter, keys: Sequence[str], inputs: PartReader, busy: Sequence[InputFile], num_buckets: int
) -> dict[str, int]:
    """GONE: which of `keys` are in each bucket of components; rows by file name. Files of busy rows come one by one."""
    wanted = pa.array([bytes.fromhex(key) for key in keys], pa.binary(16))
    found = []
    for file in busy:
        rows = pq.read_table(inputs.local_path(file))
        found.append(rows.filter(pc.is_in(rows["key"], value_set=wanted)))
    gone = pa.concat_tables(found).to_pylist() if found else []
    by_home: dict[int, set[str]] = {}
    for row in gone:
        home = int(bucket_of(np.array([row["label"]], np.uint64), num_buckets)[0])
        by_home.setdefault(home, set()).add(row["key"].hex())
    with SegmentWriter(out.path / GONE) as writer:
        for home in sorted(by_home):
            writer.add(bucket_name(home), pa.table({"key": sorted(by_home[home])}))
    return writer.file_rows


REPEATED_CAPTIONS = Stage(
    name="repeated_captions",
    version=1,
    config_type=RepeatsConfig,
    slots=("rows", "scores", "decisions", "exact"),
    plan_parts=plan_repeats,
    run_part=repeats_part,
)
