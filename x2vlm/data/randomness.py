"""Counter-based random numbers: a function of their labels, never of when or where they are drawn.

Every draw in the data path comes from `Draws(seed, epoch, sample key, purpose)`: any worker of any world size can
reproduce it, and resuming needs no generator state. The stream is sha256 in counter mode, because numpy and Python
promise stable bits but not stable distributions across versions.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")

MANY = 64  # items from which on their draws are made as an array
_WORDS = struct.Struct(">4Q")


class Draws:
    """An endless sequence of draws that belongs to `labels`; equal labels give equal draws."""

    def __init__(self, *labels: str | int) -> None:
        self._key = hashlib.sha256(json.dumps(labels).encode()).digest()
        self._counter = 0
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64 random bits."""
        if not self._words:
            block = hashlib.sha256(self._key + self._counter.to_bytes(8, "big")).digest()
            self._counter += 1
            self._words = [*_WORDS.unpack(block)][::-1]
        return self._words.pop()

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high), with 53 random bits."""
        return low + (high - low) * ((self.word() >> 11) * 2.0**-53)

    def integer(self, low: int, high: int) -> int:
        """A whole number in low..high, both included; ValueError if there is none.

        The bias of multiply-and-shift is below size / 2**64.
        """
        if high < low:
            raise ValueError(f"no whole number in {low}..{high}")
        return low + (self.word() * (high - low + 1) >> 64)

    def chance(self, probability: float) -> bool:
        """True with that probability; never for 0, always for 1."""
        return self.uniform() < probability

    def choice(self, items: Sequence[T]) -> T:
        """One of `items`; ValueError if there are none."""
        return items[self.integer(0, len(items) - 1)]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """`items` in random order (Fisher-Yates)."""
        result = list(items)
        lasts = range(len(result) - 1, 0, -1)
        if len(result) < MANY:
            others = [self.integer(0, last) for last in lasts]
        else:
            others = _scaled(self._many_words(len(lasts)), np.arange(len(result), 1, -1, dtype=np.uint64)).tolist()
        for last, other in zip(lasts, others, strict=True):
            result[last], result[other] = result[other], result[last]
        return result

    def _many_words(self, number: int) -> np.ndarray:
        """The next `number` random words (`word`)."""
        head, key, counter = self._words[::-1][:number], self._key, self._counter
        num_blocks = -(-(number - len(head)) // 4)
        blocks = [
            hashlib.sha256(key + index.to_bytes(8, "big")).digest() for index in range(counter, counter + num_blocks)
        ]
        words = [*head, *np.frombuffer(b"".join(blocks), ">u8").tolist()]
        self._counter += num_blocks
        self._words = [*self._words[::-1][len(head) :], *words[number:]][::-1]
        return np.array(words[:number], dtype=np.uint64)


def _scaled(words: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """`word * size >> 64` of unsigned 64-bit words, for sizes below 2**32."""
    low, high = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
    scaled: np.ndarray = (high * sizes + (low * sizes >> np.uint64(32))) >> np.uint64(32)
    return scaled


def derive_seed(*labels: str | int) -> int:
    """A 63-bit integer that belongs to `labels`, for generators that need a seed (torch)."""
    return Draws(*labels).word() >> 1


def uniforms(seed: int, size: int) -> np.ndarray:
    """`size` numbers in [0, 1) that belong to a 63-bit `seed`: SplitMix64 of the counter, 53 bits of each word.

    For arrays of many draws at once: numpy's own generators do not promise equal streams across versions.
    """
    with np.errstate(over="ignore"):
        words = np.uint64(seed) + np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
    return (words >> np.uint64(11)) * 2.0**-53
