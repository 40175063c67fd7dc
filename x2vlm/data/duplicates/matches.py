"""Which images match one image: by perceptual hash and thumbnail, or by embedding.

Both searches find all candidate pairs in advance and are queried for one image at a time, so that N copies of a popular
image, which share a hash, cost N comparisons and not N^2.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from x2vlm.data.duplicates.hamming import near_pairs
from x2vlm.data.media.phash import thumbnail_correlation, thumbnail_matrix


class HashMatches:
    """Images of one kind by perceptual hash. Flat ones are left out."""

    method = "phash"

    def __init__(self, table: pa.Table, own: NDArray[np.int64], radius: int, min_correlation: float) -> None:
        usable = pc.and_kleene(pc.is_valid(table["phash"]), pc.invert(table["phash_flat"]))
        own = own[pc.fill_null(usable, False).to_numpy(zero_copy_only=False)[own]]
        hash_N = table["phash"].take(pa.array(own)).to_numpy().astype(np.uint64)
        self._radius, self._min_correlation = radius, min_correlation
        self._values, value_of_N = np.unique(hash_N, return_inverse=True)
        order = np.argsort(value_of_N, kind="stable")
        self._images, self._starts = own[order], np.searchsorted(value_of_N[order], np.arange(len(self._values) + 1))
        pairs = near_pairs(self._values, radius)
        self._near = _Adjacency(pairs.left, pairs.right, pairs.distance.astype(np.float64), len(self._values))
        # Only images with an equal or near hash are compared further.
        is_busy = ((np.diff(self._starts) > 1) | self._near.has_any())[value_of_N]
        busy = own[is_busy]
        self._value_of = dict(zip(busy.tolist(), value_of_N[is_busy].tolist(), strict=True))
        self._row_of = {image: number for number, image in enumerate(busy.tolist())}
        self._thumbnails = thumbnail_matrix(table["thumbnail"].take(pa.array(busy)))
        self._frames = table["frame_phashes"].take(pa.array(busy)).to_pylist()

    def with_candidates(self) -> list[int]:
        """Images that may match another one."""
        return list(self._value_of)

    def matches(self, image: int, is_free: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The free images that match `image`, and in how many bits they differ."""
        if image not in self._value_of:
            return np.empty(0, np.int64), np.empty(0)
        value = self._value_of[image]
        near, bits = self._near.of(value)
        groups = [self._images[self._starts[one] : self._starts[one + 1]] for one in (value, *near)]
        sizes = [len(group) for group in groups]
        others, distance = np.concatenate(groups), np.repeat(np.array([0.0, *bits]), sizes)
        free = is_free[others]
        others, distance = others[free], distance[free]
        own, rows = self._row_of[image], np.array([self._row_of[int(one)] for one in others], np.int64)
        left = np.broadcast_to(self._thumbnails[own], (len(rows), self._thumbnails.shape[1]))
        good = thumbnail_correlation(left, self._thumbnails[rows]) >= self._min_correlation
        good &= np.array([self._same_frames(own, row) for row in rows], dtype=bool)
        return others[good], distance[good]

    def _same_frames(self, left: int, right: int) -> bool:
        """True where two images have as many frames, on average within the radius; single images always do."""
        a, b = self._frames[left], self._frames[right]
        if len(a) != len(b):
            return False
        bits = [_frame_distance(one, other) for one, other in zip(a, b, strict=True) if (one, other) != (None, None)]
        return len(a) == 1 or sum(bits) <= self._radius * len(bits)


def _frame_distance(left: int | None, right: int | None) -> int:
    """Bits between two frames; half of all where only one of them is flat, the expectation for unrelated frames."""
    return 32 if left is None or right is None else (left ^ right).bit_count()


class EmbeddingMatches:
    """Images of one kind by their embedding."""

    method = "embedding"

    def __init__(self, table: pa.Table, own: NDArray[np.int64], min_cosine: float) -> None:
        from x2vlm.data.duplicates.neighbours import near_neighbours  # the only search that needs torch

        valid = pc.is_valid(table["embedding"]).to_numpy(zero_copy_only=False)
        own = own[valid[own]]
        pairs = near_neighbours(embedding_matrix(table["embedding"].take(pa.array(own))), min_cosine)
        left, right = own[pairs.left], own[pairs.right]
        self._near = _Adjacency(left, right, 1.0 - pairs.cosine.astype(np.float64), table.num_rows)

    def with_candidates(self) -> list[int]:
        """Images that match another one."""
        return [int(image) for image in np.flatnonzero(self._near.has_any())]

    def matches(self, image: int, is_free: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The free images that match `image`, and 1 - cosine."""
        others, distance = self._near.of(image)
        free = is_free[others]
        return others[free], distance[free]


def embedding_matrix(column: pa.Array | pa.ChunkedArray) -> NDArray[np.floating]:
    """A column of embeddings (lists of one width, none null) as rows; ValueError for lists of several widths."""
    values = np.asarray(pc.list_flatten(column).to_numpy(zero_copy_only=False))
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(widths) > 1:
        raise ValueError(f"embeddings of {sorted(widths, key=str)} values: they come from different models")
    return values.reshape(len(column), widths[0] if widths else 1)


class _Adjacency:
    """Neighbours of each of `size` nodes, from pairs."""

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
