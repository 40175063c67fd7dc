"""RefCOCO: expressions on the boxes of their annotations, splits kept apart, pickles refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Concept, Grain


def ref(**changes: Any) -> dict[str, Any]:
    record = {
        "sent_ids": [0],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": "train",
        "sentences": [
            {"tokens": ["the", "lady"], "raw": "THE LADY", "sent_id": 0, "sent": "the lady"},
            {"tokens": ["her"], "raw": "her", "sent_id": 1, "sent": "her"},
        ],
        "category_id": 1,
    }
    return record | changes


def files(folder: Path, refs: Any, **changes: Any) -> dict[str, Path]:
    image = {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg", "width": 640, "height": 427, "license": 1}
    instances = {
        "images": [image],
        "annotations": [{"id": 1719310, "image_id": 581857, "bbox": [103.93, 299.99, 134.22, 177.42], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "refs.json").write_text(json.dumps(refs))
    (folder / "instances.json").write_text(json.dumps(instances | changes))
    return {"refs": folder / "refs.json", "instances": folder / "instances.json"}


def test_expressions_become_regions_of_the_image_not_of_the_file_a_ref_names(tmp_path: Path) -> None:
    [sample], drops = read("refcoco", source("refcoco", **files(tmp_path, [ref()])))
    assert (sample.source_row, drops) == ("581857", [])
    assert sample.url == "http://images.cocodataset.org/train2014/COCO_train2014_000000581857.jpg"
    assert (sample.claimed_width, sample.claimed_height, sample.captions) == (640, 427, ())
    box = Box(103.93, 299.99, 134.22, 177.42)
    assert sample.concepts == (
        Concept(Grain.REGION, "the lady", box, (), "0"),
        Concept(Grain.REGION, "her", box, (), "1"),
    )


@pytest.mark.parametrize("split", ["val", "testA", "testB", "test", None])
def test_other_splits_never_get_into_training(tmp_path: Path, split: str | None) -> None:
    [sample], drops = read("refcoco", source(**files(tmp_path, [ref(split=split)])))
    assert sample.concepts == ()
    assert rules(drops) == [
        ("581857", "concept", "0", "other_split"),
        ("581857", "concept", "1", "other_split"),
    ]


def test_expressions_that_are_no_good(tmp_path: Path) -> None:
    def one(sent_id: int, sent: Any = "a dog", **changes: Any) -> dict[str, Any]:
        return ref(sentences=[{"sent_id": sent_id, "sent": sent}], **changes)

    refs = [one(2, " "), one(3, ann_id=9), one(4, ann_id=6), one(5, image_id=7), one(6, image_id=8), one(7)]
    refs.append(ref(sentences=["text"]))
    changes = {
        "images": [
            {"id": 581857, "file_name": "COCO_train2014_000000581857.jpg"},
            {"id": 8, "file_name": "8.jpg"},
        ],
        "annotations": [
            {"id": 1719310, "image_id": 581857, "bbox": [1, 2, 3, 4]},
            {"id": 6, "image_id": 581857, "bbox": [1, 2]},
            {"id": 9, "image_id": 99, "bbox": [1, 2, 3, 4]},
        ],
    }
    [sample], drops = read("refcoco", source(**files(tmp_path, refs, **changes)))
    assert [concept.annotation_id for concept in sample.concepts] == ["7"]
    assert rules(drops) == [
        ("7", "concept", "5", "unknown_image"),
        ("581857", "concept", "2", "empty_text"),
        ("581857", "concept", "3", "unknown_annotation"),
        ("581857", "concept", "4", "malformed_box"),
        ("581857", "concept", "6.0", "empty_text"),
        ("8", "row", "", "missing_url"),
        ("8", "concept", "6", "row_dropped"),
    ]


@pytest.mark.parametrize(
    ("name", "data"),
    [("refs(unc).p", b"[]"), ("refs.json", b"\x80\x04cos\nsystem\n"), ("refs.json", b"(lp0\ncos\nsystem\n.")],
)
def test_a_pickle_is_refused_and_never_loaded(tmp_path: Path, name: str, data: bytes) -> None:
    given = files(tmp_path, [])
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceUnavailable) as error:
        read("refcoco", source(**(given | {"refs": tmp_path / name})))
    assert str(error.value).startswith(
        f"card test_card: refs file {name}: this is a pickle, which is never loaded. "
        "A pickle runs code when it is loaded. Convert it once in a sandbox"
    )


def test_a_result_file_is_not_a_refs_file(excerpts_dir: Path, tmp_path: Path) -> None:
    path = excerpts_dir / "refcoco" / "sample_expressions_testA.json"
    given = files(tmp_path, []) | {"refs": path}
    with pytest.raises(SourceUnavailable, match=r"not a list of objects at the top level\. Expected refs.json"):
        read("refcoco", source(**given))
    with pytest.raises(SourceUnavailable, match="record 0 is not an object with a list of sentences"):
        read("refcoco", source(**files(tmp_path, [{"ref_id": 3, "sent": "a dog"}])))
