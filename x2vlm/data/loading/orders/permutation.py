"""Keyed permutations of 0..size-1: one image, one preimage, or all images at once as an array.

A Feistel network over the next even number of bits; results outside the range are permuted again (cycle walking), at
most four times on average because the domain is less than four times too large.
"""

import functools
import hashlib

import numpy as np

from x2vlm.data.randomness import derive_seed, uniforms

NUM_ROUNDS = 6


def permuted(index: int, size: int, *labels: str | int) -> int:
    """The image of `index` under the permutation of 0..size-1 that belongs to `labels`."""
    _check(index, size)
    half_bits, key = _half_bits(size), _key(labels)
    while True:
        for number in range(NUM_ROUNDS):
            left, right = index >> half_bits, index & ((1 << half_bits) - 1)
            index = right << half_bits | (left ^ _round(right, number, half_bits, key))
        if index < size:
            return index


def unpermuted(image: int, size: int, *labels: str | int) -> int:
    """The index whose image under `permuted` is `image`."""
    _check(image, size)
    half_bits, key = _half_bits(size), _key(labels)
    while True:
        for number in reversed(range(NUM_ROUNDS)):
            left, right = image >> half_bits, image & ((1 << half_bits) - 1)
            image = (right ^ _round(left, number, half_bits, key)) << half_bits | left
        if image < size:
            return image


def all_permuted(size: int, *labels: str | int) -> np.ndarray:
    """(size,) `permuted` of every index.

    A round depends on half of the bits alone, so it is a table of about sqrt(size) hashes: 20 ms for 200,000 indexes
    where as many calls of `permuted` take 2 s.
    """
    half_bits, key = _half_bits(size), _key(labels)
    mask = (1 << half_bits) - 1
    tables = [
        np.array([_round(right, number, half_bits, key) for right in range(mask + 1)], dtype=np.int64)
        for number in range(NUM_ROUNDS)
    ]
    images = np.arange(size, dtype=np.int64)
    outside = np.arange(size)
    while len(outside):  # every index, then those whose image is outside the range
        moved = images[outside]
        for table in tables:
            left, right = moved >> half_bits, moved & mask
            moved = right << half_bits | (left ^ table[right])
        images[outside] = moved
        outside = outside[moved >= size]
    return images


def shuffled_numbers(size: int, *labels: str | int) -> np.ndarray:
    """(size,) the numbers 0..size-1 in the random order that belongs to `labels`; made as an array, in one sort."""
    return np.argsort(uniforms(derive_seed(*labels), size), kind="stable")


def _check(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"{index} is not in 0..{size - 1}")


def _half_bits(size: int) -> int:
    return max(1, ((size - 1).bit_length() + 1) // 2)


@functools.lru_cache(64)
def _key(labels: tuple[str | int, ...]) -> bytes:
    return hashlib.sha256(repr(labels).encode()).digest()


def _round(right: int, number: int, half_bits: int, key: bytes) -> int:
    digest = hashlib.blake2b(right.to_bytes(8, "big"), key=key, salt=bytes([number]), digest_size=8).digest()
    return int.from_bytes(digest, "big") & ((1 << half_bits) - 1)
