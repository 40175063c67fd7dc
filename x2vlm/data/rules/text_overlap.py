"""Which texts of an image nearly repeat another one (X2-VLM A.1), for all images of a table at once.

Texts are compared by their words as `texts.compared_words` has them, each as often as it occurs. Within an image every
word (its first, second, ... occurrence apart) is a bit, a text is a row of bits, and what two texts share is the number
of bits in the `and` of their rows: some 1,200 pairs of a Visual Genome image are one operation on a few kilobytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.columns import flags
from x2vlm.data.text.texts import compared_words

OverlapMeasure = Literal["smaller", "jaccard"]
PAIR_WORDS = 1 << 20  # 64-bit words of pairs in memory at a time: 8 MiB for each of three arrays
TEXTS_AT_A_TIME = 20_000  # or one image: rows of bits are as wide as the widest image among them needs


@dataclass(frozen=True)
class Overlaps:
    """Pairs of texts of an image that share more than a threshold, `earlier` kept first where both are left."""

    earlier: np.ndarray  # int64; positions of texts
    later: np.ndarray
    fraction: np.ndarray  # float64, in (0, 1]
    num_texts: int


def find_overlaps(
    texts: pa.Array, image: np.ndarray, area: np.ndarray, threshold: float, measure: OverlapMeasure
) -> Overlaps:
    """All pairs of texts of one image that share more than `threshold`; what goes of them `drop_repeats` says.

    `image` numbers the image of each text. Of a pair the text with the larger area comes first; equal areas in the
    order given. Equality with the threshold is no pair. `measure`: common words over the words of the smaller text, or
    over all words of both (`jaccard`).
    """
    order = np.lexsort((-area, image))  # stable: equal areas stay in the order given
    text, element = _elements(texts.take(pa.array(order)))
    num_words = np.bincount(text, minlength=len(order))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for earlier, later, common in _common_words(image[order], text, element):
        smaller = np.minimum(num_words[earlier], num_words[later])
        whole = smaller if measure == "smaller" else num_words[earlier] + num_words[later] - common
        fraction = np.divide(common, whole, out=np.zeros(len(common)), where=whole > 0)
        over = fraction > threshold
        found.append((order[earlier[over]], order[later[over]], fraction[over]))
    earlier, later, fraction = (np.concatenate(parts) for parts in zip(*found, strict=True)) if found else _no_pairs()
    return Overlaps(earlier, later, fraction, len(order))


def drop_repeats(pairs: Overlaps) -> np.ndarray:
    """The largest overlap with a kept text for every text to drop, NaN for what stays.

    A text is compared with kept ones only, so a dropped text never takes another with it.

    A text is decided once everything before it in a pair is: kept if all of those go, dropped if one stays. That takes
    as many rounds as the longest chain of pairs, a handful in practice, over what is undecided.
    """
    undecided, kept = np.ones(pairs.num_texts, dtype=bool), np.zeros(pairs.num_texts, dtype=bool)
    earlier, later = pairs.earlier, pairs.later
    while undecided.any():
        waits, falls = np.zeros_like(undecided), np.zeros_like(undecided)
        waits[later[undecided[earlier]]] = True
        falls[later[kept[earlier]]] = True
        kept |= undecided & ~waits & ~falls
        undecided &= waits & ~falls
        live = undecided[later]
        earlier, later = earlier[live], later[live]
    overlap = np.full(pairs.num_texts, np.nan)
    by_kept = kept[pairs.earlier]
    np.fmax.at(overlap, pairs.later[by_kept], pairs.fraction[by_kept])
    return overlap


def _no_pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)


def _elements(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(text, element) for every word of every text, by text: its n-th occurrence of a word is an element of its own."""
    text, word = _words(texts)
    order = np.lexsort((word, text))
    text, word = text[order], word[order]
    new = np.ones(len(text), dtype=bool)
    new[1:] = (text[1:] != text[:-1]) | (word[1:] != word[:-1])
    starts = np.flatnonzero(new)
    occurrence = np.arange(len(text)) - np.repeat(starts, np.diff(np.r_[starts, len(text)]))
    return text, word * (occurrence.max(initial=0) + 1) + occurrence


def _words(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(text, number of the word) for every word of every text."""
    encoded = pc.fill_null(texts, "").dictionary_encode()
    lists = _word_lists(encoded.dictionary)
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    flat = lists.flatten()
    is_word = flags(pc.not_equal(flat, ""))  # a text without words splits into one empty one
    of_list = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    lengths = np.bincount(of_list[is_word], minlength=len(lists))
    words = flat.filter(pa.array(is_word)).dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.repeat(np.arange(len(codes)), lengths[codes]), words[
        _ranges(np.cumsum(lengths) - lengths, lengths, codes)
    ]


def _word_lists(texts: pa.StringArray) -> pa.ListArray:
    """`compared_words` of every text: columnwise where a text is ASCII, on which all its steps are simple."""
    plain = pc.string_is_ascii(texts)
    cleaned = pc.replace_substring_regex(pc.ascii_lower(texts), r"[^0-9a-z_]+", " ")
    if not pc.all(plain, min_count=0).as_py():
        others = [" ".join(compared_words(text)) for text in texts.filter(pc.invert(plain)).to_pylist()]
        cleaned = pc.replace_with_mask(cleaned, pc.invert(plain), pa.array(others, pa.string()))
    return pc.split_pattern(pc.ascii_trim(cleaned, " "), " ")


def _ranges(starts: np.ndarray, lengths: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """starts[c], starts[c] + 1, ... starts[c] + lengths[c] - 1 for every c in `chosen`, behind each other."""
    counts = lengths[chosen]
    begins = np.cumsum(counts) - counts
    inside: np.ndarray = np.arange(counts.sum()) + np.repeat(starts[chosen] - begins, counts)
    return inside


def _common_words(
    image: np.ndarray, text: np.ndarray, element: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(earlier, later, words in common) of all pairs of texts of one image, a bounded number of pairs at a time.

    `image` is sorted; `text` and `element` say which elements each text has.
    """
    sizes = np.unique(image, return_counts=True)[1]
    ends = np.cumsum(sizes)
    number = np.repeat(np.arange(len(sizes)), sizes)  # of a text's image
    place = np.arange(len(image)) - (ends - sizes)[number]  # of a text in its image
    begin = 0
    while begin < len(image):
        within = ends[(ends > begin) & (ends <= begin + TEXTS_AT_A_TIME)]
        end = int(within[-1] if len(within) else ends[ends > begin][0])
        words = slice(*np.searchsorted(text, [begin, end]))
        bits = _bits(number[begin:end] - number[begin], text[words] - begin, element[words])
        for earlier, later in _pairs(place[begin:end], bits.shape[1]):
            common = np.bitwise_count(bits[earlier] & bits[later]).sum(axis=1, dtype=np.int64)
            yield earlier + begin, later + begin, common
        begin = end


def _pairs(place: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(earlier, later) of all pairs of texts of one image, a bounded number of pairs of rows of `width` at a time."""
    cost = np.cumsum(place * width)  # a text is the later one of as many pairs as there are texts before it
    begin = 0
    while begin < len(place):
        before = cost[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(cost, before + PAIR_WORDS, side="right")))
        texts, before_it = np.arange(begin, end), place[begin:end]
        yield _ranges(texts - before_it, before_it, np.arange(end - begin)), np.repeat(texts, before_it)
        begin = end


def _bits(image: np.ndarray, text: np.ndarray, element: np.ndarray) -> np.ndarray:
    """Every text as a row of 64-bit words, one bit for each element of its image. `element` ascends in each text."""
    owner = image[text]
    local = np.unique(owner * (element.max(initial=0) + 1) + element, return_inverse=True)[1]
    first = np.full(len(image), len(local))
    np.minimum.at(first, owner, local)
    bit = local - first[owner]  # the numbers of an image's elements follow each other
    width = int(bit.max(initial=0)) // 64 + 1
    rows = np.zeros(len(image) * width, dtype=np.uint64)
    if len(text):
        cell = text * width + bit // 64
        starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
        rows[cell[starts]] = np.bitwise_or.reduceat(np.uint64(1) << (bit % 64).astype(np.uint64), starts)
    return rows.reshape(len(image), width)
