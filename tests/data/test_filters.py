"""Row rules against plain arithmetic on tables as the download stage writes them."""

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2vlm.data import filters
from x2vlm.samples import Caption, Media, Sample, sample_table

SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


def table(*rows: tuple[str, tuple[int, int] | None, list[str]]) -> pa.Table:
    """A table of (kind, size, captions)."""
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
    verdict = filters.min_short_edge(table(*(("image", size, []) for size in sizes)), pixels)
    assert verdict.keep.tolist() == [width >= pixels and height >= pixels for width, height in sizes]
    assert verdict.value.tolist() == [min(size) for size in sizes]


@given(st.lists(SIZES, max_size=5))
def test_max_aspect_ratio_agrees_with_arithmetic(sizes: list[tuple[int, int]]) -> None:
    verdict = filters.max_aspect_ratio(table(*(("image", size, []) for size in sizes)))
    assert verdict.keep.tolist() == [max(size) <= 3 * min(size) for size in sizes]


@given(st.lists(st.lists(st.text("ab1 .,é日\t[]"), max_size=3), max_size=4), st.integers(0, 4))
def test_min_video_words_agrees_with_counting(captions: list[list[str]], words: int) -> None:
    def count(text: str) -> int:
        return sum(any(char.isalnum() for char in run) for run in re.split(r"[ \t]+", text))

    longest = [max(map(count, texts), default=0) for texts in captions]
    verdict = filters.min_video_words(table(*(("video", None, texts) for texts in captions)), words)
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
    rows = table(("image", size, []))
    assert filters.min_short_edge(rows).keep.tolist() == [edge_keeps]
    assert filters.max_aspect_ratio(rows).keep.tolist() == [aspect_keeps]


@pytest.mark.parametrize("size", [None, (0, 300), (300, 0)])
@pytest.mark.parametrize("rule", [filters.min_short_edge, filters.max_aspect_ratio])
def test_an_image_without_a_size_is_never_kept(rule: object, size: tuple[int, int] | None) -> None:
    verdict = rule(table(("image", size, ["a dog"]), ("image", (500, 500), [])))  # type: ignore[operator]
    assert verdict.keep.tolist() == [False, True]
    assert verdict.rule_of(0) == "size_unknown"


def test_size_rules_say_nothing_about_videos_and_word_rules_nothing_about_images() -> None:
    rows = table(("video", (64, 640), ["one two"]), ("image", (640, 640), ["word"]), ("video", None, ["word"]))
    assert filters.min_short_edge(rows).keep.tolist() == [True, True, True]
    assert filters.max_aspect_ratio(rows).keep.tolist() == [True, True, True]
    assert filters.min_video_words(rows).keep.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("text", "keeps"), [("waves crash", True), ("waves", False), ("[Music]", False), ("waves -", False), ("", False)]
)
def test_edges_of_the_word_rule(text: str, keeps: bool) -> None:
    assert filters.min_video_words(table(("video", None, [text]))).keep.tolist() == [keeps]


def test_a_video_without_captions_has_no_words() -> None:
    assert filters.min_video_words(table(("video", None, []))).keep.tolist() == [False]


def test_rules_take_an_empty_table() -> None:
    for rule in (filters.min_short_edge, filters.max_aspect_ratio, filters.min_video_words):
        assert rule(table()).keep.tolist() == []
