"""Searches for test images and videos among training rows: one per method, each returning a table of LEAK_SCHEMA.

The methods and the policies for their finds: `x2vlm.data.duplicates.decontamination`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from x2vlm.data.duplicates.hamming import BITS, cross_pairs
from x2vlm.data.duplicates.identities import Identities, with_identity
from x2vlm.data.duplicates.matches import embedding_matrix
from x2vlm.data.media.phash import FINGERPRINT_FIELDS, thumbnail_correlation, thumbnail_matrix

TRAIN_SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("key", "source", "kind", "sha256")] + FINGERPRINT_FIELDS
)
EVALUATION_SCHEMA = pa.schema(
    [pa.field(name, pa.string()) for name in ("eval_set", "split", "eval_id", "kind")]
    + [pa.field("variant", pa.string()), pa.field("sha256", pa.string())]  # variant: "" or one of phash.variants
    + FINGERPRINT_FIELDS
)
LEAK_SCHEMA = pa.schema(
    [
        ("eval_set", pa.string()),
        ("split", pa.string()),
        ("eval_id", pa.string()),
        ("key", pa.string()),
        ("source", pa.string()),
        ("method", pa.string()),  # one of the table above; same_media, same_id or same_cluster if `via` is set
        ("score", pa.float64()),  # in [0, 1], 1 for certain
        ("via", pa.string()),  # key of the leaking row that shows the same image; "" if the row leaks itself
        ("action", pa.string()),  # drop or report
    ]
)
MIN_FRAME_FRACTION = 0.5  # of the test clip's informative frames that must be near a frame of the training clip
PIECE = 1 << 16  # pairs of near hashes compared at a time


def leaks_by_id(ids: pa.Table, test_ids: pa.Table, identities: Identities) -> pa.Table:
    """Rows with the identity of a test image; of videos those whose time overlaps."""
    ours, theirs = with_identity(ids, identities), with_identity(test_ids, identities)
    theirs = theirs.filter(pc.is_valid(theirs["identity"]))
    pairs = _join(ours, theirs, "identity")
    spans = ("start_seconds", "end_seconds", "start_seconds_right", "end_seconds_right")
    fraction = np.array([_overlap(*span) for span in zip(*(pairs[name].to_pylist() for name in spans), strict=True)])
    leaks = pairs.filter(pa.array(fraction > 0, pa.bool_()))
    return _leaks(leaks, "id", fraction[fraction > 0])


def _overlap(start: float | None, end: float | None, test_start: float | None, test_end: float | None) -> float:
    """The fraction of the test clip that the training clip covers; 1 where the test has no known end."""
    low, high = max(start or 0.0, test_start or 0.0), min(end or np.inf, test_end or np.inf)
    if low >= high:
        return 0.0
    length = (test_end or np.inf) - (test_start or 0.0)
    return float((high - low) / length) if np.isfinite(length) else 1.0


def leaks_by_hash(column: str, rows: pa.Table, images: pa.Table) -> pa.Table:
    images = images.filter(pc.and_kleene(pc.equal(images["variant"], ""), pc.is_valid(images[column])))
    pairs = _join(_narrow(rows, column), _narrow(images, column), column)
    return _leaks(pairs, "sha256" if column == "sha256" else "pixels", np.ones(pairs.num_rows))


def _narrow(table: pa.Table, column: str) -> pa.Table:
    names = [name for name in ("key", "source", "eval_set", "split", "eval_id") if name in table.column_names]
    return table.select([*names, column]).filter(pc.is_valid(table[column]))


def _join(ours: pa.Table, theirs: pa.Table, column: str) -> pa.Table:
    return ours.join(theirs, column, join_type="inner", right_suffix="_right", use_threads=False)


def leaks_by_phash(rows: pa.Table, images: pa.Table, radius: int, min_correlation: float) -> pa.Table:
    """Images with a hash near that of a test image or its variant, and a similar thumbnail."""
    rows, images = (_with_informative_hash(table) for table in (rows, images))
    pairs = _near(rows["phash"].to_numpy(), images["phash"].to_numpy(), radius)
    left, right = (thumbnail_matrix(table["thumbnail"]) for table in (rows, images))
    made = []
    for ours, theirs, bits in pairs:
        good = thumbnail_correlation(left[ours], right[theirs]) >= min_correlation
        ours, theirs, bits = ours[good], theirs[good], bits[good]
        taken = _side_by_side(rows, ours, images, theirs)
        variant = taken["variant"]
        method = pc.if_else(pc.equal(variant, ""), "phash", pc.binary_join_element_wise("phash", variant, "_"))
        made.append(_leaks(taken, method, 1 - bits / BITS))
    return pa.concat_tables([LEAK_SCHEMA.empty_table(), *made])


def _with_informative_hash(table: pa.Table) -> pa.Table:
    usable = pc.and_kleene(pc.is_valid(table["phash"]), pc.invert(table["phash_flat"]))
    return table.filter(pc.and_kleene(pc.equal(table["kind"], "image"), usable)).combine_chunks()


def _near(
    left: NDArray[np.uint64], right: NDArray[np.uint64], radius: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Row numbers on both sides and bits between them, for every pair of rows with near hashes; in pieces."""
    (left_values, left_order, left_starts), (right_values, right_order, right_starts) = (
        _groups(side.astype(np.uint64)) for side in (left, right)
    )
    pairs = cross_pairs(left_values, right_values, radius)
    for start in range(0, len(pairs), PIECE):
        a, b, bits = (column[start : start + PIECE] for column in pairs)
        ours, theirs = left_starts[a + 1] - left_starts[a], right_starts[b + 1] - right_starts[b]
        size = ours * theirs
        pair = np.repeat(np.arange(len(a)), size)
        within = np.arange(len(pair)) - np.repeat(np.cumsum(size) - size, size)
        row = left_order[left_starts[a][pair] + within // theirs[pair]]
        yield row, right_order[right_starts[b][pair] + within % theirs[pair]], bits[pair].astype(np.float64)


def _groups(values: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    distinct, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    return distinct, order, np.searchsorted(inverse[order], np.arange(len(distinct) + 1))


def leaks_by_frames(rows: pa.Table, images: pa.Table, radius: int) -> pa.Table:
    """Clips with frames near at least MIN_FRAME_FRACTION of the informative frames of a test clip, at any time."""
    is_plain = pc.and_kleene(pc.equal(images["variant"], ""), pc.equal(images["kind"], "video"))
    rows, images = rows.filter(pc.equal(rows["kind"], "video")), images.filter(is_plain)
    (our_clip, ours), (their_clip, theirs) = (_frames(table) for table in (rows, images))
    if not len(ours) or not len(theirs):
        return LEAK_SCHEMA.empty_table()
    hits = [np.stack([our_clip[a], b], axis=1) for a, b, _ in _near(ours, theirs, radius)]
    # (clip, test frame), each once however many frames of the clip are near it
    distinct = np.unique(np.concatenate([np.empty((0, 2), np.int64), *hits]), axis=0)
    pairs, counts = np.unique(
        np.stack([distinct[:, 0], their_clip[distinct[:, 1]]], axis=1), axis=0, return_counts=True
    )
    fraction = counts / np.bincount(their_clip, minlength=images.num_rows)[pairs[:, 1]]
    enough = fraction >= MIN_FRAME_FRACTION
    return _leaks(_side_by_side(rows, pairs[enough, 0], images, pairs[enough, 1]), "phash", fraction[enough])


def _frames(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Of every informative frame the row number of its clip, and its hash."""
    column = table["frame_phashes"].combine_chunks()
    clip, values = pc.list_parent_indices(column), pc.list_flatten(column)
    known = pc.is_valid(values)
    return clip.filter(known).to_numpy().astype(np.int64), values.filter(known).to_numpy().astype(np.uint64)


def leaks_by_embedding(rows: pa.Table, images: pa.Table, min_cosine: float) -> pa.Table:
    from x2vlm.data.duplicates.neighbours import cross_neighbours  # the only search that needs torch

    rows = rows.filter(pc.is_valid(rows["embedding"]))
    plain = pc.and_kleene(pc.equal(images["variant"], ""), pc.is_valid(images["embedding"]))
    images = images.filter(plain)
    if not rows.num_rows or not images.num_rows:
        return LEAK_SCHEMA.empty_table()
    ours, theirs, cosine = cross_neighbours(
        embedding_matrix(rows["embedding"]), embedding_matrix(images["embedding"]), min_cosine
    )
    same_kind = np.array(rows["kind"].to_pylist())[ours] == np.array(images["kind"].to_pylist())[theirs]
    taken = _side_by_side(rows, ours[same_kind], images, theirs[same_kind])
    return _leaks(taken, "embedding", cosine[same_kind].astype(np.float64))


def _side_by_side(rows: pa.Table, ours: NDArray[np.int64], images: pa.Table, theirs: NDArray[np.int64]) -> pa.Table:
    left = rows.select(["key", "source"]).take(pa.array(ours, pa.int64()))
    right = images.select(["eval_set", "split", "eval_id", "variant"]).take(pa.array(theirs, pa.int64()))
    return pa.table({name: table[name] for table in (left, right) for name in table.column_names})


def _leaks(pairs: pa.Table, method: Any, score: NDArray[np.float64]) -> pa.Table:
    columns = {name: pairs[name] for name in ("eval_set", "split", "eval_id", "key", "source")}
    count = pairs.num_rows
    columns["method"] = pa.repeat(pa.scalar(method), count) if isinstance(method, str) else method
    columns["score"] = pa.array(score, pa.float64())
    columns["via"] = columns["action"] = pa.repeat(pa.scalar(""), count)
    return pa.table(columns).select(LEAK_SCHEMA.names).cast(LEAK_SCHEMA)
