"""Rules about whole rows (X2-VLM A.1), each over all rows of a table at once. A rule says what is kept, never acts."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.domains import registered_domain

WORD = r"\S*[\pL\pN]\S*"  # a run without white space that holds a letter or a digit


@dataclass(frozen=True)
class Verdict:
    """What one rule says about every row of a table."""

    rule: str
    keep: np.ndarray  # bool; True where the rule has nothing against the row
    value: np.ndarray  # float64; what was compared; NaN where unknown or not applicable
    threshold: float
    unknown: np.ndarray  # bool; True where the row is not kept because its size is not known

    def rule_of(self, row: int) -> str:
        """The rule a row that is not kept is counted under."""
        return "size_unknown" if self.unknown[row] else self.rule

    def reason_of(self, row: int) -> str:
        """For people: why a row is not kept."""
        if self.unknown[row]:
            return f"{self.rule} needs the width and height of the image"
        if np.isnan(self.threshold):
            return ""
        return f"{self.value[row]:g} against {self.threshold:g}"


def min_short_edge(rows: pa.Table, pixels: int = 224) -> Verdict:
    """Keeps images whose shorter side has at least `pixels` pixels (X2-VLM A.1, after BLIP; equality keeps).

    Sides are oriented pixels of the original. Images without a size are not kept; videos always are.
    """
    width, height, image, unknown = _sizes(rows)
    value = np.where(image & ~unknown, np.minimum(width, height), np.nan)
    return Verdict("min_short_edge", ~image | (value >= pixels), value, float(pixels), unknown)


def max_aspect_ratio(rows: pa.Table, ratio: float = 3.0) -> Verdict:
    """Keeps images where neither side is more than `ratio` times the other (X2-VLM A.1; equality keeps).

    Sides are oriented pixels of the original. Images without a size are not kept; videos always are.
    """
    width, height, image, unknown = _sizes(rows)
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    # A product decides, so that 3.0 keeps exactly; the quotient is for the record.
    keep = ~image | (~unknown & (longer <= ratio * shorter))
    value = np.divide(longer, shorter, out=np.full(len(longer), np.nan), where=image & ~unknown)
    return Verdict("max_aspect_ratio", keep, value, ratio, unknown)


def min_video_words(rows: pa.Table, words: int = 2) -> Verdict:
    """Keeps videos with a caption of at least `words` words (X2-VLM A.1; equality keeps); images always.

    The value is the word count of the longest caption, 0 without captions. A word is a run without white space that
    holds a letter or digit.
    """
    captions = rows["captions"].combine_chunks()
    texts = pc.struct_field(pc.list_flatten(captions), "text")
    longest = np.zeros(rows.num_rows)
    np.maximum.at(longest, pc.list_parent_indices(captions).to_numpy(), num_words(texts).to_numpy(zero_copy_only=False))
    video = pc.equal(rows["kind"], "video").to_numpy(zero_copy_only=False)
    never = np.zeros(rows.num_rows, dtype=bool)
    return Verdict(
        "min_video_words", ~video | (longest >= words), np.where(video, longest, np.nan), float(words), never
    )


def domain_not_flagged(rows: pa.Table, flagged: Collection[str]) -> Verdict:
    """Keeps rows whose URL is on none of the domains that the `domains` stage has flagged. There is no number to it."""
    keep = np.array([registered_domain(url) not in flagged for url in rows["url"].to_pylist()], dtype=bool)
    never = np.zeros(rows.num_rows, dtype=bool)
    return Verdict("flagged_domain", keep, np.full(rows.num_rows, np.nan), float("nan"), never)


def num_words(texts: pa.Array) -> pa.Array:
    """The number of words of every text, as counted by `min_video_words`; 0 for null."""
    return pc.fill_null(pc.count_substring_regex(texts, WORD), 0)


def _sizes(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Width, height, whether the row is an image, and whether it is one without a size; NaN where unknown."""
    media = rows["media"].combine_chunks()
    width, height = (
        pc.struct_field(media, side).cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        for side in ("width", "height")
    )
    image = ~pc.equal(rows["kind"], "video").to_numpy(zero_copy_only=False)
    unknown = image & ~((width > 0) & (height > 0))
    return width, height, image, unknown
