"""`pack`: writes each training shard from its rows of all sources and the stored media they name."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.flow.stage import InputFile, Inputs, Json, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s4_materialize.grains import count_grains, count_units
from pipelines.s4_materialize.sizes import add_up_packs, measure_sizes
from pipelines.s4_materialize.smaller import make_smaller
from x2vlm.config import FrozenConfig
from x2vlm.data.shards.media_files import PARQUET_SUFFIX, TAR_SUFFIX
from x2vlm.data.shards.packs import INDEX_NAME, PACK_NAME, PackEntry, locate_payloads, read_payload
from x2vlm.data.shards.row_counts import ROW_COUNTS, count_of
from x2vlm.data.shards.shard import SCORED_SCHEMA, index_path, write_shard
from x2vlm.errors import CorruptArtifact
from x2vlm.samples import Drop, count_rules, drop_table, write_table

FIRST_OPEN_VERSION = 3  # of this stage, whose shards other readers take as they are
BUCKET = re.compile(r"bucket-(\d{5})\.parquet")


class PackConfig(FrozenConfig):
    """In which kind of file a shard keeps its media, a WebDataset tar or Parquet with the bytes inside, and how large.

    With `short_edge` images and frames whose stored short edge is longer are stored as JPEGs of that many pixels and
    of that `quality`; see `smaller`. None keeps the bytes that download stored.
    """

    format: Literal["webdataset", "parquet"] = "webdataset"
    short_edge: int | None = Field(default=None, ge=1)
    quality: int = Field(default=95, ge=1, le=100)


def shard_name(shard: int, config: PackConfig) -> str:
    """File name of a shard's media; see `x2vlm.data.shards.media_files.index_name` for its index."""
    return f"shard-{shard:05d}{TAR_SUFFIX if config.format == 'webdataset' else PARQUET_SUFFIX}"


def plan_pack(config: PackConfig, inputs: Inputs) -> list[Part]:
    """One part per shard that any bucket belongs to, reading those buckets in the order of the partition's parts.

    The media packs are lookups: they may change around a shard without the shard being written again, because each row
    names its media by sha256.
    """
    buckets: dict[int, list[Read]] = {}
    for artifact in inputs["buckets"]:
        for part in artifact.parts:
            for file in part.files:
                if match := BUCKET.fullmatch(file.path):
                    buckets.setdefault(int(match[1]), []).append(Read("buckets", file))
    packs = tuple(
        Read("media", part.file(name))
        for artifact in inputs["media"]
        for part in artifact.parts
        for name in (INDEX_NAME, PACK_NAME)
    )
    return [
        Part(name=f"{shard:05d}", reads=tuple(reads), spec={"shard": shard}, lookups=packs)
        for shard, reads in sorted(buckets.items())
    ]


def pack_part(config: PackConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """One shard, its index and its drops. Of rows with an equal key the first read stays."""
    tables = [pq.read_table(inputs.local_path(read.file)).cast(SCORED_SCHEMA) for read in part.reads]
    rows = pa.concat_tables(tables).combine_chunks()
    kept, drops = drop_duplicate_keys(rows)
    payload_of = find_payloads(inputs, part, kept)
    path = out.path / shard_name(part.spec["shard"], config)
    summary: dict[str, Json] = {}
    with tempfile.TemporaryDirectory(prefix="x2vlm-pack-") as scratch:
        if config.short_edge is not None:
            smaller = make_smaller(kept, payload_of, config.short_edge, config.quality, Path(scratch))
            kept, payload_of, summary = smaller.rows, smaller.payload_of, {"smaller": dict(smaller.counts)}
            drops += smaller.drops
        index = write_shard(path, kept, payload_of)
    write_table(drop_table(drops), out.path / "drops.parquet")
    file_rows = {path.name: index.num_rows, index_path(path).name: index.num_rows, "drops.parquet": len(drops)}
    summary |= {"grains": count_grains(kept), "sizes": measure_sizes(kept), ROW_COUNTS: count_of(index).to_json()}
    return PartResult(count_units(rows, kept, count_rules(drops, "row")), file_rows, summary)


def drop_duplicate_keys(rows: pa.Table) -> tuple[pa.Table, list[Drop]]:
    """`rows` with the first of every key, and the others as drops (rule duplicate_key)."""
    _, first = np.unique(np.array(rows["key"].to_pylist(), dtype="U32"), return_index=True)
    stays = np.zeros(rows.num_rows, dtype=bool)
    stays[first] = True
    reason = "an earlier row of this shard has the same key; is a source listed twice?"
    names = rows.select(["key", "source", "source_row"]).filter(pa.array(~stays)).to_pylist()
    drops = [Drop(**row, stage="pack", rule="duplicate_key", reason=reason) for row in names]
    return rows.filter(pa.array(stays)), drops


def find_payloads(inputs: PartReader, part: Part, rows: pa.Table) -> Callable[[str], bytes]:
    """A function from media sha256 to verified stored bytes for all `rows`; CorruptArtifact if any is in no pack."""
    owners = dict(zip(pc.struct_field(rows["media"], "sha256").to_pylist(), rows["key"].to_pylist(), strict=True))
    found: dict[str, tuple[InputFile, PackEntry]] = {}
    for index, pack in zip(part.lookups[::2], part.lookups[1::2], strict=True):
        wanted = owners.keys() - found.keys()
        if not wanted:
            break
        for sha256, entry in locate_payloads(inputs.local_path(index.file), wanted).items():
            found[sha256] = (pack.file, entry)
    if missing := sorted(owners.keys() - found.keys()):
        raise CorruptArtifact(
            f"shard {part.spec['shard']}: the media {missing[0][:12]}… of sample {owners[missing[0]]} and "
            f"{len(missing) - 1} more are in none of the {len(part.lookups) // 2} media packs that pack was given; "
            "check that pack lists the download artifact of every source, else rerun download with --force"
        )

    def payload_of(sha256: str) -> bytes:
        file, entry = found[sha256]
        return read_payload(inputs.local_path(file), entry)

    return payload_of


PACK = Stage(
    name="pack",
    # 2: smaller copies; 3: tars are written by webdataset and have a .txt member, Parquet shards an index that no glob
    # takes for data
    version=3,
    config_type=PackConfig,
    slots=("buckets", "media"),
    plan_parts=plan_pack,
    run_part=pack_part,
    finish=add_up_packs,
)
