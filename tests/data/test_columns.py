"""Nested columns taken apart and put together again, and descriptions of concepts, against plain lists."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from x2vlm.data.columns import items_of
from x2vlm.data.text.concept_texts import concept_texts
from x2vlm.data.text.texts import concept_text
from x2vlm.samples import CONCEPT_TYPE, Box, Concept, Grain

LISTS = st.lists(st.none() | st.lists(st.integers(0, 9), max_size=4), max_size=8)


@given(LISTS, st.data(), st.integers(1, 3))
def test_items_are_selected_and_grouped_again(lists: list[list[int] | None], data: st.DataObject, chunks: int) -> None:
    kind = pa.list_(pa.struct([("n", pa.int64())]))
    rows = [None if items is None else [{"n": number} for number in items] for items in lists]
    pieces = [pa.array(rows[start::chunks], kind) for start in range(chunks)]
    in_order = [items for start in range(chunks) for items in rows[start::chunks]]
    items = items_of(pa.table({"x": pa.chunked_array(pieces, kind)}), "x")
    flat = [(row, place, item) for row, some in enumerate(in_order) for place, item in enumerate(some or [])]
    assert list(zip(items.row, items.position, items.values.to_pylist(), strict=True)) == flat
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=len(flat), max_size=len(flat))), dtype=bool)
    expected: list[list[object]] = [[] for _ in in_order]
    for (row, _, item), kept in zip(flat, keep, strict=True):
        if kept:
            expected[row].append(item)
    assert items.select(keep).regroup(len(in_order)).to_pylist() == expected


def test_a_list_hidden_under_a_null_is_no_item() -> None:
    offsets, values = pa.array([0, 1, 3], pa.int32()), pa.StructArray.from_arrays([pa.array([1, 2, 3])], ["n"])
    lists = pa.ListArray.from_arrays(offsets, values, mask=pa.array([False, True]))
    items = items_of(pa.table({"x": lists}), "x")
    assert (items.row.tolist(), items.values.to_pylist()) == ([0], [{"n": 1}])


ATTRIBUTES = st.lists(st.sampled_from(["green", "tall", "made of wood", "made of tin", "red"]), max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["clock", "man", ""]), ATTRIBUTES), max_size=6))
def test_descriptions_are_those_that_training_reads(things: list[tuple[str, list[str]]]) -> None:
    concepts = [Concept(Grain.OBJECT, text, Box(0, 0, 1, 1), tuple(attributes)) for text, attributes in things]
    rows = [{"grain": "object", "text": text, "attributes": attributes} for text, attributes in things]
    assert concept_texts(pa.array(rows, CONCEPT_TYPE)).to_pylist() == [concept_text(each) for each in concepts]


def test_descriptions_without_a_list_of_attributes() -> None:
    rows = [{"text": "clock", "attributes": None}, {"text": "tower", "attributes": ["tall"]}]
    assert concept_texts(pa.array(rows, CONCEPT_TYPE)).to_pylist() == ["clock", "tall tower"]
