"""Which rows show the same image or clip, and which of them is kept.

| method | two rows match if | distance |
|---|---|---|
| sha256 | their media have the same bytes | 0 |
| pixels | their media decode to the same pixels | 0 |
| phash | hashes within `radius` bits and thumbnails alike; of a clip its frames one by one, on average | bits |
| embedding | cosine of at least `min_cosine` | 1 - cosine |

Clusters are stars, never chains: rows are visited from the best to the worst, and a row is either a duplicate of a
better one that it matches directly, or becomes a keeper. So every dropped row was compared with its keeper, no two
keepers match, and the result does not depend on the order of the table. Images and clips never match each other.

Where rows are too many for one table, `x2vlm.data.duplicates.components` says which must be in one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.matches import EmbeddingMatches, HashMatches
from x2vlm.data.media.phash import FINGERPRINT_FIELDS
from x2vlm.errors import CorruptArtifact
from x2vlm.samples import MEDIA_KINDS

ROW_FIELDS: list[pa.Field] = [
    pa.field("key", pa.string()),
    pa.field("source", pa.string()),
    pa.field("kind", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),  # of the original, oriented pixels
    pa.field("height", pa.int32()),
    pa.field("num_captions", pa.int32()),
]
ROW_SCHEMA = pa.schema(ROW_FIELDS + FINGERPRINT_FIELDS)  # a null pixel_sha256: only the bytes are known
CLUSTER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("keeper", pa.string()),  # key of the row kept for the cluster; it names the cluster
        ("method", pa.string()),  # how it matches the keeper; "keeper" for the keeper itself
        ("distance", pa.float64()),  # from the keeper
        ("action", pa.string()),  # keep, drop, or share: kept although it is a duplicate
    ]
)
ANNOTATED = ("coco", "refcoco", "visual_genome", "gqa", "flickr_entities", "openimages", "objects365")


class DuplicateConfig(FrozenConfig):
    """What counts as a duplicate, and which row of a cluster is the best.

    The best is of the source named first in `priority` (others follow by name), then has the larger image, then more
    captions, then the smaller key. Sources in `share` annotate images that other sources contain on purpose (RefCOCO
    those of COCO, half of Visual Genome too): the best row of each of them is kept, whatever the keeper's source.
    """

    radius: int | None = Field(default=6, ge=0, le=16)  # bits; None: no search by hash
    # Of thumbnails of two images with near hashes. 156 photos and 300 scenes, re-encoded (JPEG 20 and 50) or scaled
    # (1/2, 1/4): 0.975 or more, with 5 % cropped 0.935 or more; different tiles of photos with near hashes: up to 0.88.
    min_correlation: float = Field(default=0.93, ge=-1, le=1)
    min_cosine: float | None = Field(default=None, gt=0, le=1)  # None: no search by embedding
    priority: tuple[str, ...] = ANNOTATED
    share: tuple[str, ...] = ANNOTATED


def image_rows(samples: pa.Table, fingerprints: pa.Table) -> pa.Table:
    """The rows of a table of SAMPLE_SCHEMA as ROW_SCHEMA, and `embedding` as last column if `fingerprints` has it.

    `fingerprints` has `key` and FINGERPRINT_FIELDS, a row for each sample in the same order, nulls where there is none;
    CorruptArtifact if its keys differ. All columns of `leaks.TRAIN_SCHEMA` are among those of ROW_SCHEMA.
    """
    if not samples["key"].equals(fingerprints["key"]):
        raise CorruptArtifact("the fingerprints are not those of the samples: their keys differ; rerun score")
    media = samples["media"]
    columns = {name: samples[name] for name in ("key", "source", "kind")}
    columns |= {name: pc.struct_field(media, name) for name in ("sha256", "width", "height")}
    columns["num_captions"] = pc.fill_null(pc.list_value_length(samples["captions"]), 0)
    columns |= {one.name: fingerprints[one.name] for one in FINGERPRINT_FIELDS}
    rows = pa.table(columns).select(ROW_SCHEMA.names).cast(ROW_SCHEMA)
    has_embedding = "embedding" in fingerprints.column_names
    return rows.append_column("embedding", fingerprints["embedding"]) if has_embedding else rows


def find_duplicates(rows: pa.Table, config: DuplicateConfig) -> pa.Table:
    """The rows that share their image with another row, as CLUSTER_SCHEMA, by keeper and key.

    `rows` has the columns of ROW_SCHEMA, and `embedding` (list<float16 or float32>, null where there is none) if
    `min_cosine` is set. Rows without media (null sha256) match nothing. Time is that of sorting N rows and hashes
    (`x2vlm.data.duplicates.hamming`), and N^2 only for embeddings; memory is about three times that of `rows` at 400
    bytes each. CorruptArtifact where one media has two fingerprints, ValueError where two rows have one key.
    """
    rows = rows.filter(pc.is_valid(rows["sha256"])).combine_chunks()
    rows = rows.take(_preference(rows, config))
    if rows.num_rows > 1 and pc.count_distinct(rows["key"]).as_py() != rows.num_rows:
        raise ValueError("two rows have the same key: keys name samples, each once")
    images = _images(rows)
    keeper_P, method_P, distance_P = _assign_keepers(images, config)
    return _cluster_table(rows, images, keeper_P, method_P, distance_P, config)


def _preference(rows: pa.Table, config: DuplicateConfig) -> pa.Array:
    """Row indices from the best to the worst."""
    place = pc.index_in(rows["source"], value_set=pa.array(config.priority, pa.string()))
    area = pc.multiply(pc.cast(rows["width"], pa.int64()), pc.cast(rows["height"], pa.int64()))
    columns = {
        "place": pc.fill_null(place, len(config.priority)),
        "source": rows["source"],
        "area": pc.fill_null(area, 0),
        "captions": rows["num_captions"],
        "key": rows["key"],
    }
    descending = ("area", "captions")
    order = [(name, "descending" if name in descending else "ascending") for name in columns]
    return pc.sort_indices(pa.table(columns), sort_keys=order)


# P distinct images (sets of rows with equal pixels), numbered from the best to the worst


@dataclass(frozen=True)
class _DistinctImages:
    of_row: NDArray[np.int64]  # row -> image
    best_row: NDArray[np.int64]  # image -> its first row
    table: pa.Table  # the rows of `best_row`


def _images(rows: pa.Table) -> _DistinctImages:
    """The distinct images of `rows`, which are sorted by preference."""
    _check_one_fingerprint_a_media(rows)
    known = pc.if_else(pc.is_valid(rows["pixel_sha256"]), rows["pixel_sha256"], rows["sha256"])
    name = pc.binary_join_element_wise(rows["kind"], known, ":")
    of_row = pc.dictionary_encode(name).combine_chunks().indices.to_numpy().astype(np.int64)
    # A dictionary numbers values as they come, so image numbers follow the preference too.
    best_row = np.unique(of_row, return_index=True)[1].astype(np.int64)
    return _DistinctImages(of_row, best_row, rows.take(pa.array(best_row)).combine_chunks())


def _check_one_fingerprint_a_media(rows: pa.Table) -> None:
    pairs = rows.select(["kind", "sha256", "pixel_sha256"]).group_by(["kind", "sha256", "pixel_sha256"]).aggregate([])
    media = pairs.group_by(["kind", "sha256"]).aggregate([("pixel_sha256", "count", pc.CountOptions(mode="all"))])
    torn = media.filter(pc.greater(media["pixel_sha256_count"], 1))
    if torn.num_rows:
        sha256 = torn["sha256"][0].as_py()
        raise CorruptArtifact(
            f"media {sha256} has {torn['pixel_sha256_count'][0].as_py()} different fingerprints ({torn.num_rows} media "
            "do): they come from different versions of the decoder; rerun score for all sources"
        )


def _assign_keepers(
    images: _DistinctImages, config: DuplicateConfig
) -> tuple[NDArray[np.int64], NDArray[np.object_], NDArray[np.float64]]:
    """Per image its keeper (its own number if it is kept), how they match, and their distance."""
    num_images = images.table.num_rows
    keeper_P, distance_P = np.full(num_images, -1, np.int64), np.zeros(num_images)
    method_P = np.full(num_images, "", object)
    searches: list[HashMatches | EmbeddingMatches] = []
    for kind in MEDIA_KINDS:
        own = np.flatnonzero(pc.equal(images.table["kind"], kind).to_numpy(zero_copy_only=False))
        if config.radius is not None:
            searches.append(HashMatches(images.table, own, config.radius, config.min_correlation))
        if config.min_cosine is not None:
            searches.append(EmbeddingMatches(images.table, own, config.min_cosine))
    has_neighbours = np.zeros(num_images, dtype=bool)
    for search in searches:
        has_neighbours[search.with_candidates()] = True
    is_free = np.ones(num_images, dtype=bool)
    for image in np.flatnonzero(has_neighbours):
        if not is_free[image]:
            continue
        keeper_P[image], is_free[image] = image, False
        for search in searches:
            taken, distance = search.matches(int(image), is_free)
            keeper_P[taken], method_P[taken], distance_P[taken] = image, search.method, distance
            is_free[taken] = False
    left = np.flatnonzero(keeper_P < 0)
    keeper_P[left] = left
    return keeper_P, method_P, distance_P


def _cluster_table(
    rows: pa.Table,
    images: _DistinctImages,
    keeper_P: NDArray[np.int64],
    method_P: NDArray[np.object_],
    distance_P: NDArray[np.float64],
    config: DuplicateConfig,
) -> pa.Table:
    cluster_of_row = keeper_P[images.of_row]
    size = np.bincount(cluster_of_row, minlength=len(keeper_P))
    listed = np.flatnonzero(size[cluster_of_row] > 1)
    columns = rows.select(["key", "source", "sha256"]).take(pa.array(listed)).to_pylist()
    keepers = rows.select(["key", "sha256"]).take(pa.array(images.best_row[cluster_of_row[listed]])).to_pylist()
    seen: set[tuple[str, str]] = set()  # (cluster, source) with a better row before
    made = []
    for number, row, keeper in zip(listed, columns, keepers, strict=True):
        image = images.of_row[number]
        method = method_P[image] or ("sha256" if row["sha256"] == keeper["sha256"] else "pixels")
        action = "drop"
        if row["key"] == keeper["key"]:
            method, action = "keeper", "keep"
        elif row["source"] in config.share and (keeper["key"], row["source"]) not in seen:
            action = "share"
        seen.add((keeper["key"], row["source"]))
        values = (row["key"], row["source"], keeper["key"], method, float(distance_P[image]), action)
        made.append(dict(zip(CLUSTER_SCHEMA.names, values, strict=True)))
    made.sort(key=lambda one: (one["keeper"], one["key"]))
    return pa.Table.from_pylist(made, schema=CLUSTER_SCHEMA)


def count_duplicates(clusters: pa.Table) -> dict[str, Any]:
    """Clusters, rows by action, and dropped rows by method, for the manifest of a stage."""
    dropped = clusters.filter(pc.equal(clusters["action"], "drop"))
    return {
        "clusters": pc.count_distinct(clusters["keeper"]).as_py(),
        "actions": _value_counts(clusters["action"]),
        "dropped_by_method": _value_counts(dropped["method"]),
        "dropped_by_source": _value_counts(dropped["source"]),
    }


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return dict(sorted(_pairs(pc.value_counts(column))))


def _pairs(counts: pa.StructArray) -> Iterator[tuple[str, int]]:
    for entry in counts.to_pylist():
        yield entry["values"], entry["counts"]
