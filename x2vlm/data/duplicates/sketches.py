"""Sketches of thumbnails in 16 bytes, and 64-bit names of looks: what a search among many needs to know of an image.

A sketch has 16 coefficients of a thumbnail without its mean and at unit length: low Walsh functions of brightness and
of two colour differences. Two thumbnails of a given correlation have sketches within a distance that `sketch_limit`
bounds from above, so what is farther apart needs no comparison of thumbnails; nothing that correlates is lost.

Everything is a pure function of the thumbnail's bytes, on every machine: products are sums of whole numbers below 2^24,
exact in float32 in whatever order they are added, and the rest is rounded as IEEE 754 says.
"""

import hashlib
import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from x2vlm.data.media.phash import THUMBNAIL_BYTES, THUMBNAIL_SIDE

SKETCH_VALUES = 16
SCALE = 127  # of a coefficient, which lies in [-1, 1]
CHUNK = 1 << 16  # thumbnails at a time

_ORDERS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)), ((0, 0), (0, 1), (1, 0), (1, 1))
_BRIGHTNESS, _RED_GREEN, _BLUE = (1, 1, 1), (1, -1, 0), (1, 1, -2)

Words = NDArray[np.uint64]

# Array shapes: N thumbnails, P bytes of one, C coefficients


def _walsh(order: int) -> NDArray[np.int64]:
    """The Walsh function of that many changes of sign (at most 2) on THUMBNAIL_SIDE points."""
    point = np.arange(THUMBNAIL_SIDE)
    middle = (point >= THUMBNAIL_SIDE // 4) & (point < 3 * THUMBNAIL_SIDE // 4)
    negative = {0: point < 0, 1: point >= THUMBNAIL_SIDE // 2, 2: middle}[order]
    return np.where(negative, -1, 1).astype(np.int64)


def _basis() -> NDArray[np.float32]:
    chosen = [(_BRIGHTNESS, order) for order in _ORDERS[0]]
    chosen += [(colour, order) for colour in (_RED_GREEN, _BLUE) for order in _ORDERS[1]]
    rows = [np.multiply.outer(np.outer(_walsh(y), _walsh(x)), colour).ravel() for colour, (y, x) in chosen]
    return np.array(rows, dtype=np.float32)


_BASIS_CP = _basis()
_NORM_C = np.sqrt((_BASIS_CP.astype(np.float64) ** 2).sum(axis=1))


def sketches(thumbnail_NP: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The sketch of each thumbnail, of shape (N, SKETCH_VALUES); zeros for a constant one."""
    made = np.empty((len(thumbnail_NP), SKETCH_VALUES), np.int8)
    for start in range(0, len(thumbnail_NP), CHUNK):
        piece_NP = thumbnail_NP[start : start + CHUNK].astype(np.float32)
        product_NC = (piece_NP @ _BASIS_CP.T).astype(np.float64)
        total_N = piece_NP.sum(axis=1, dtype=np.float32).astype(np.float64)
        squares_N = np.einsum("np,np->n", piece_NP, piece_NP).astype(np.float64)
        length_N = np.sqrt((squares_N * THUMBNAIL_BYTES - total_N * total_N) / THUMBNAIL_BYTES)
        # Of a constant thumbnail all products are zero too.
        unit_NC = product_NC / _NORM_C / np.where(length_N > 0, length_N, 1.0)[:, None]
        made[start : start + CHUNK] = np.rint(unit_NC * SCALE).astype(np.int8)
    return made


def sketch_limit(min_correlation: float) -> int:
    """The largest squared distance of the sketches of two thumbnails that correlate by at least `min_correlation`.

    Unit vectors of correlation c are sqrt(2 - 2 c) apart and their projections no farther; rounding adds at most 1 to
    each of the coefficients' differences.
    """
    apart = math.sqrt(max(2 - 2 * min_correlation, 0.0)) * SCALE + math.sqrt(SKETCH_VALUES) + 0.01
    return math.floor(apart * apart)


def sketch_distance(left_NC: NDArray[np.int8], right_NC: NDArray[np.int8]) -> NDArray[np.int64]:
    """The squared distance of each pair of sketches."""
    difference_NC = left_NC.astype(np.int32) - right_NC
    distance_N: NDArray[np.int64] = np.einsum("nc,nc->n", difference_NC, difference_NC).astype(np.int64)
    return distance_N


def as_words(sketch_NC: NDArray[np.int8]) -> tuple[Words, Words]:
    """Sketches as two columns of 64 bits."""
    words = np.ascontiguousarray(sketch_NC).view("<u8").astype(np.uint64)
    return words[:, 0], words[:, 1]


def from_words(first: Words, second: Words) -> NDArray[np.int8]:
    """The inverse of `as_words`."""
    return np.stack([first, second], axis=1).astype("<u8").view(np.int8)


def mixed(*columns: NDArray[np.uint64] | int) -> Words:
    """A 64-bit hash of each row of some columns of 64 bits (the finalizer of splitmix64, once a column)."""
    value: Words = np.zeros(1, np.uint64)
    for column in columns:
        value = value ^ np.asarray(column, np.uint64)
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value


def text_hashes(texts: Iterable[str]) -> Words:
    """64 bits of each text's BLAKE2b."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, "<u8").astype(np.uint64)
