"""Which rows show the same picture or clip, and which of them stays.

| method | two rows match if | distance |
|---|---|---|
| sha256 | their media have the same bytes | 0 |
| pixels | their media decode to the same pixels | 0 |
| phash | hashes within `radius` bits and thumbnails alike; of a clip its frames one by one, on average | bits |
| embedding | cosine of at least `min_cosine` | 1 - cosine |

Clusters are stars, never chains: rows are visited from the best to the worst, and a row is either taken by a better one
that it matches itself, or becomes a keeper. So every row that goes was compared with the row that stays for it, no two
keepers match, and the order of the table says nothing. Images and clips never match each other.
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
from x2vlm.data.hamming import near_pairs
from x2vlm.data.phash import FINGERPRINT_FIELDS, thumbnail_correlation, thumbnail_matrix
from x2vlm.errors import CorruptArtifact

ROW_FIELDS: list[pa.Field] = [
    pa.field("key", pa.string()),
    pa.field("source", pa.string()),
    pa.field("kind", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("width", pa.int32()),  # of the original, oriented pixels
    pa.field("height", pa.int32()),
    pa.field("num_captions", pa.int32()),
]
ROW_SCHEMA = pa.schema(ROW_FIELDS + FINGERPRINT_FIELDS)  # a null pixel_sha256: nothing is known but the bytes
CLUSTER_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("keeper", pa.string()),  # key of the row that stays for it; it names the cluster
        ("method", pa.string()),  # how it matches the keeper; "keeper" for the keeper itself
        ("distance", pa.float64()),  # from the keeper
        ("action", pa.string()),  # keep, drop, or share: it stays although it is a duplicate
    ]
)
ANNOTATED = ("coco", "refcoco", "visual_genome", "gqa", "flickr_entities", "openimages", "objects365")


class DuplicateConfig(FrozenConfig):
    """What counts as a duplicate, and which row of a cluster is the best.

    The best is of the source named first in `priority` (others follow by name), then has the larger picture, then more
    captions, then the smaller key. Sources in `share` describe pictures that other sources show on purpose (RefCOCO
    those of COCO, half of Visual Genome too): the best row of each of them stays, whatever the keeper's source.
    """

    radius: int | None = Field(default=6, ge=0, le=16)  # bits; None: no search by hash
    # Of thumbnails of two pictures with near hashes. 156 photos and 300 scenes, re-encoded (JPEG 20 and 50) or scaled
    # (1/2, 1/4): 0.975 or more, with 5 % cropped 0.935 or more; different tiles of photos with near hashes: up to 0.88.
    min_correlation: float = Field(default=0.93, ge=-1, le=1)
    min_cosine: float | None = Field(default=None, gt=0, le=1)  # None: no search by embedding
    priority: tuple[str, ...] = ANNOTATED
    share: tuple[str, ...] = ANNOTATED


def find_duplicates(rows: pa.Table, config: DuplicateConfig) -> pa.Table:
    """The rows that share their picture with another row, as CLUSTER_SCHEMA, by keeper and key.

    `rows` has the columns of ROW_SCHEMA, and `embedding` (list<float16 or float32>, null where there is none) if
    `min_cosine` is set. Rows without media (null sha256) match nothing. Time is that of sorting N rows and hashes
    (`x2vlm.data.hamming`), and N^2 only for embeddings; memory is about twice that of `rows`. CorruptArtifact where
    one media has two fingerprints, ValueError where two rows have one key.
    """
    rows = rows.filter(pc.is_valid(rows["sha256"])).combine_chunks()
    rows = rows.take(_preference(rows, config))
    if rows.num_rows > 1 and pc.count_distinct(rows["key"]).as_py() != rows.num_rows:
        raise ValueError("two rows have the same key: keys name samples, each once")
    pictures = _pictures(rows)
    keeper_P, method_P, distance_P = _stars(pictures, config)
    return _cluster_table(rows, pictures, keeper_P, method_P, distance_P, config)


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


# P pictures: what rows with equal pixels have in common, numbered from the best to the worst


@dataclass(frozen=True)
class _Pictures:
    of_row: NDArray[np.int64]  # row -> picture
    best_row: NDArray[np.int64]  # picture -> its first row
    table: pa.Table  # the rows of `best_row`


def _pictures(rows: pa.Table) -> _Pictures:
    """The distinct pictures of `rows`, which are sorted by preference."""
    _check_one_fingerprint_a_media(rows)
    known = pc.if_else(pc.is_valid(rows["pixel_sha256"]), rows["pixel_sha256"], rows["sha256"])
    name = pc.binary_join_element_wise(rows["kind"], known, ":")
    of_row = pc.dictionary_encode(name).combine_chunks().indices.to_numpy().astype(np.int64)
    # A dictionary numbers values as they come, so picture numbers follow the preference too.
    best_row = np.unique(of_row, return_index=True)[1].astype(np.int64)
    return _Pictures(of_row, best_row, rows.take(pa.array(best_row)).combine_chunks())


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


def _stars(
    pictures: _Pictures, config: DuplicateConfig
) -> tuple[NDArray[np.int64], NDArray[np.object_], NDArray[np.float64]]:
    """Per picture the picture that stays for it (its own number if it stays), how they match, and their distance."""
    num_pictures = pictures.table.num_rows
    keeper_P, distance_P = np.full(num_pictures, -1, np.int64), np.zeros(num_pictures)
    method_P = np.full(num_pictures, "", object)
    searches: list[_Hashes | _Embeddings] = []
    for kind in ("image", "video"):
        own = np.flatnonzero(pc.equal(pictures.table["kind"], kind).to_numpy(zero_copy_only=False))
        if config.radius is not None:
            searches.append(_Hashes(pictures.table, own, config.radius, config.min_correlation))
        if config.min_cosine is not None:
            searches.append(_Embeddings(pictures.table, own, config.min_cosine))
    has_neighbours = np.zeros(num_pictures, dtype=bool)
    for search in searches:
        has_neighbours[search.with_candidates()] = True
    for picture in np.flatnonzero(has_neighbours):
        if keeper_P[picture] >= 0:
            continue
        keeper_P[picture] = picture
        for search in searches:
            taken, distance = search.matches(int(picture), keeper_P < 0)
            keeper_P[taken], method_P[taken], distance_P[taken] = picture, search.method, distance
    alone = keeper_P < 0
    keeper_P[alone] = np.flatnonzero(alone)
    return keeper_P, method_P, distance_P


class _Hashes:
    """Pictures of one kind by perceptual hash. Flat ones are left out."""

    method = "phash"

    def __init__(self, table: pa.Table, own: NDArray[np.int64], radius: int, min_correlation: float) -> None:
        usable = pc.and_kleene(pc.is_valid(table["phash"]), pc.invert(table["phash_flat"]))
        own = own[pc.fill_null(usable, False).to_numpy(zero_copy_only=False)[own]]
        hash_N = table["phash"].take(pa.array(own)).to_numpy().astype(np.uint64)
        self._radius, self._min_correlation = radius, min_correlation
        self._values, value_of_N = np.unique(hash_N, return_inverse=True)
        order = np.argsort(value_of_N, kind="stable")
        self._pictures, self._starts = own[order], np.searchsorted(value_of_N[order], np.arange(len(self._values) + 1))
        pairs = near_pairs(self._values, radius)
        self._near = _Adjacency(pairs.left, pairs.right, pairs.distance.astype(np.float64), len(self._values))
        self._value_of = dict(
            zip(own[self._busy()[value_of_N]].tolist(), value_of_N[self._busy()[value_of_N]], strict=True)
        )
        self._row_of = {picture: number for number, picture in enumerate(sorted(self._value_of))}
        busy = table.take(pa.array(sorted(self._value_of), pa.int64()))
        self._thumbnails = thumbnail_matrix(busy["thumbnail"])
        self._frames = [np.array(one, np.uint64) for one in busy["frame_phashes"].to_pylist()]

    def _busy(self) -> NDArray[np.bool_]:
        """Per hash value, whether several pictures have it or one near it."""
        return (np.diff(self._starts) > 1) | self._near.has_any()

    def with_candidates(self) -> list[int]:
        return list(self._value_of)

    def matches(self, picture: int, is_free: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The free pictures that match `picture`, and in how many bits they differ."""
        if picture not in self._value_of:
            return np.empty(0, np.int64), np.empty(0)
        value = int(self._value_of[picture])
        near, bits = self._near.of(value)
        groups = [self._pictures[self._starts[one] : self._starts[one + 1]] for one in (value, *near)]
        sizes = [len(group) for group in groups]
        others, distance = np.concatenate(groups), np.repeat(np.array([0.0, *bits]), sizes)
        free = is_free[others]
        others, distance = others[free], distance[free]
        own, rows = self._row_of[picture], np.array([self._row_of[int(one)] for one in others], np.int64)
        left = np.broadcast_to(self._thumbnails[own], (len(rows), self._thumbnails.shape[1]))
        good = thumbnail_correlation(left, self._thumbnails[rows]) >= self._min_correlation
        good &= np.array([self._same_frames(own, row) for row in rows], dtype=bool)
        return others[good], distance[good]

    def _same_frames(self, left: int, right: int) -> bool:
        """True where two pictures have as many frames, on average within the radius; single pictures always do."""
        a, b = self._frames[left], self._frames[right]
        return len(a) == len(b) and (len(a) == 1 or float(np.bitwise_count(a ^ b).mean()) <= self._radius)


class _Embeddings:
    """Pictures of one kind by their embedding."""

    method = "embedding"

    def __init__(self, table: pa.Table, own: NDArray[np.int64], min_cosine: float) -> None:
        from x2vlm.data.neighbours import near_neighbours  # the only search that needs torch

        valid = pc.is_valid(table["embedding"]).to_numpy(zero_copy_only=False)
        own = own[valid[own]]
        column = table["embedding"].take(pa.array(own)).combine_chunks()
        embedding_ND = (
            pc.list_flatten(column).to_numpy(zero_copy_only=False).reshape(len(own), -1) if len(own) else None
        )
        pairs = near_neighbours(np.empty((0, 1), np.float32) if embedding_ND is None else embedding_ND, min_cosine)
        left, right = own[pairs.left], own[pairs.right]
        self._near = _Adjacency(left, right, 1.0 - pairs.cosine.astype(np.float64), table.num_rows)

    def with_candidates(self) -> list[int]:
        return np.flatnonzero(self._near.has_any()).tolist()

    def matches(self, picture: int, is_free: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The free pictures that match `picture`, and 1 - cosine."""
        others, distance = self._near.of(picture)
        free = is_free[others]
        return others[free], distance[free]


class _Adjacency:
    """Neighbours of each of `size` numbers, from pairs."""

    def __init__(self, left: NDArray[Any], right: NDArray[Any], distance: NDArray[np.float64], size: int) -> None:
        ends = np.concatenate([left, right]).astype(np.int64)
        order = np.argsort(ends, kind="stable")
        self._others = np.concatenate([right, left]).astype(np.int64)[order]
        self._distance = np.concatenate([distance, distance])[order]
        self._starts = np.searchsorted(ends[order], np.arange(size + 1))

    def of(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        span = slice(self._starts[number], self._starts[number + 1])
        return self._others[span], self._distance[span]

    def has_any(self) -> NDArray[np.bool_]:
        return np.asarray(np.diff(self._starts) > 0)


def _cluster_table(
    rows: pa.Table,
    pictures: _Pictures,
    keeper_P: NDArray[np.int64],
    method_P: NDArray[np.object_],
    distance_P: NDArray[np.float64],
    config: DuplicateConfig,
) -> pa.Table:
    cluster_of_row = keeper_P[pictures.of_row]
    size = np.bincount(cluster_of_row, minlength=len(keeper_P))
    listed = np.flatnonzero(size[cluster_of_row] > 1)
    columns = rows.select(["key", "source", "sha256"]).take(pa.array(listed)).to_pylist()
    keepers = rows.select(["key", "sha256"]).take(pa.array(pictures.best_row[cluster_of_row[listed]])).to_pylist()
    seen: set[tuple[str, str]] = set()  # (cluster, source) of which a better row came before
    made = []
    for number, row, keeper in zip(listed, columns, keepers, strict=True):
        picture = pictures.of_row[number]
        method = method_P[picture] or ("sha256" if row["sha256"] == keeper["sha256"] else "pixels")
        action = "drop"
        if row["key"] == keeper["key"]:
            method, action = "keeper", "keep"
        elif row["source"] in config.share and (keeper["key"], row["source"]) not in seen:
            action = "share"
        seen.add((keeper["key"], row["source"]))
        values = (row["key"], row["source"], keeper["key"], method, float(distance_P[picture]), action)
        made.append(dict(zip(CLUSTER_SCHEMA.names, values, strict=True)))
    made.sort(key=lambda one: (one["keeper"], one["key"]))
    return pa.Table.from_pylist(made, schema=CLUSTER_SCHEMA)


def count_duplicates(clusters: pa.Table) -> dict[str, Any]:
    """Clusters, rows by action, and dropped rows by method: what a stage puts into its manifest."""
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
