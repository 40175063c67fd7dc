"""Caption rules against counting characters one by one, with every edge by name."""

import re
import unicodedata
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2vlm.data.rules import caption_rules
from x2vlm.data.rules.row_filters import Verdict

CHARS = "ab1 .,é日ß\t[]\u00a0\U0001f600"
TEXTS = st.lists(st.none() | st.text(CHARS, max_size=12), max_size=6)


def array(texts: list[str | None]) -> pa.Array:
    return pa.array(texts, pa.string())


def keeps(verdict: Verdict) -> list[bool]:
    return verdict.keep.tolist()


@given(TEXTS)
def test_not_empty_agrees_with_looking(texts: list[str | None]) -> None:
    expected = [bool((text or "").strip()) for text in texts]
    assert keeps(caption_rules.not_empty(array(texts))) == expected


@given(TEXTS, st.integers(1, 5), st.integers(1, 8))
def test_lengths_agree_with_len(texts: list[str | None], least: int, most: int) -> None:
    shortest, longest = caption_rules.chars_between(array(texts), least, most)
    assert (shortest.rule, longest.rule) == ("min_caption_chars", "max_caption_chars")
    assert shortest.value.tolist() == longest.value.tolist() == [len(text or "") for text in texts]
    assert keeps(shortest) == [len(text or "") >= least for text in texts]
    assert keeps(longest) == [len(text or "") <= most for text in texts]


@given(TEXTS, st.integers(1, 3), st.integers(1, 4))
def test_word_counts_agree_with_splitting(texts: list[str | None], least: int, most: int) -> None:
    def words(text: str | None) -> int:
        # Like RE2, whose white space is ASCII: a no-break space is inside a word.
        return sum(any(char.isalnum() for char in run) for run in re.split(r"[ \t]+", text or ""))

    shortest, longest = caption_rules.words_between(array(texts), least, most)
    assert shortest.value.tolist() == [words(text) for text in texts]
    assert keeps(shortest) == [words(text) >= least for text in texts]
    assert keeps(longest) == [words(text) <= most for text in texts]


@given(TEXTS, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_letter_fraction_agrees_with_unicode_categories(texts: list[str | None], fraction: float) -> None:
    def letters(text: str | None) -> float:
        signs = [char for char in text or "" if char != "\t" and not unicodedata.category(char).startswith("Z")]
        found = sum(unicodedata.category(char).startswith("L") for char in signs)
        return found / len(signs) if signs else 0.0

    verdict = caption_rules.min_letter_share(array(texts), fraction)
    assert verdict.value.tolist() == [letters(text) for text in texts]
    assert keeps(verdict) == [letters(text) >= fraction for text in texts]


@given(TEXTS, st.integers(1, 3))
def test_repeated_characters_agree_with_groupby(texts: list[str | None], most: int) -> None:
    longest = [max((len(list(run)) for _, run in groupby(text or "")), default=0) for text in texts]
    verdict = caption_rules.max_repeated_chars(array(texts), most)
    assert verdict.value.tolist() == longest
    assert keeps(verdict) == [run <= most for run in longest]


def test_runs_do_not_cross_from_one_text_into_the_next_nor_start_before_a_slice() -> None:
    texts = pa.array(["aaaa", "aa", "", "ab", None, "bb"]).slice(1, 5)
    assert caption_rules.longest_run(texts).tolist() == [2, 0, 1, 0, 2]


@pytest.mark.parametrize(
    ("text", "keeps_it"),
    [
        ("see http://example.org", False),
        ("HTTPS://EXAMPLE.ORG", False),
        ("www.example.org", False),
        ("buy at www.", True),
        ("the http protocol", True),
        ("awww.so cute", True),
        ("photo by example.org", True),
        (None, True),
    ],
)
def test_what_is_an_address(text: str | None, keeps_it: bool) -> None:
    assert keeps(caption_rules.no_url(array([text]))) == [keeps_it]


@pytest.mark.parametrize(
    ("text", "words", "keeps_it"),
    [("waves crash", 2, True), ("waves", 2, False), ("waves -", 2, False), ("waves", 1, True), ("", 0, True)],
)
def test_edges_of_the_words_of_a_video(text: str, words: int, keeps_it: bool) -> None:
    counts = caption_rules.words_between(array([text]), 1, None)[0].value
    assert keeps(caption_rules.enough_video_words(counts, words)) == [keeps_it]
    assert keeps(caption_rules.enough_video_words(np.array([np.nan]), words)) == [True]  # of an image


def test_the_source_s_word_for_a_language_counts_and_none_is_none() -> None:
    claimed = array(["en", "de", None, "EN"])
    verdict = caption_rules.language_in(array(["a", "b", "c", "d"]), claimed, ["en"], by_detector=False)
    assert keeps(verdict) == [True, False, False, False]
    assert not verdict.applies[~verdict.applies].size
