"""What readers and the download stage do with boxes, one by one."""

from hypothesis import given
from hypothesis import strategies as st

from x2vlm.data import boxes
from x2vlm.samples import Box, Concept, Grain, Sample

SIDES = st.integers(1, 2000)
COORDINATES = st.integers(-50, 2100)


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
