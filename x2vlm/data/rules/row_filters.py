"""Rules about whole rows, each over all rows of a table at once. A rule says what is kept, it never acts.

Every rule gives a `Verdict`: kept or not, what was compared and with what. Equality with a threshold keeps. A rule that
needs a number which is not known does not keep the row, and says so with a rule name of its own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.columns import SampleColumns, flags, numbers, one_array
from x2vlm.data.rules.domains import registered_domain

KEY_CHARS = 32  # of `x2vlm.samples.sample_key`
CHECKSUM_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 1], dtype=np.uint64)  # odd


@dataclass(frozen=True)
class Verdict:
    """What one rule says about every row of a table, or about every item of a list column."""

    rule: str
    keep: np.ndarray  # bool; True where the rule has nothing against it
    value: np.ndarray  # float64; what was compared; NaN where unknown, not applicable or no number
    threshold: float | None
    applies: np.ndarray  # bool; True where the rule has something to say at all
    unknown: np.ndarray | None = None  # bool; True where it does not keep because there is nothing to compare
    unknown_rule: str = ""  # what such a drop is counted under
    unknown_reason: str = ""  # for people: what is missing
    reason: str = ""  # for people: what `value against threshold` cannot say
    labels: pa.Array | None = field(default=None, compare=False)  # for people: a word per entry, in place of a value

    def is_unknown(self) -> np.ndarray:
        return np.zeros(len(self.keep), dtype=bool) if self.unknown is None else self.unknown


def min_short_edge(columns: SampleColumns, pixels: int = 224) -> Verdict:
    """Keeps images whose shorter side has at least `pixels` pixels (X2-VLM A.1, after BLIP; equality keeps).

    Sides are oriented pixels of the original. Images without a size are not kept; videos always are.
    """
    short, unknown = np.minimum(*columns.size), ~columns.is_video & ~columns.has_size
    value = np.where(columns.is_video | unknown, np.nan, short)
    return _about_size("min_short_edge", columns, columns.is_video | (value >= pixels), value, float(pixels), unknown)


def max_aspect_ratio(columns: SampleColumns, ratio: float = 3.0) -> Verdict:
    """Keeps images where neither side is more than `ratio` times the other (X2-VLM A.1; equality keeps).

    Sides are oriented pixels of the original. Images without a size are not kept; videos always are.
    """
    longer, shorter = np.maximum(*columns.size), np.minimum(*columns.size)
    known = ~columns.is_video & columns.has_size
    # A product decides, so that 3.0 keeps exactly; the quotient is for the record.
    keep = columns.is_video | (known & (longer <= ratio * shorter))
    value = np.divide(longer, shorter, out=np.full(len(longer), np.nan), where=known)
    return _about_size("max_aspect_ratio", columns, keep, value, float(ratio), ~columns.is_video & ~known)


def _about_size(
    rule: str, columns: SampleColumns, keep: np.ndarray, value: np.ndarray, threshold: float, unknown: np.ndarray
) -> Verdict:
    reason = f"{rule} needs the width and height of the image"
    return Verdict(rule, keep, value, threshold, ~columns.is_video, unknown, "size_unknown", reason)


def min_video_words(columns: SampleColumns, words: int = 2) -> Verdict:
    """Keeps videos with a caption of at least `words` words (X2-VLM A.1; equality keeps); images always.

    The value is the word count of the longest caption, 0 without captions.
    """
    longest = _longest(columns, np.nan_to_num(columns.words_of_videos)) if columns.is_video.any() else None
    value = np.full(len(columns), np.nan) if longest is None else np.where(columns.is_video, longest, np.nan)
    return Verdict("min_video_words", ~(value < words), value, float(words), columns.is_video)


def domain_not_flagged(columns: SampleColumns, flagged: Collection[str]) -> Verdict:
    """Keeps rows whose URL is on none of the domains that the `domains` stage has flagged. There is no number to it."""
    urls = one_array(columns.rows["url"]).dictionary_encode()
    is_clean = np.array(
        [registered_domain(url or "") not in flagged for url in urls.dictionary.to_pylist()], dtype=bool
    )
    places = pc.fill_null(urls.indices, -1).to_numpy(zero_copy_only=False)
    keep = np.append(is_clean, True)[places]  # a row without a URL is on no domain
    nothing = np.full(len(columns), np.nan)
    reason = "too few files of this domain are what the source's hashes say"
    return Verdict("flagged_domain", keep, nothing, None, np.ones(len(columns), dtype=bool), reason=reason)


def min_similarity(columns: SampleColumns, least: float) -> Verdict:
    """Keeps rows whose source gives a similarity of image and text of at least `least`; see `_about_score`."""
    return _about_score("min_similarity", "similarity", columns, least, np.greater_equal)


def max_punsafe(columns: SampleColumns, most: float) -> Verdict:
    """Keeps rows that their source thinks unsafe with a probability of at most `most`; see `_about_score`."""
    return _about_score("max_punsafe", "punsafe", columns, most, np.less_equal)


def max_pwatermark(columns: SampleColumns, most: float) -> Verdict:
    """Keeps rows that their source thinks watermarked with a probability of at most `most`; see `_about_score`."""
    return _about_score("max_pwatermark", "pwatermark", columns, most, np.less_equal)


def _about_score(rule: str, name: str, columns: SampleColumns, threshold: float, compare: np.ufunc) -> Verdict:
    """Sources without scores are not judged. A source with scores that does not know this one: the row goes."""
    value, applies = numbers(columns.source_score(name)), columns.has_source_scores
    keep = ~applies | compare(value, threshold)  # a comparison with NaN is False
    unknown, reason = applies & np.isnan(value), f"{rule} needs `{name}`, which the source does not give for this row"
    return Verdict(rule, keep, value, float(threshold), applies, unknown, f"{name}_unknown", reason)


def not_nsfw(columns: SampleColumns, words: Sequence[str]) -> Verdict:
    """Keeps rows whose source's NSFW word is none of `words`, in any case.

    Sources without scores are not judged. A source with scores that has no word for the row: the row goes.
    """
    labels, applies = pc.utf8_upper(columns.source_score("nsfw")), columns.has_source_scores
    known = flags(pc.not_equal(labels, ""))
    named = flags(pc.is_in(labels, pa.array([word.upper() for word in words], pa.string())))
    nothing = np.full(len(columns), np.nan)
    keep = ~applies | (known & ~named)
    reason = "the source brings scores but no NSFW word for this row"
    return Verdict("nsfw", keep, nothing, None, applies, applies & ~known, "nsfw_unknown", reason, labels=labels)


def unique_key(columns: SampleColumns) -> Verdict:
    """Keeps the first row of every key: shards name their members by it."""
    keys = one_array(columns.rows["key"])
    keep = np.ones(len(columns), dtype=bool)
    if _may_repeat(keys):
        codes = keys.dictionary_encode(null_encoding="encode").indices.to_numpy()
        keep[:] = False
        keep[np.unique(codes, return_index=True)[1]] = True
    reason = "an earlier row of this part has the same key"
    nothing = np.full(len(columns), np.nan)
    return Verdict("duplicate_key", keep, nothing, None, np.ones(len(columns), dtype=bool), reason=reason)


def _may_repeat(keys: pa.StringArray) -> bool:
    """False where all keys are certainly different: a checksum of each, sorted, costs half of a hash table of texts."""
    offsets = np.frombuffer(keys.buffers()[1], dtype=np.int32)[keys.offset : keys.offset + len(keys) + 1]
    if keys.null_count or not len(keys) or np.any(np.diff(offsets) != KEY_CHARS):
        return len(keys) > 1
    data = memoryview(keys.buffers()[2])[offsets[0] : offsets[-1]]
    words = np.frombuffer(data, dtype=np.uint64).reshape(len(keys), KEY_CHARS // 8)
    checksums = np.sort((words * CHECKSUM_FACTORS).sum(axis=1, dtype=np.uint64))
    return bool(np.any(checksums[1:] == checksums[:-1]))


def _longest(columns: SampleColumns, values: np.ndarray) -> np.ndarray:
    """The largest of the values of each row's captions, 0 without captions."""
    longest = np.zeros(len(columns))
    np.maximum.at(longest, columns.captions.row, values)
    return longest
