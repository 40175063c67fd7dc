"""Rules about captions, each over all captions of a table at once. `row_filters` says what a verdict is.

Only `not_empty` and the words of videos are always asked; the rest is switched on by an experiment. The words, letters
and characters of a text are counted by Unicode: `\\pL` is a letter, `\\pN` a digit, a character is a code point.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.columns import flags, num_words, numbers
from x2vlm.data.rules.languages import DETECTOR, detect_languages
from x2vlm.data.rules.row_filters import Verdict

URL = r"(?i)\bhttps?://|\bwww\.\S"


def not_empty(texts: pa.Array) -> Verdict:
    """Keeps texts with a character that is no white space (of any script); null has none."""
    keep = flags(pc.invert(pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0))))
    return _about_all("empty_caption", keep, None, None, reason="no text")


def language_in(texts: pa.Array, claimed: pa.Array, languages: Sequence[str], by_detector: bool) -> Verdict:
    """Keeps texts in one of `languages`: as the source says (`claimed`), or as a detector finds.

    The source's word is the LANGUAGE column where it has one, else the language its card gives. The value is the
    detector's probability for what it found.
    """
    named, value = detect_languages(texts) if by_detector else (claimed, None)
    keep = flags(pc.is_in(named, pa.array(list(languages), pa.string())))
    return _about_all("language", keep, value, None, f"by {DETECTOR if by_detector else 'its source'}", named)


def enough_video_words(words_of_videos: np.ndarray, words: int = 2) -> Verdict:
    """Keeps captions of videos with at least `words` words (X2-VLM A.1; equality keeps), and all of images (NaN)."""
    applies = ~np.isnan(words_of_videos)
    return Verdict("min_video_words", ~(words_of_videos < words), words_of_videos, float(words), applies)


def chars_between(texts: pa.Array, least: int | None, most: int | None) -> list[Verdict]:
    """Keeps texts of `least` to `most` characters."""
    return _between("caption_chars", np.nan_to_num(numbers(pc.utf8_length(texts))), least, most)


def words_between(texts: pa.Array, least: int | None, most: int | None) -> list[Verdict]:
    """Keeps texts of `least` to `most` words."""
    return _between("caption_words", num_words(texts).astype(np.float64), least, most)


def min_letter_share(texts: pa.Array, fraction: float) -> Verdict:
    """Keeps texts whose characters other than white space are letters to at least `fraction`; a blank text has none."""
    letters = np.nan_to_num(numbers(pc.count_substring_regex(texts, r"\pL")))
    signs = np.nan_to_num(numbers(pc.count_substring_regex(texts, r"[^\s\pZ]")))
    value = np.divide(letters, signs, out=np.zeros(len(letters)), where=signs > 0)
    return _about_all("min_letter_share", value >= fraction, value, fraction)


def max_repeated_chars(texts: pa.Array, most: int) -> Verdict:
    """Keeps texts in which no character follows itself so often that it stands there more than `most` times."""
    value = longest_run(texts)
    return _about_all("max_repeated_chars", value <= most, value, float(most))


def no_url(texts: pa.Array) -> Verdict:
    """Keeps texts without a web address: http:// or https://, or a word that begins with www."""
    return _about_all("url_in_caption", ~flags(pc.match_substring_regex(texts, URL)), None, None, reason="has a URL")


def longest_run(texts: pa.Array) -> np.ndarray:
    """How often the most repeated character of every text follows itself, itself included; 0 without text."""
    texts = pc.fill_null(texts, "")
    lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    # All texts behind each other as one array of code points: one decode for the table instead of one per text.
    codes = np.frombuffer(_joined(texts).encode("utf-32-le"), dtype=np.uint32)
    text_of = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.flatnonzero(np.r_[True, (codes[1:] != codes[:-1]) | (text_of[1:] != text_of[:-1])][: len(codes)])
    runs = np.diff(np.r_[starts, len(codes)])
    longest = np.zeros(len(lengths))
    np.maximum.at(longest, text_of[starts], runs)
    return longest


def _joined(texts: pa.StringArray) -> str:
    """All texts behind each other, from the bytes as they lie in memory."""
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return ""
    ends = np.frombuffer(offsets, dtype=np.int32)[[texts.offset, texts.offset + len(texts)]]
    return str(memoryview(data)[ends[0] : ends[1]], "utf-8")


def _between(what: str, value: np.ndarray, least: int | None, most: int | None) -> list[Verdict]:
    verdicts = []
    if least is not None:
        verdicts.append(_about_all(f"min_{what}", value >= least, value, float(least)))
    if most is not None:
        verdicts.append(_about_all(f"max_{what}", value <= most, value, float(most)))
    return verdicts


def _about_all(
    rule: str,
    keep: np.ndarray,
    value: np.ndarray | None,
    threshold: float | None,
    reason: str = "",
    labels: pa.Array | None = None,
) -> Verdict:
    value = np.full(len(keep), np.nan) if value is None else value
    return Verdict(rule, keep, value, threshold, np.ones(len(keep), dtype=bool), reason=reason, labels=labels)
