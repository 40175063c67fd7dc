"""Rows without a caption of their own: each caption occurs in many other rows of the source.

Alt texts often come from a shop's template or are placeholders ("image for listing 4711", "photo"). A row is kept if it
is among the first `max_rows` rows, by key, with one of its captions; so that many rows are kept per caption, a row with
a unique caption is always kept, and the order of the rows does not matter.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from x2vlm.data.text.texts import same_text

CAPTION_OCCURRENCE_TYPE = np.dtype([("key", "S32"), ("caption", "S16")])


def caption_occurrences(rows: pa.Table) -> NDArray[Any]:
    """A CAPTION_OCCURRENCE_TYPE entry for every caption of `rows` (key, source, captions): key and hash of the text.

    The hash includes the source: equal captions of two sources are different captions.
    """
    return np.fromiter(_caption_occurrences(rows), dtype=CAPTION_OCCURRENCE_TYPE)


def _caption_occurrences(rows: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    for key, source, captions in zip(*(rows[name].to_pylist() for name in ("key", "source", "captions")), strict=True):
        for text in {same_text(caption["text"]) for caption in captions or ()}:
            yield key.encode(), hashlib.blake2b(f"{source}\0{text}".encode(), digest_size=16).digest()


def find_repeats(occurrences: Iterable[NDArray[Any]], max_rows: int) -> dict[str, int]:
    """The keys of rows to drop, each with the number of rows that have its rarest caption (more than `max_rows`).

    Memory is about 100 bytes a caption, time that of sorting them.
    """
    pairs = np.unique(
        np.concatenate([np.empty(0, CAPTION_OCCURRENCE_TYPE), *occurrences])
    )  # a row that is read twice counts once
    keys, row = np.unique(pairs["key"], return_inverse=True)  # rows are numbered in the order of their keys
    group = np.unique(pairs["caption"], return_inverse=True)[1]
    order = np.lexsort((row, group))
    row, group = row[order], group[order]
    sizes = np.bincount(group)
    place = np.arange(len(group)) - (np.cumsum(sizes) - sizes)[group]  # rank among the rows with that caption
    is_kept = np.zeros(len(keys), dtype=bool)
    is_kept[row[place < max_rows]] = True
    rarest = np.full(len(keys), len(keys) + 1)
    np.minimum.at(rarest, row, sizes[group])
    return {keys[number].decode(): int(rarest[number]) for number in np.flatnonzero(~is_kept)}
