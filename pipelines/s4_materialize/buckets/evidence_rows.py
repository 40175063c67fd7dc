"""`evidence`: of every row what a search among all rows needs, sent to buckets by what the row looks like.

One part reads GROUP_SIZE upstream parts. It writes files of segments:

| file | a segment for | with |
|---|---|---|
| rows.arrow | a bucket of looks | compact rows, with their upstream part |
| values.arrow | a bucket of values | 64 bits of a key, the bytes' sha256 or an id, and the row's look |
| hashes.arrow | a share of the hashes by the value of one of their blocks (`hamming.searches`) | hash and sketch |
| vectors.arrow | all | embeddings, where they are searched |
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pipelines.flow.stage import Count, Inputs, Json, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s4_materialize.buckets.routing import bucket_name, bucket_of, power_of_two, write_routed
from pipelines.s4_materialize.decisions import RowsPart, groups_of, rows_parts
from pipelines.s4_materialize.evidence import (
    EMBEDDINGS,
    FINGERPRINTS,
    ID_COLUMNS,
    SCORES,
    read_evidence,
    row_ids,
)
from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.compact_rows import compact, shared_values
from x2vlm.data.duplicates.components import Looks
from x2vlm.data.duplicates.hamming import range_of, searches
from x2vlm.data.duplicates.id_files import LinkFile, read_links
from x2vlm.data.duplicates.sketches import mixed, text_hashes
from x2vlm.errors import ConfigError
from x2vlm.samples import MEDIA_KINDS

ROWS, VALUES, HASHES, VECTORS = "rows.arrow", "values.arrow", "hashes.arrow", "vectors.arrow"
LINKS = "links"  # the part made of the tables that link ids


class EvidenceConfig(FrozenConfig):
    """What is searched for, and how large buckets are."""

    radius: int | None = 6  # bits; None: no search by hash
    score: str = "mean"
    embeddings: bool = False
    texts: bool = False  # captions and concepts go along, to be merged into keepers
    readers: tuple[str, ...] = ()  # of each `rows` artifact: rows with an id in common come together. (): ids do not
    links: tuple[LinkFile, ...] = ()
    rows_per_bucket: int = Field(default=2_000_000, ge=1)
    hashes_per_range: int = Field(default=20_000_000, ge=1)


def plan_evidence(config: EvidenceConfig, inputs: Inputs) -> list[Part]:
    """One part a group of upstream parts, and one for the files of links."""
    files = (SCORES, FINGERPRINTS, *((EMBEDDINGS,) if config.embeddings else ()))
    parts = rows_parts(inputs, "evidence")
    if config.readers and len(config.readers) != len(inputs["rows"]):
        raise ConfigError("decontaminate: `readers` and `test_readers` must name one reader for each source it reads")
    num_rows = sum(part.rows.file("rows.parquet").rows or 0 for part in parts)
    sizes = {
        "buckets": power_of_two(num_rows / config.rows_per_bucket),
        "ranges": power_of_two(num_rows / config.hashes_per_range),
        "hashes": power_of_two(num_rows),
    }
    made = [_group_part(name, own, files, sizes) for name, own in groups_of(parts).items()]
    links = [Read("links", file) for one in inputs["links"] for part in one.parts for file in part.files]
    return [*made, *([Part(LINKS, tuple(links), sizes)] if links else [])]


def _group_part(name: str, parts: Sequence[RowsPart], files: Sequence[str], sizes: Json) -> Part:
    reads = [part.reads(*files) for part in parts]
    owners = [[part.name, part.source, len(own)] for part, own in zip(parts, reads, strict=True)]
    return Part(name, tuple(read for own in reads for read in own), {"owners": owners, **sizes})


def evidence_part(config: EvidenceConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    sizes = {name: part.spec[name] for name in ("buckets", "ranges", "hashes")}
    if part.name == LINKS:
        return _link_part(config, inputs, part, out, sizes)
    values: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = []
    made, found, num_rows = [], [], 0
    for (owner, source, _), reads in split_by_owner(part):
        rows = read_evidence(inputs, reads, config.score, config.embeddings, config.texts)
        num_rows += rows.num_rows
        own, looks = compact(_marked(rows, owner, part.name))
        values += [(shared_values(own, name), own["node"].to_numpy()) for name in ("key", "sha256")]
        if config.readers:
            values.append(_id_values(rows, own, config.readers[source]))
        dropped = () if config.readers else ID_COLUMNS
        made.append(own.drop_columns([name for name in dropped if name in own.column_names]))
        found.append(looks)
    rows = pa.concat_tables(made).combine_chunks() if made else None
    file_rows: dict[str, int] = {}
    if rows is not None and rows.num_rows:
        file_rows |= _write_values(out, values, sizes["buckets"])
        file_rows |= _write_hashes(out, config, found, sizes)
        if config.embeddings:
            vectors = rows.filter(pc.is_valid(rows["embedding"])).select(["node", "kind", "embedding"])
            file_rows |= write_routed(out.path / VECTORS, vectors, np.zeros(vectors.num_rows, int), lambda _: "all")
        place = bucket_of(rows["node"].to_numpy(), sizes["buckets"])
        file_rows |= write_routed(out.path / ROWS, rows, place, bucket_name)
    return PartResult({"rows": Count(num_rows, num_rows)}, file_rows, sizes)


def split_by_owner(part: Part) -> list[tuple[tuple[str, int, int], list[Read]]]:
    """(name, number of the source, number of reads) of each upstream part, and its reads."""
    found, start = [], 0
    for name, source, size in part.spec["owners"]:
        found.append(((name, source, size), list(part.reads[start : start + size])))
        start += size
    return found


def _marked(rows: pa.Table, owner: str, group: str) -> pa.Table:
    """`rows` with their place: upstream part, its group, and row there."""
    for name, value in (("owner", owner), ("group", group)):
        rows = rows.append_column(name, pa.repeat(pa.scalar(value), rows.num_rows))
    return rows.append_column("row", pa.array(np.arange(rows.num_rows, dtype=np.int32)))


def _id_values(rows: pa.Table, own: pa.Table, reader: str) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Ids of images as values, with the looks of their rows. Clips share a video's id without sharing its time."""
    shown = rows.filter(pc.and_(pc.equal(rows["kind"], MEDIA_KINDS[0]), pc.is_valid(rows["sha256"])))
    ids = row_ids(shown, reader)
    images = own["node"].filter(pc.equal(own["kind"], MEDIA_KINDS[0])).combine_chunks()
    place = pc.index_in(ids["key"], value_set=shown["key"].combine_chunks())
    values = text_hashes(pc.binary_join_element_wise(ids["id_kind"], ids["id_value"], ":").to_pylist())
    return values, images.take(place.combine_chunks()).to_numpy()


def _link_part(
    config: EvidenceConfig, inputs: PartReader, part: Part, out: PartWriter, sizes: dict[str, int]
) -> PartResult:
    """A look of its own for every link, which has both of its ids."""
    values, num_links = [], 0
    for file, read in zip(config.links, part.reads, strict=True):
        links = read_links(file, inputs.local_path(read.file))
        ends = [
            text_hashes(pc.binary_join_element_wise(links[f"{end}_kind"], links[f"{end}_value"], ":").to_pylist())
            for end in ("id", "other")
        ]
        node = mixed(*ends, len(MEDIA_KINDS))
        values += [(end, node) for end in ends]
        num_links += links.num_rows
    file_rows = _write_values(out, values, sizes["buckets"]) if num_links else {}
    return PartResult({"rows": Count(0, 0), "links": Count(num_links, num_links)}, file_rows, sizes)


def _write_values(
    out: PartWriter, values: Sequence[tuple[NDArray[np.uint64], NDArray[np.uint64]]], num_buckets: int
) -> dict[str, int]:
    value, node = (np.concatenate(column) for column in zip(*values, strict=True))
    pairs = _distinct(value, node)
    table = pa.table({"value": pairs[:, 0], "node": pairs[:, 1]})
    return write_routed(out.path / VALUES, table, bucket_of(mixed(pairs[:, 0]), num_buckets), bucket_name)


def _distinct(value: NDArray[np.uint64], node: NDArray[np.uint64]) -> NDArray[np.uint64]:
    order = np.lexsort((node, value))
    pairs = np.stack([value[order], node[order]], axis=1)
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[new]


def _write_hashes(
    out: PartWriter, config: EvidenceConfig, found: Sequence[dict[int, Looks]], sizes: dict[str, int]
) -> dict[str, int]:
    """The distinct looks; a copy for each block, in shares by its value, unless all are one share."""
    if config.radius is None:
        return {}
    pieces = [(kind, looks) for one in found for kind, looks in one.items()]
    if not pieces:
        return {}
    kinds = np.concatenate([np.full(len(looks.node), kind, np.uint8) for kind, looks in pieces])
    looks = Looks(*(np.concatenate(column) for column in zip(*(one for _, one in pieces), strict=True)))
    first = np.unique(looks.node, return_index=True)[1]
    first = first[np.argsort(looks.phash[first], kind="stable")]
    columns = {"kind": kinds, "phash": looks.phash, "first": looks.sketch_first, "second": looks.sketch_second}
    table = pa.table({name: column[first] for name, column in columns.items()})
    num_ranges = sizes["ranges"]
    if num_ranges == 1:
        return write_routed(out.path / HASHES, table, np.zeros(len(first), int), lambda _: "all")
    blocks = list(searches(config.radius, sizes["hashes"]))
    place = [number * num_ranges + range_of(looks.phash[first], one, num_ranges) for number, one in enumerate(blocks)]
    copies = pa.concat_tables([table] * len(blocks))
    return write_routed(out.path / HASHES, copies, np.concatenate(place), lambda one: share_name(one, num_ranges))


def share_name(place: int, num_ranges: int) -> str:
    """Name of the segment of one share of the hashes: number of the block, number of the share."""
    return f"{place // num_ranges}-{place % num_ranges:05d}"


EVIDENCE = Stage(
    name="evidence",
    version=1,
    config_type=EvidenceConfig,
    slots=("rows", "scores", "links"),
    plan_parts=plan_evidence,
    run_part=evidence_part,
)
