"""Cleaning, joining and comparing of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2vlm.data.text.texts import clean_text, compared_words, concept_text
from x2vlm.samples import Box, Concept, Grain


@given(st.text())
def test_clean_text_leaves_single_spaces_between_the_same_words(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned
    assert clean_text(cleaned) == cleaned
    if text.isprintable():
        assert cleaned.split() == text.split()


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a dog \n on grass. ", "a dog on grass."),
        ("tab\there", "tab here"),
        ("no\u00a0break", "no break"),
        ("bell\x07rings", "bell rings"),
        ("null", "null"),
        ("日本 の 猫", "日本 の 猫"),
        ("", ""),
    ],
)
def test_clean_text_by_example(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@pytest.mark.parametrize(
    ("label", "attributes", "description"),
    [
        ("clock", ("green", "tall"), "green tall clock"),
        ("table", ("wooden",), "wooden table"),
        ("handbag", ("made of leather",), "handbag made of leather"),
        ("boy wearing a backpack", (), "boy wearing a backpack"),
    ],
)
def test_attributes_join_their_label(label: str, attributes: tuple[str, ...], description: str) -> None:
    assert concept_text(Concept(Grain.OBJECT, label, Box(0, 0, 1, 1), attributes)) == description


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert compared_words("A dog, a DOG!") == ["a", "dog", "a", "dog"]
    assert compared_words("...") == []
