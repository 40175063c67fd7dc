"""`near` and `components`: which looks may match, and which of them hang together.

A part of `near` has a share of the hashes, a bucket of values that rows have in common, or all embeddings; where all
rows are one share, one part does everything. `components` is one part that sees pairs of 64-bit names alone.

A row stands in a share of each of `radius` + 1 blocks and in a bucket of each of its values, so without it that many
parts run again, 9 of 1,920 at 1.3 billion rows with the defaults. One share a row is not possible where there are two:
hashes that differ in one bit have to meet, and by changing one bit after the other every hash is reached from every
other.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.flow.stage import Count, Inputs, Json, Part, PartReader, PartResult, PartWriter, Read, Stage
from pipelines.s4_materialize.buckets.evidence_rows import HASHES, VALUES, VECTORS, share_name
from pipelines.s4_materialize.buckets.routing import (
    SegmentReads,
    bucket_name,
    bucket_of,
    of_file,
    tables,
    write_routed,
)
from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.components import NO_LINKS, Links, component_labels, looks_of, near_links, shared_links
from x2vlm.data.duplicates.hamming import searches
from x2vlm.data.duplicates.sketches import from_words
from x2vlm.errors import ConfigError
from x2vlm.samples import write_table

LINKS, LABELS = "links.parquet", "labels.arrow"
ROUNDING = 1e-3  # of a cosine: blocks of another shape add in another order


class NearConfig(FrozenConfig):
    """Within what two looks may match; the loosest of all searches that follow."""

    radius: int | None = 6  # bits; None: no search by hash
    min_correlation: float = 0.93  # of thumbnails
    min_cosine: float | None = None  # None: no search by embedding
    max_embeddings: int = Field(default=2_000_000, ge=1)  # all in one part: 2 N^2 D operations, 4 D bytes a row


def num_buckets_of(inputs: Inputs, slot: str) -> int:
    """The number of buckets, which every part of these stages has in its summary; 1 without parts."""
    return next((int(part.summary["buckets"]) for one in inputs[slot] for part in one.parts), 1)


def plan_near(config: NearConfig, inputs: Inputs) -> list[Part]:
    evidence = inputs["evidence"]
    made = [part.summary for one in evidence for part in one.parts]
    sizes = {name: made[0][name] if made else 1 for name in ("buckets", "ranges", "hashes")}
    hashes, values, vectors = (SegmentReads("evidence", evidence, name) for name in (HASHES, VALUES, VECTORS))
    check_embeddings(config, sum(read.file.rows or 0 for read in vectors.of("all")))
    own = {"hashes": sizes["hashes"], "buckets": sizes["buckets"]}
    if sizes["buckets"] == sizes["ranges"] == 1:
        reads = [*hashes.of("all"), *values.of(bucket_name(0)), *vectors.of("all")]
        return [Part("all", tuple(reads), {**own, "block": None})]
    parts = []
    if config.radius is not None and sizes["ranges"] == 1:
        parts.append(Part("hashes", tuple(hashes.of("all")), {**own, "block": None}))
    elif config.radius is not None:
        for place in range(len(searches(config.radius, sizes["hashes"])) * sizes["ranges"]):
            name = share_name(place, sizes["ranges"])
            spec = {**own, "block": place // sizes["ranges"]}
            parts.append(Part(f"hashes-{name}", tuple(hashes.of(name)), spec))
    for bucket in range(sizes["buckets"]):
        reads = values.of(bucket_name(bucket))
        parts.append(Part(f"values-{bucket_name(bucket)}", tuple(reads), {**own, "block": None}))
    if config.min_cosine is not None:
        parts.append(Part("embeddings", tuple(vectors.of("all")), {**own, "block": None}))
    return parts


def near_part(config: NearConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """links.parquet: pairs of looks; those that others imply are left out."""
    found = [NO_LINKS, *_by_hash(config, inputs, part), *_by_value(inputs, part), *_by_embedding(config, inputs, part)]
    left, right = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((right, left))
    write_table(pa.table({"left": left[order], "right": right[order]}), out.path / LINKS)
    summary = {"buckets": part.spec["buckets"], "metrics": {"links": len(left)}}
    return PartResult({"rows": Count(0, 0)}, {LINKS: len(left)}, summary)


def _by_hash(config: NearConfig, inputs: PartReader, part: Part) -> Iterator[Links]:
    pieces = list(tables(inputs, of_file(part.reads, HASHES)))
    if not pieces or config.radius is None:
        return
    every = pa.concat_tables(pieces)
    del pieces
    blocks = list(searches(config.radius, part.spec["hashes"]).values())
    chosen = part.spec["block"]
    wanted = [table for one in blocks for table in one] if chosen is None else blocks[chosen]
    for kind in pc.unique(every["kind"]).sort().to_pylist():
        own = every.filter(pc.equal(every["kind"], kind))
        sketch = from_words(own["first"].to_numpy(), own["second"].to_numpy())
        looks = looks_of(kind, own["phash"].to_numpy(), sketch)
        yield near_links(looks, wanted, config.radius, config.min_correlation, equal=chosen in (None, 0))


def _by_value(inputs: PartReader, part: Part) -> Iterator[Links]:
    pieces = list(tables(inputs, of_file(part.reads, VALUES)))
    if pieces:
        every = pa.concat_tables(pieces)
        yield shared_links(every["value"].to_numpy(), every["node"].to_numpy())


def _by_embedding(config: NearConfig, inputs: PartReader, part: Part) -> Iterator[Links]:
    files = of_file(part.reads, VECTORS)
    if config.min_cosine is None or not files:
        return
    from x2vlm.data.duplicates.matches import embedding_matrix
    from x2vlm.data.duplicates.neighbours import near_neighbours  # the only search that needs torch

    every = pa.concat_tables(tables(inputs, files))
    for kind in sorted(pc.unique(every["kind"]).to_pylist()):
        own = every.filter(pc.equal(every["kind"], kind))
        pairs = near_neighbours(embedding_matrix(own["embedding"]), max(config.min_cosine - ROUNDING, 1e-6))
        node = own["node"].to_numpy()
        yield Links(node[pairs.left], node[pairs.right])


def check_embeddings(config: NearConfig, num_rows: int) -> None:
    """ConfigError for more rows than one part can compare with each other."""
    if num_rows > config.max_embeddings:
        raise ConfigError(
            f"min_cosine: {num_rows} rows have an embedding, and a search among more than {config.max_embeddings} "
            "would compare each with each in one part; take `min_cosine` out of decontaminate.rule and deduplicate.rule"
        )


NEAR = Stage(
    name="near",
    version=1,
    config_type=NearConfig,
    slots=("evidence",),
    plan_parts=plan_near,
    run_part=near_part,
    allow_zero_rows=True,
)


class ComponentsConfig(FrozenConfig):
    """Nothing can be chosen."""


def plan_components(config: ComponentsConfig, inputs: Inputs) -> list[Part]:
    parts = [part for one in inputs["links"] for part in one.parts]
    reads = [Read("links", part.file(LINKS)) for part in parts]
    return [Part("all", tuple(reads), {"buckets": parts[0].summary["buckets"] if parts else 1})]


def components_part(config: ComponentsConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """labels.arrow: for a bucket of looks, every linked look and the name of its component."""
    pieces = [pq.read_table(inputs.local_path(read.file)) for read in part.reads]
    links = Links(*(np.concatenate([one[side].to_numpy() for one in pieces]) for side in ("left", "right")))
    nodes, labels = component_labels(links)
    table = pa.table({"node": nodes, "label": labels})
    file_rows = write_routed(out.path / LABELS, table, bucket_of(nodes, part.spec["buckets"]), bucket_name)
    summary: dict[str, Json] = {"buckets": part.spec["buckets"], "components": len(np.unique(labels))}
    return PartResult({"rows": Count(0, 0)}, file_rows, summary)


COMPONENTS = Stage(
    name="components",
    version=1,
    config_type=ComponentsConfig,
    slots=("links",),
    plan_parts=plan_components,
    run_part=components_part,
    allow_zero_rows=True,
)
