"""Box rules against arithmetic in exact fractions, with every edge by name."""

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from x2vlm.data import boxes
from x2vlm.samples import Box, Concept, Grain, Sample

SIDES = st.integers(1, 2000)
COORDINATES = st.integers(-50, 2100)


@given(COORDINATES, COORDINATES, COORDINATES, COORDINATES, SIDES, SIDES)
def test_a_box_is_valid_exactly_where_the_paper_keeps_it(
    x: int, y: int, w: int, h: int, width: int, height: int
) -> None:
    valid = x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height
    assert boxes.box_invalid(Box(x, y, w, h), width, height, tolerance_pixels=0) != valid


@pytest.mark.parametrize(
    ("box", "invalid"),
    [
        (Box(0, 0, 100, 80), False),  # the whole image
        (Box(-0.5, 0, 50, 50), False),  # the tolerance itself keeps
        (Box(-0.51, 0, 50, 50), True),
        (Box(50, 30, 50.5, 50.5), False),
        (Box(50, 30, 50.6, 50), True),
        (Box(50, 30, 50, 50.6), True),
        (Box(0, -0.6, 10, 10), True),
        (Box(10, 10, 0, 10), True),
        (Box(10, 10, 10, 0), True),
        (Box(10, 10, -5, 10), True),
        (Box(float("nan"), 10, 10, 10), True),
        (Box(10, 10, float("nan"), 10), True),
        (Box(0, 0, float("inf"), 10), True),
    ],
)
def test_edges_of_the_tolerance(box: Box, invalid: bool) -> None:
    assert boxes.box_invalid(box, 100, 80) == invalid


@st.composite
def spans(draw: st.DrawFn) -> tuple[float, float, int]:
    """(start, length, limit) of a span that passes its ends by no more than the tolerance."""
    limit = draw(SIDES)
    ends = st.floats(-0.5, limit + 0.5) | st.sampled_from([0.0, float(limit), -0.5, limit + 0.5, limit + 1e-9])
    start, end = sorted((draw(ends), draw(ends)))
    return start, end - start, limit


@given(spans(), spans())
def test_a_snapped_box_is_inside_and_hardly_moved(
    across: tuple[float, float, int], down: tuple[float, float, int]
) -> None:
    (x, w, width), (y, h, height) = across, down
    assume(not boxes.box_invalid(Box(x, y, w, h), width, height))
    inside = boxes.snap_to_border(Box(x, y, w, h), width, height)
    assert inside.x >= 0
    assert inside.y >= 0
    assert inside.x + inside.w <= width
    assert inside.y + inside.h <= height
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        assert inside == Box(x, y, w, h)
    assert abs(inside.x - x) <= 0.5
    assert abs(inside.y - y) <= 0.5
    assert abs(inside.x + inside.w - (x + w)) <= 0.5 + 1e-9
    assert abs(inside.y + inside.h - (y + h)) <= 0.5 + 1e-9


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([(224, 16), (384, 16), (224, 14), (768, 32)]))
def test_small_agrees_with_fractions(w: int, h: int, width: int, height: int, res_and_patch: tuple[int, int]) -> None:
    res, patch = res_and_patch
    resized_w, resized_h = Fraction(w * res, width), Fraction(h * res, height)
    box = Box(0, 0, w, h)
    assert boxes.box_too_small(box, width, height, res, patch) == (resized_w * resized_h < patch**2)
    assert boxes.box_too_small(box, width, height, res, patch, "any_side") == (resized_w < patch or resized_h < patch)


def test_a_box_of_exactly_one_patch_is_kept() -> None:
    for rule in ("area", "any_side"):
        assert not boxes.box_too_small(Box(0, 0, 32, 16), 448, 224, 224, 16, rule)
        assert boxes.box_too_small(Box(0, 0, 31, 16), 448, 224, 224, 16, rule)


def test_the_two_readings_differ_for_a_long_thin_box() -> None:
    thin = Box(0, 0, 200, 8)
    assert not boxes.box_too_small(thin, 224, 224, rule="area")
    assert boxes.box_too_small(thin, 224, 224, rule="any_side")


def oracle_overlap(first: str, second: str, measure: str) -> Fraction:
    """Common words by striking them out one by one."""
    left, right, common = first.split(), second.split(), 0
    for word in left:
        if word in right:
            right.remove(word)
            common += 1
    whole = min(len(left), len(second.split())) if measure == "smaller" else len(left) + len(right)
    return Fraction(common, whole) if whole else Fraction(0)


PHRASES = st.lists(st.sampled_from(["dog", "cat", "red", "on", "the", "grass"]), max_size=6).map(" ".join)


@given(PHRASES, PHRASES, st.sampled_from(["smaller", "jaccard"]))
def test_overlap_agrees_with_striking_words_out(first: str, second: str, measure: boxes.OverlapMeasure) -> None:
    overlap = boxes.text_overlap(boxes.token_counts(first), boxes.token_counts(second), measure)
    assert overlap == float(oracle_overlap(first, second, measure))
    assert overlap == boxes.text_overlap(boxes.token_counts(second), boxes.token_counts(first), measure)


@given(st.lists(st.tuples(PHRASES, st.integers(1, 4)), max_size=8))
def test_dropped_texts_agree_with_a_naive_pass(regions: list[tuple[str, int]]) -> None:
    texts, areas = [text for text, _ in regions], [float(area) for _, area in regions]
    order = sorted(range(len(regions)), key=lambda position: (-areas[position], position))
    kept: list[int] = []
    for position in order:
        if all(oracle_overlap(texts[position], texts[other], "smaller") <= Fraction(3, 4) for other in kept):
            kept.append(position)
    dropped = boxes.overlapping_texts(texts, areas)
    assert sorted(dropped) == sorted(set(order) - set(kept))
    assert all(overlap > 0.75 for overlap in dropped.values())


@pytest.mark.parametrize(
    ("texts", "areas", "dropped"),
    [
        (["a b c d", "a b c e"], [2.0, 1.0], []),  # exactly 3/4 is kept
        (["a b c d e", "a b c d f"], [2.0, 1.0], [1]),  # 4/5 is not
        (["a b c d e", "a b c d f"], [1.0, 2.0], [0]),  # the larger area stays
        (["man on left", "Man on left."], [1.0, 1.0], [1]),  # a tie: the earlier stays
        (["a b", "a b", "a b"], [1.0, 3.0, 2.0], [0, 2]),
        (["dog", "the dog on the grass"], [1.0, 2.0], [0]),  # the smaller text is all in the larger
        (["...", "..."], [1.0, 1.0], []),  # nothing to compare
    ],
)
def test_which_of_two_texts_goes(texts: list[str], areas: list[float], dropped: list[int]) -> None:
    assert sorted(boxes.overlapping_texts(texts, areas)) == dropped


def test_a_dropped_text_takes_no_other_with_it() -> None:
    # b repeats a, c repeats b but not a: with b gone, c stays.
    texts = ["one two three four five", "two three four five six", "three four five six seven"]
    assert sorted(boxes.overlapping_texts(texts, [3.0, 2.0, 1.0])) == [1]


def test_jaccard_is_milder_to_texts_of_unequal_length() -> None:
    texts = ["dog", "the dog on the grass"]
    assert boxes.overlapping_texts(texts, [1.0, 2.0], measure="jaccard") == {}


def test_normalised_boxes_become_pixels_and_pixels_stay() -> None:
    normalised = Concept(Grain.OBJECT, "cat", Box(0.25, 0.5, 0.5, 0.25), (), "norm:bbox:7")
    pixels = Concept(Grain.OBJECT, "dog", Box(1, 2, 3, 4), (), "9")
    sample = Sample("k", "s", "r", "train", "image", "http://x", concepts=(normalised, pixels))
    converted = boxes.denormalise_boxes(sample, 400, 200).concepts
    assert converted == (Concept(Grain.OBJECT, "cat", Box(100, 100, 200, 50), (), "bbox:7"), pixels)


@given(st.lists(st.tuples(COORDINATES, COORDINATES, SIDES, SIDES), min_size=2, max_size=2))
def test_a_union_is_the_smallest_box_around_both(both: list[tuple[int, int, int, int]]) -> None:
    first, second = (Box(*values) for values in both)
    around = boxes.union(first, second)
    xs = sorted([first.x, first.x + first.w, second.x, second.x + second.w])
    ys = sorted([first.y, first.y + first.h, second.y, second.y + second.h])
    assert (around.x, around.x + around.w, around.y, around.y + around.h) == (xs[0], xs[-1], ys[0], ys[-1])
