"""Rows of samples as columns: the values that rules compare, as flat arrays, computed once and only when needed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WORD = r"\S*[\pL\pN]\S*"  # a run without white space that holds a letter or a digit


@dataclass(frozen=True)
class Items:
    """The items of a list column concatenated in row order: one entry per caption or concept."""

    values: pa.StructArray
    row: np.ndarray  # int64; the row it belongs to
    position: np.ndarray  # int64; its place in that row's list

    def __len__(self) -> int:
        return len(self.row)

    def select(self, keep: np.ndarray) -> "Items":
        """The items where `keep` is true."""
        return Items(self.values.filter(pa.array(keep)), self.row[keep], self.position[keep])

    def regroup(self, num_rows: int) -> pa.ListArray:
        """The items regrouped into a list column of `num_rows` rows; rows without items get an empty list."""
        offsets = np.zeros(num_rows + 1, dtype=np.int32)
        np.cumsum(np.bincount(self.row, minlength=num_rows), out=offsets[1:])
        return pa.ListArray.from_arrays(pa.array(offsets), self.values)


def items_of(rows: pa.Table, column: str) -> Items:
    """The items of list column `column`; a null list is an empty one."""
    lists = one_array(rows[column])
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    row = np.repeat(np.arange(len(lists)), lengths)
    starts = np.cumsum(lengths) - lengths
    return Items(lists.flatten(), row, np.arange(len(row)) - starts[row])


class SampleColumns:
    """A table of SAMPLE_SCHEMA with derived columns that several rules use."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    @cached_property
    def is_video(self) -> np.ndarray:
        """bool; a row of unknown kind counts as an image, for which the rules are stricter."""
        return flags(pc.equal(one_array(self.rows["kind"]), "video"))

    @cached_property
    def size(self) -> tuple[np.ndarray, np.ndarray]:
        """Width and height in oriented pixels of the original, float64; NaN where unknown."""
        media = one_array(self.rows["media"])
        width, height = (numbers(pc.struct_field(media, side)) for side in ("width", "height"))
        return width, height

    @cached_property
    def has_size(self) -> np.ndarray:
        """True where both sides are at least a pixel."""
        width, height = self.size
        return (width > 0) & (height > 0)

    @cached_property
    def captions(self) -> Items:
        return items_of(self.rows, "captions")

    @cached_property
    def concepts(self) -> Items:
        return items_of(self.rows, "concepts")

    @cached_property
    def words_of_videos(self) -> np.ndarray:
        """Words of every caption, float64; NaN for captions of images, which no default rule looks at."""
        of_video = self.is_video[self.captions.row]
        words = np.full(len(self.captions), np.nan)
        if of_video.any():
            texts = self.captions.values.field("text").filter(pa.array(of_video))
            words[of_video] = num_words(texts)
        return words

    def source_score(self, name: str) -> pa.Array:
        """Field `name` of the scores that the source provides; null where missing."""
        return pc.struct_field(one_array(self.rows["source_scores"]), name)

    @cached_property
    def has_source_scores(self) -> np.ndarray:
        """True where the source provides any score."""
        return flags(one_array(self.rows["source_scores"]).is_valid())


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece; no copy where it is in one piece already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def numbers(values: pa.Array) -> np.ndarray:
    """float64, NaN for null."""
    found: np.ndarray = pc.fill_null(values.cast(pa.float64()), np.nan).to_numpy(zero_copy_only=False)
    return found


def flags(values: pa.Array) -> np.ndarray:
    """bool, False for null."""
    found: np.ndarray = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
    return found


def num_words(texts: pa.Array) -> np.ndarray:
    """The number of words of every text; 0 for null. A word is a run without white space with a letter or digit."""
    found: np.ndarray = pc.fill_null(pc.count_substring_regex(texts, WORD), 0).to_numpy(zero_copy_only=False)
    return found
