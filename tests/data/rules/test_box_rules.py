"""Box rules against arithmetic in exact fractions, with every edge by name."""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.rules import box_rules
from x2vlm.data.rules.box_rules import Boxes

SIDES = st.integers(1, 2000)
COORDINATES = st.integers(-50, 2100)
WHOLE_BOXES = st.tuples(COORDINATES, COORDINATES, COORDINATES, COORDINATES, SIDES, SIDES)

EIGHTHS = st.integers(-40, 1000).map(lambda number: number / 8)  # sums of them are exact, and many are on the edge
EDGY_BOXES = st.tuples(EIGHTHS, EIGHTHS, EIGHTHS, EIGHTHS, st.integers(1, 60), st.integers(1, 60))


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """Boxes of (x, y, w, h, width, height)."""
    return Boxes(*np.array(rows, dtype=np.float64).reshape(-1, 6).T)


@given(st.lists(WHOLE_BOXES, max_size=6))
def test_a_box_is_valid_exactly_where_the_paper_keeps_it(rows: list[tuple[int, ...]]) -> None:
    def valid(x: int, y: int, w: int, h: int, width: int, height: int) -> bool:
        return x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height

    assert box_rules.box_invalid(boxes(*rows), tolerance_pixels=0).tolist() == [not valid(*row) for row in rows]


@given(st.lists(EDGY_BOXES, max_size=6), st.sampled_from([0, 0.125, 0.5, 2]))
def test_the_tolerance_agrees_with_fractions(rows: list[tuple[float, ...]], tolerance: float) -> None:
    def over(x: float, y: float, w: float, h: float, width: float, height: float) -> Fraction:
        x, y, w, h = map(Fraction, (x, y, w, h))
        return max(-x, -y, x + w - width, y + h - height, Fraction(0))

    table = boxes(*rows)
    assert box_rules.pixels_outside(table).tolist() == [float(over(*row)) for row in rows]
    expected = [row[2] <= 0 or row[3] <= 0 or over(*row) > Fraction(tolerance) for row in rows]
    assert box_rules.box_invalid(table, tolerance).tolist() == expected


@pytest.mark.parametrize(
    ("box", "invalid"),
    [
        ((0, 0, 100, 80), False),  # the whole image
        ((-0.5, 0, 50, 50), False),  # the tolerance itself keeps
        ((-0.51, 0, 50, 50), True),
        ((50, 30, 50.5, 50.5), False),
        ((50, 30, 50.6, 50), True),
        ((50, 30, 50, 50.6), True),
        ((0, -0.6, 10, 10), True),
        ((10, 10, 0, 10), True),
        ((10, 10, 10, 0), True),
        ((10, 10, -5, 10), True),
        ((math.nan, 10, 10, 10), True),
        ((10, 10, math.nan, 10), True),
        ((0, 0, math.inf, 10), True),
        ((-math.inf, 0, math.inf, 10), True),
    ],
)
def test_edges_of_the_tolerance(box: tuple[float, ...], invalid: bool) -> None:
    assert box_rules.box_invalid(boxes((*box, 100, 80))).tolist() == [invalid]


@st.composite
def spans(draw: st.DrawFn) -> tuple[float, float, int]:
    """(start, length, limit) of a span that passes its ends by no more than the tolerance."""
    limit = draw(SIDES)
    ends = st.floats(-0.5, limit + 0.5) | st.sampled_from([0.0, float(limit), -0.5, limit + 0.5, limit + 1e-9])
    start, end = sorted((draw(ends), draw(ends)))
    return start, end - start, limit


@settings(max_examples=150)
@given(st.lists(st.tuples(spans(), spans()), min_size=1, max_size=5))
def test_a_snapped_box_is_inside_and_hardly_moved(
    rows: list[tuple[tuple[float, float, int], tuple[float, float, int]]],
) -> None:
    table = boxes(*((x, y, w, h, width, height) for (x, w, width), (y, h, height) in rows))
    invalid, snapped = box_rules.box_invalid(table), box_rules.snap_to_border(table)
    for number, ((x, w, width), (y, h, height)) in enumerate(rows):
        if invalid[number]:
            continue
        new = [float(side[number]) for side in (snapped.x, snapped.y, snapped.w, snapped.h)]
        assert min(new[:2]) >= 0
        assert new[0] + new[2] <= width
        assert new[1] + new[3] <= height
        if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
            assert new == [x, y, w, h]
        moved = (new[0] - x, new[1] - y, new[0] + new[2] - (x + w), new[1] + new[3] - (y + h))
        assert max(map(abs, moved)) <= 0.5 + 1e-9


@given(
    st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), max_size=5),
    st.sampled_from([(224, 16), (384, 16), (224, 14), (768, 32)]),
)
def test_small_agrees_with_fractions(rows: list[tuple[int, ...]], res_and_patch: tuple[int, int]) -> None:
    res, patch = res_and_patch
    table = boxes(*((0, 0, *row) for row in rows))
    resized = [(Fraction(w * res, width), Fraction(h * res, height)) for w, h, width, height in rows]
    by_area = [w * h < patch**2 for w, h in resized]
    by_side = [w < patch or h < patch for w, h in resized]
    assert box_rules.box_too_small(table, res, patch).tolist() == by_area
    assert box_rules.box_too_small(table, res, patch, "any_side").tolist() == by_side
    assert box_rules.resized_area(table, res).tolist() == pytest.approx([float(w * h) for w, h in resized])


def test_a_box_of_exactly_one_patch_is_kept() -> None:
    one_patch, less = (0, 0, 32, 16, 448, 224), (0, 0, 31, 16, 448, 224)
    for rule in ("area", "any_side"):
        assert box_rules.box_too_small(boxes(one_patch, less), 224, 16, rule).tolist() == [False, True]


def test_no_box_is_smaller_than_no_patch() -> None:
    assert not box_rules.box_too_small(boxes((0, 0, 1e-9, 1e-9, 2000, 2000)), 224, 0).any()


def test_the_two_readings_differ_for_a_long_thin_box() -> None:
    thin = boxes((0, 0, 200, 8, 224, 224))
    assert not box_rules.box_too_small(thin, rule="area").any()
    assert box_rules.box_too_small(thin, rule="any_side").all()


@given(st.lists(st.none() | st.tuples(*[st.none() | st.floats(allow_nan=False)] * 4), max_size=5))
def test_boxes_come_out_of_a_column_and_go_back(rows: list[tuple[float | None, ...] | None]) -> None:
    kind = pa.struct([(name, pa.float64()) for name in "xywh"])
    column = pa.array([row and dict(zip("xywh", row, strict=True)) for row in rows], kind)
    sides = np.ones(len(rows))
    found = box_rules.boxes_of(column, sides, sides)
    expected = [[math.nan] * 4 if row is None else [math.nan if v is None else v for v in row] for row in rows]
    np.testing.assert_array_equal(
        np.transpose([found.x, found.y, found.w, found.h]).reshape(-1, 4), expected or np.zeros((0, 4))
    )
    assert box_rules.box_column(found, kind).field("w").to_numpy(zero_copy_only=False).tolist() == pytest.approx(
        found.w.tolist(), nan_ok=True
    )
