"""`pack`: writes each training shard from its rows of all sources and the stored media they name."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pipelines.flow.segments import Holders, holders_of_groups, read_of_groups, segments_with
from pipelines.flow.stage import InputFile, Inputs, Json, Lookup, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.flow.store.blobs import local_path_of
from pipelines.s4_materialize.decisions import check_media, media_part
from pipelines.s4_materialize.grains import count_grains, count_units
from pipelines.s4_materialize.sizes import add_up_packs, measure_sizes
from pipelines.s4_materialize.slices import PLACE, ROWS, numbered, rows_of_shard
from pipelines.s4_materialize.smaller import make_smaller
from x2vlm.config import FrozenConfig
from x2vlm.data.shards.media_files import PARQUET_SUFFIX, TAR_SUFFIX
from x2vlm.data.shards.packs import PACK_NAME
from x2vlm.data.shards.payload_ranges import (
    MAX_GAP_BYTES,
    MAX_RANGE_BYTES,
    ByteRange,
    FetchedPayloads,
    Place,
    checked,
)
from x2vlm.data.shards.row_counts import ROW_COUNTS, count_of
from x2vlm.data.shards.shard import index_path, write_shard
from x2vlm.errors import ConfigError
from x2vlm.samples import Drop, count_rules, drop_table, write_table

FIRST_OPEN_VERSION = 3  # of this stage, whose shards other readers take as they are


class PackConfig(FrozenConfig):
    """In which kind of file a shard keeps its media, a WebDataset tar or Parquet with the bytes inside, and how large.

    With `short_edge` images and frames whose stored short edge is longer are stored as JPEGs of that many pixels and
    of that `quality`; see `smaller`. None keeps the bytes that download stored.

    Media in a remote store are read in ranges of at most `max_range_bytes`, which join those with at most
    `max_gap_bytes` of other rows between them: speed alone, never part of a fingerprint.
    """

    format: Literal["webdataset", "parquet"] = "webdataset"
    short_edge: int | None = Field(default=None, ge=1)
    quality: int = Field(default=95, ge=1, le=100)
    max_gap_bytes: int = Field(default=MAX_GAP_BYTES, ge=0, exclude=True)
    max_range_bytes: int = Field(default=MAX_RANGE_BYTES, ge=1, exclude=True)


def shard_name(shard: int, config: PackConfig) -> str:
    """File name of a shard's media; see `x2vlm.data.shards.media_files.index_name` for its index."""
    return f"shard-{numbered(shard)}{TAR_SUFFIX if config.format == 'webdataset' else PARQUET_SUFFIX}"


def plan_pack(config: PackConfig, inputs: Inputs) -> list[Part]:
    """One part per shard, also of those without rows: whoever reads `shard-{00000..00099}.tar` finds them all.

    A part depends on the rows of its shard alone, in whatever files they lie. These files and the media packs are
    looked up: they may change around a shard without the shard being written again, because each row names its media
    by sha256.
    """
    if len(inputs["buckets"]) != 1 or "num_shards" not in inputs["buckets"][0].summary:
        raise ConfigError("pack reads the rows of one artifact of partition, which says how many shards there are")
    (artifact,) = inputs["buckets"]
    check_media((part.name for part in artifact.parts), inputs["media"])
    num_shards = int(artifact.summary["num_shards"])
    shards = holders_of_groups(artifact.parts, ROWS)
    lookups = tuple(Lookup(slot, one.reference) for slot in ("buckets", "media") for one in inputs[slot])
    return [
        Part(
            name=numbered(shard),
            reads=(Read("buckets", read_of_groups(ROWS, numbered(shard), shards.get(numbered(shard), Holders()))),),
            spec={"shard": shard, "num_shards": num_shards},
            lookup_artifacts=lookups,
        )
        for shard in range(num_shards)
    ]


def pack_part(config: PackConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """One shard, its index and its drops. Of rows with an equal key the first read stays."""
    buckets, *media = (inputs.artifact(lookup.artifact) for lookup in part.lookup_artifacts)
    (read,) = part.reads
    slices = segments_with(read.file, buckets)
    packs = [media_part(name, media).file(PACK_NAME) for name, _ in slices]
    shard, num_shards = part.spec["shard"], part.spec["num_shards"]
    placed, pack_of = rows_of_shard(inputs, [file for _, file in slices], shard, num_shards, read.file.sha256)
    rows = placed.drop_columns([PLACE.name])
    stays, drops = duplicate_keys(rows)
    kept = rows.filter(pa.array(stays))
    path = out.path / shard_name(shard, config)
    summary: dict[str, Json] = {}
    with tempfile.TemporaryDirectory(prefix="x2vlm-pack-") as scratch:
        places = media_places(placed.filter(pa.array(stays)), pack_of[stays])
        payload_of = find_payloads(config, inputs, packs, places, Path(scratch))
        if config.short_edge is not None:
            smaller = make_smaller(kept, payload_of, config.short_edge, config.quality, Path(scratch))
            kept, payload_of, summary = smaller.rows, smaller.payload_of, {"smaller": dict(smaller.counts)}
            drops += smaller.drops
        index = write_shard(path, kept, payload_of)
    write_table(drop_table(drops), out.path / "drops.parquet")
    file_rows = {path.name: index.num_rows, index_path(path).name: index.num_rows, "drops.parquet": len(drops)}
    summary |= {"grains": count_grains(kept), "sizes": measure_sizes(kept), ROW_COUNTS: count_of(index).to_json()}
    return PartResult(count_units(rows, kept, count_rules(drops, "row")), file_rows, summary)


def duplicate_keys(rows: pa.Table) -> tuple[NDArray[np.bool_], list[Drop]]:
    """Which of `rows` are the first of their key, and the others as drops (rule duplicate_key)."""
    _, first = np.unique(np.array(rows["key"].to_pylist(), dtype="U32"), return_index=True)
    stays = np.zeros(rows.num_rows, dtype=bool)
    stays[first] = True
    reason = "an earlier row of this shard has the same key; is a source listed twice?"
    names = rows.select(["key", "source", "source_row"]).filter(pa.array(~stays)).to_pylist()
    return stays, [Drop(**row, stage="pack", rule="duplicate_key", reason=reason) for row in names]


def media_places(rows: pa.Table, pack_of: NDArray[np.int64]) -> dict[str, Place]:
    """Where the media of `rows` lie, by their sha256; `pack_of` is the number of the media pack of each row."""
    media = pc.struct_field(rows["media"], "sha256").to_pylist()
    found: dict[str, Place] = {}
    for sha256, pack, place in zip(media, pack_of.tolist(), rows[PLACE.name].to_pylist(), strict=True):
        found.setdefault(sha256, Place(pack, place["offset"], place["bytes"], place["sha256"]))
    return found


def find_payloads(
    config: PackConfig, inputs: PartReader, packs: Sequence[InputFile], places: Mapping[str, Place], scratch: Path
) -> Callable[[str], bytes]:
    """A function from media sha256 to verified stored bytes: CorruptArtifact if they are not what was packed.

    What lies in a remote store is fetched now, in as few requests as there are runs of neighbours, into `scratch`.
    """

    def read_range(wanted: ByteRange) -> bytes:
        return inputs.read_range(packs[wanted.pack], wanted.start, wanted.end - wanted.start)

    is_local = [local_path_of(pack.uri) is not None for pack in packs]
    remote = [place for place in places.values() if not is_local[place.pack]]
    fetched = FetchedPayloads(remote, read_range, scratch, config.max_gap_bytes, config.max_range_bytes)

    def payload_of(sha256: str) -> bytes:
        place = places[sha256]
        whole = ByteRange(place.pack, place.offset, place.offset + place.bytes)
        payload = read_range(whole) if is_local[place.pack] else fetched.read(place)
        return checked(payload, place, packs[place.pack].uri)

    return payload_of


PACK = Stage(
    name="pack",
    # 2: smaller copies; 3: tars are written by webdataset and have a .txt member, Parquet shards an index that no glob
    # takes for data; 4: shards without rows are written too
    version=4,
    config_type=PackConfig,
    slots=("buckets", "media"),
    plan_parts=plan_pack,
    run_part=pack_part,
    finish=add_up_packs,
)
