"""Rows that say nothing of their own: every caption of theirs is said by many other rows of their source.

Alt texts are often those of a shop's template or a placeholder ("image for listing 4711", "photo"). A row stays if it
is among the first so many rows, by key, that say one of its captions; so of every caption at least that many rows stay,
a row with one caption of its own always stays, and the order in which rows come says nothing.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from x2vlm.data.text.texts import same_text

CAPTION_OCCURRENCE_TYPE = np.dtype([("key", "S32"), ("says", "S16")])


def caption_occurrences(rows: pa.Table) -> NDArray[Any]:
    """One entry of CAPTION_OCCURRENCE_TYPE for every caption of `rows` (key, source, captions).

    The source is part of what is said: a caption of another source is another caption.
    """
    return np.fromiter(_caption_occurrences(rows), dtype=CAPTION_OCCURRENCE_TYPE)


def _caption_occurrences(rows: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    for key, source, captions in zip(*(rows[name].to_pylist() for name in ("key", "source", "captions")), strict=True):
        for text in {same_text(caption["text"]) for caption in captions or ()}:
            yield key.encode(), hashlib.blake2b(f"{source}\0{text}".encode(), digest_size=16).digest()


def find_repeats(said: Iterable[NDArray[Any]], max_rows: int) -> dict[str, int]:
    """The keys of rows that go, each with the number of rows that say its rarest caption (more than `max_rows`).

    Memory is about 100 bytes a caption, time that of sorting them.
    """
    pairs = np.unique(
        np.concatenate([np.empty(0, CAPTION_OCCURRENCE_TYPE), *said])
    )  # a row that is read twice speaks once
    keys, row = np.unique(pairs["key"], return_inverse=True)  # rows are numbered in the order of their keys
    group = np.unique(pairs["says"], return_inverse=True)[1]
    order = np.lexsort((row, group))
    row, group = row[order], group[order]
    sizes = np.bincount(group)
    place = np.arange(len(group)) - (np.cumsum(sizes) - sizes)[group]  # among those that say the same
    stays = np.zeros(len(keys), dtype=bool)
    stays[row[place < max_rows]] = True
    rarest = np.full(len(keys), len(keys) + 1)
    np.minimum.at(rarest, row, sizes[group])
    return {keys[number].decode(): int(rarest[number]) for number in np.flatnonzero(~stays)}
