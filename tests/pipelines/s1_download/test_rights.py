"""Counting licences: nothing is lost, and a source whose column is free text makes no large manifest."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pipelines.s1_download.rights import MAX_LICENCES, OTHER, UNKNOWN, licence_counts


def test_the_most_frequent_are_named_and_the_rest_is_counted_together() -> None:
    counts = {f"licence {number:03d}": 1000 - number for number in range(100)} | {"": 5}
    found = licence_counts(counts)
    assert next(iter(found)) == "licence 000"
    assert len(found) == MAX_LICENCES + 1
    assert found[OTHER] == sum(counts.values()) - sum(1000 - number for number in range(MAX_LICENCES))
    assert licence_counts({"": 2, "CC0": 2}) == {UNKNOWN: 2, "CC0": 2}


@given(st.lists(st.dictionaries(st.sampled_from([f"l{n}" for n in range(60)]), st.integers(1, 9)), max_size=6))
def test_parts_add_up(parts: list[dict[str, int]]) -> None:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(licence_counts(part))
    assert sum(licence_counts(total).values()) == sum(sum(part.values()) for part in parts)
