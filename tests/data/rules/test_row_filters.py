"""Row rules against plain arithmetic on tables as the download stage writes them."""

import math
import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2vlm.data.columns import SampleColumns
from x2vlm.data.rules import row_filters as filters
from x2vlm.samples import Caption, Media, Sample, SourceScores, sample_table

SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def columns(*rows: tuple[str, tuple[int, int] | None, list[str]]) -> SampleColumns:
    """Rows of (kind, size, captions)."""
    return SampleColumns(table(*rows))


def table(*rows: tuple[str, tuple[int, int] | None, list[str]]) -> pa.Table:
    return sample_table(
        Sample(
            key=f"{number:032d}",
            source="test",
            source_row=str(number),
            split="train",
            kind=kind,
            url="http://x",
            captions=tuple(Caption(text) for text in texts),
            media=size and Media(kind, "0" * 64, 1, *size, "jpeg"),
        )
        for number, (kind, size, texts) in enumerate(rows)
    )


@given(st.lists(SIZES, max_size=5), st.integers(1, 500))
def test_min_short_edge_agrees_with_arithmetic(sizes: list[tuple[int, int]], pixels: int) -> None:
    verdict = filters.min_short_edge(columns(*(("image", size, []) for size in sizes)), pixels)
    assert verdict.keep.tolist() == [width >= pixels and height >= pixels for width, height in sizes]
    assert verdict.value.tolist() == [min(size) for size in sizes]


@given(st.lists(SIZES | st.sampled_from([(300, 100), (100, 300), (301, 100), (224, 672), (673, 224)]), max_size=5))
def test_max_aspect_ratio_agrees_with_arithmetic(sizes: list[tuple[int, int]]) -> None:
    verdict = filters.max_aspect_ratio(columns(*(("image", size, []) for size in sizes)))
    assert verdict.keep.tolist() == [max(size) <= 3 * min(size) for size in sizes]


@given(st.lists(st.lists(st.text("ab1 .,é日\t[]"), max_size=3), max_size=4), st.integers(0, 4))
def test_min_video_words_agrees_with_counting(captions: list[list[str]], words: int) -> None:
    def count(text: str) -> int:
        return sum(any(char.isalnum() for char in run) for run in re.split(r"[ \t]+", text))

    longest = [max(map(count, texts), default=0) for texts in captions]
    verdict = filters.min_video_words(columns(*(("video", None, texts) for texts in captions)), words)
    assert verdict.keep.tolist() == [number >= words for number in longest]
    assert verdict.value.tolist() == longest


@pytest.mark.parametrize(
    ("size", "edge_keeps", "aspect_keeps"),
    [
        ((224, 224), True, True),
        ((223, 500), False, True),
        ((500, 223), False, True),
        ((672, 224), True, True),  # exactly 3
        ((224, 672), True, True),
        ((673, 224), True, False),
        ((224, 673), True, False),
    ],
)
def test_edges_of_size_rules(size: tuple[int, int], edge_keeps: bool, aspect_keeps: bool) -> None:
    rows = columns(("image", size, []))
    assert filters.min_short_edge(rows).keep.tolist() == [edge_keeps]
    assert filters.max_aspect_ratio(rows).keep.tolist() == [aspect_keeps]


@pytest.mark.parametrize("size", [None, (0, 300), (300, 0)])
@pytest.mark.parametrize("rule", [filters.min_short_edge, filters.max_aspect_ratio])
def test_an_image_without_a_size_is_never_kept(rule: object, size: tuple[int, int] | None) -> None:
    verdict = rule(columns(("image", size, ["a dog"]), ("image", (500, 500), [])))  # type: ignore[operator]
    assert verdict.keep.tolist() == [False, True]
    assert (verdict.is_unknown().tolist(), verdict.unknown_rule) == ([True, False], "size_unknown")


def test_size_rules_say_nothing_about_videos_and_word_rules_nothing_about_images() -> None:
    rows = columns(("video", (64, 640), ["one two"]), ("image", (640, 640), ["word"]), ("video", None, ["word"]))
    assert filters.min_short_edge(rows).keep.tolist() == [True, True, True]
    assert filters.max_aspect_ratio(rows).keep.tolist() == [True, True, True]
    assert filters.min_video_words(rows).keep.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("text", "keeps"), [("waves crash", True), ("waves", False), ("[Music]", False), ("waves -", False), ("", False)]
)
def test_edges_of_the_word_rule(text: str, keeps: bool) -> None:
    assert filters.min_video_words(columns(("video", None, [text]))).keep.tolist() == [keeps]


def test_a_video_without_captions_has_no_words() -> None:
    assert filters.min_video_words(columns(("video", None, []))).keep.tolist() == [False]


def test_rules_take_an_empty_columns() -> None:
    for rule in (filters.min_short_edge, filters.max_aspect_ratio, filters.min_video_words):
        assert rule(columns()).keep.tolist() == []


def scored(*scores: SourceScores | None) -> SampleColumns:
    """Images that differ in what their source says about them."""
    rows = table(*(("image", (500, 500), ["a dog"]) for _ in scores)).to_pylist()
    for row, each in zip(rows, scores, strict=True):
        row["source_scores"] = each and vars(each)
    return SampleColumns(pa.Table.from_pylist(rows, schema=table().schema))


NUMBERS = st.none() | st.sampled_from([0.0, 0.3, 0.5, 1.0, math.nan, 0.1 + 0.2])


@given(st.lists(st.none() | st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=6), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_source_scores_agree_with_comparing(rows: list[tuple[float | None, ...] | None], threshold: float) -> None:
    scores = scored(*(row and SourceScores(*row) for row in rows))
    for place, rule, fits in (
        (0, filters.min_similarity, lambda value: value >= threshold),
        (1, filters.max_punsafe, lambda value: value <= threshold),
        (2, filters.max_pwatermark, lambda value: value <= threshold),
    ):
        values = [None if row is None else math.nan if row[place] is None else row[place] for row in rows]
        verdict = rule(scores, threshold)
        assert verdict.keep.tolist() == [value is None or fits(value) for value in values]  # NaN fits nothing
        assert verdict.is_unknown().tolist() == [value is not None and math.isnan(value) for value in values]
        assert verdict.applies.tolist() == [value is not None for value in values]


def test_edges_of_the_source_s_scores() -> None:
    rows = scored(SourceScores(similarity=0.3, punsafe=0.3), SourceScores(similarity=0.2999, punsafe=0.3001), None)
    assert filters.min_similarity(rows, 0.3).keep.tolist() == [True, False, True]
    assert filters.max_punsafe(rows, 0.3).keep.tolist() == [True, False, True]


def test_words_for_nsfw_in_any_case() -> None:
    words = ["UNLIKELY", "unsure", "NSFW", "Nsfw", "", None]
    verdict = filters.not_nsfw(scored(*(SourceScores(nsfw=word) for word in words), None), ["nsfw", "UNSURE"])
    assert verdict.keep.tolist() == [True, False, False, False, False, False, True]
    assert verdict.is_unknown().tolist() == [False, False, False, False, True, True, False]
    assert verdict.unknown_rule == "nsfw_unknown"


FULL_KEYS = st.builds(lambda head, tail: head * 24 + tail * 8, st.sampled_from("0a"), st.sampled_from("0123"))


@given(
    st.lists(FULL_KEYS | st.sampled_from(["a", "b", ""]), max_size=8) | st.lists(FULL_KEYS, max_size=8),
    st.integers(0, 3),
)
def test_the_first_row_of_a_key_stays(keys: list[str], skipped: int) -> None:
    rows = table(*(("image", (500, 500), []) for _ in keys))
    rows = rows.set_column(0, "key", pa.array(keys, pa.string())).slice(skipped)
    keys = keys[skipped:]
    expected = [key not in keys[:place] for place, key in enumerate(keys)]
    assert filters.unique_key(SampleColumns(rows)).keep.tolist() == expected
