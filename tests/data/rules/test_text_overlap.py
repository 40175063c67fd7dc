"""Repeated texts against a pass over one image at a time that strikes words out one by one."""

import re
import unicodedata
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.rules import text_overlap
from x2vlm.data.rules.text_overlap import OverlapMeasure, drop_repeats, find_overlaps

PHRASES = st.lists(st.sampled_from(["dog", "cat", "red", "on", "the", "grass"]), max_size=6).map(" ".join)
ODD_PHRASES = st.lists(
    st.sampled_from(["Straße", "STRASSE", "ﬁsh", "fish", "é", "e\u0301", "日本", "a_b", "!", "٣"]), max_size=4
)
REGIONS = st.lists(st.tuples(st.integers(0, 2), PHRASES | ODD_PHRASES.map(" ".join), st.integers(1, 4)), max_size=14)


def overlap(first: str, second: str, measure: str) -> Fraction:
    """Common words by striking them out one by one."""
    left, right = (
        [word for word in re.split(r"\W+", unicodedata.normalize("NFKC", text).casefold()) if word]
        for text in (first, second)
    )
    rest, common = list(right), 0
    for word in left:
        if word in rest:
            rest.remove(word)
            common += 1
    whole = min(len(left), len(right)) if measure == "smaller" else len(left) + len(right) - common
    return Fraction(common, whole) if whole else Fraction(0)


def one_image(texts: list[str], areas: list[float], threshold: Fraction, measure: str) -> dict[int, Fraction]:
    """The positions to drop and their overlaps, in a single pass from the largest area to the smallest."""
    kept: list[int] = []
    dropped: dict[int, Fraction] = {}
    for position in sorted(range(len(texts)), key=lambda position: (-areas[position], position)):
        most = max((overlap(texts[position], texts[other], measure) for other in kept), default=Fraction(0))
        if most > threshold:
            dropped[position] = most
        else:
            kept.append(position)
    return dropped


def drops(texts: list[str], areas: list[float], measure: OverlapMeasure = "smaller") -> list[int]:
    columns = (pa.array(texts, pa.string()), np.zeros(len(texts), int), np.array(areas))
    found = drop_repeats(find_overlaps(*columns, 0.75, measure))
    return np.flatnonzero(~np.isnan(found)).tolist()


@settings(max_examples=120)
@given(
    REGIONS,
    st.sampled_from([Fraction(3, 4), Fraction(1, 2), Fraction(0), Fraction(1)]),
    st.sampled_from(["smaller", "jaccard"]),
)
def test_dropped_texts_agree_with_a_naive_pass(
    regions: list[tuple[int, str, int]], threshold: Fraction, measure: OverlapMeasure
) -> None:
    regions.sort(key=lambda region: region[0])
    images, texts, areas = ([region[part] for region in regions] for part in range(3))
    expected = np.full(len(regions), np.nan)
    for image in set(images):
        members = [number for number, other in enumerate(images) if other == image]
        found = one_image([texts[n] for n in members], [areas[n] for n in members], threshold, measure)
        for position, fraction in found.items():
            expected[members[position]] = float(fraction)
    columns = (pa.array(texts, pa.string()), np.array(images, dtype=np.int64), np.array(areas, dtype=np.float64))
    np.testing.assert_array_equal(drop_repeats(find_overlaps(*columns, float(threshold), measure)), expected)


@pytest.mark.parametrize(("pair_words", "texts_at_a_time"), [(1, 1), (7, 3), (1 << 20, 2)])
def test_the_size_of_a_bite_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, pair_words: int, texts_at_a_time: int
) -> None:
    draws = np.random.default_rng(1)
    texts = pa.array([" ".join(draws.choice(list("abcdefgh"), draws.integers(0, 7))) for _ in range(200)])
    image, area = np.sort(draws.integers(0, 20, 200)), draws.integers(0, 9, 200).astype(float)
    whole = drop_repeats(find_overlaps(texts, image, area, 0.75, "smaller"))
    assert 5 < np.count_nonzero(~np.isnan(whole)) < 195
    monkeypatch.setattr(text_overlap, "PAIR_WORDS", pair_words)
    monkeypatch.setattr(text_overlap, "TEXTS_AT_A_TIME", texts_at_a_time)
    np.testing.assert_array_equal(drop_repeats(find_overlaps(texts, image, area, 0.75, "smaller")), whole)


def test_more_words_than_bits_in_a_machine_word() -> None:
    words = [f"w{number}" for number in range(200)]
    assert drops([" ".join(words), " ".join(words[:149]), " ".join(["x", *words[:2]])], [3.0, 2.0, 1.0]) == [1]
    assert drops([" ".join(words[:100]), " ".join(words[25:100] + ["y"] * 25)], [2.0, 1.0]) == []  # exactly 75 of 100
    assert drops([" ".join(words[:100]), " ".join(words[24:100] + ["y"] * 24)], [2.0, 1.0]) == [1]  # 76 of 100


@pytest.mark.parametrize(
    ("texts", "areas", "dropped"),
    [
        (["a b c d", "a b c e"], [2.0, 1.0], []),  # exactly 3/4 is kept
        (["a b c d e", "a b c d f"], [2.0, 1.0], [1]),  # 4/5 is not
        (["a b c d e", "a b c d f"], [1.0, 2.0], [0]),  # the larger area stays
        (["man on left", "Man on left."], [1.0, 1.0], [1]),  # a tie: the earlier stays
        (["a b", "a b", "a b"], [1.0, 3.0, 2.0], [0, 2]),
        (["dog", "the dog on the grass"], [1.0, 2.0], [0]),  # the smaller text is all in the larger
        (["a a a a", "a b c d"], [2.0, 1.0], []),  # words count as often as they occur
        (["...", "..."], [1.0, 1.0], []),  # nothing to compare
        ([], [], []),
    ],
)
def test_which_of_two_texts_goes(texts: list[str], areas: list[float], dropped: list[int]) -> None:
    assert drops(texts, areas) == dropped


def test_a_dropped_text_takes_no_other_with_it() -> None:
    # b repeats a, c repeats b but not a: with b gone, c stays.
    texts = ["one two three four five", "two three four five six", "three four five six seven"]
    assert drops(texts, [3.0, 2.0, 1.0]) == [1]


def test_a_long_chain_is_decided_link_by_link() -> None:
    words = [f"w{number}" for number in range(60)]
    chain = [" ".join(words[start : start + 5]) for start in range(50)]  # each repeats its neighbours only
    assert drops(chain, [float(-number) for number in range(50)]) == list(range(1, 50, 2))


def test_jaccard_is_milder_to_texts_of_unequal_length() -> None:
    assert drops(["dog", "the dog on the grass"], [1.0, 2.0], "jaccard") == []


def test_a_missing_text_repeats_nothing() -> None:
    texts = pa.array([None, None, "dog"], pa.string())
    assert np.isnan(drop_repeats(find_overlaps(texts, np.zeros(3, int), np.ones(3), 0.75, "smaller"))).all()
