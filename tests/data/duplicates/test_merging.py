"""What a keeper takes over from its duplicates."""

from typing import Any

import pytest

from x2vlm.data.duplicates.merging import merge_captions, merge_concepts
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box, Caption, Concept, Grain, Sample


def sample(key: str, source: str = "cc3m", **values: Any) -> Sample:
    fixed = {"key": key, "source": source, "source_row": f"row {key}", "split": "train", "kind": "image", "url": "u"}
    return Sample(**(fixed | values))


def concept(text: str, x: float = 0.0, annotation_id: str = "1", **values: Any) -> Concept:
    return Concept(Grain.OBJECT, text, Box(x, 0.0, 9.0, 9.0), annotation_id=annotation_id, **values)


def texts(merged: Sample) -> list[str]:
    return [caption.text for caption in merged.captions]


def test_captions_come_behind_the_keepers_own_and_each_once() -> None:
    keeper = sample("k", captions=(Caption("A dog."), Caption("A dog.")))
    first = sample("a", captions=(Caption("a  DOG."), Caption("Ein Hund.", "de", "alt")))
    second = sample("b", captions=(Caption("ein hund."), Caption("A cat.")))
    merged = merge_captions(keeper, [second, first])
    assert texts(merged) == ["A dog.", "A dog.", "Ein Hund.", "A cat."]
    assert merged.captions[2] == Caption("Ein Hund.", "de", "alt")
    assert merged == merge_captions(keeper, [first, second])
    assert merged.key == "k"
    assert merge_captions(keeper, []) == keeper


def test_concepts_come_only_from_the_same_pixels() -> None:
    keeper = sample("k", concepts=(concept("dog"),))
    same = sample("a", "refcoco", concepts=(concept("dog", annotation_id="7"), concept("left dog", annotation_id="1")))
    scaled = sample("b", concepts=(concept("half dog"),))
    merged = merge_concepts(keeper, [(scaled, "phash"), (same, "pixels")])
    assert [(one.text, one.annotation_id) for one in merged.concepts] == [("dog", "1"), ("left dog", "refcoco:row a:1")]
    assert merge_concepts(keeper, [(same, "sha256")]).concepts == merged.concepts
    assert merge_concepts(keeper, [(same, "embedding")]) == keeper


def test_concepts_differ_by_place_grain_and_attributes() -> None:
    keeper = sample("k", concepts=(concept("dog"),))
    others = (concept("dog", 1.0, "2"), concept("dog", 0.0, "3", attributes=("red",)), concept("dog", 0.0, "4"))
    merged = merge_concepts(keeper, [(sample("a", concepts=others), "sha256")])
    assert [one.annotation_id for one in merged.concepts] == ["1", "2", "3"]


def test_an_image_takes_nothing_from_a_clip() -> None:
    with pytest.raises(InvalidSample, match="another_kind"):
        merge_captions(sample("k"), [sample("a", kind="video")])
    with pytest.raises(InvalidSample, match="another_kind"):
        merge_concepts(sample("k"), [(sample("a", kind="video"), "sha256")])
