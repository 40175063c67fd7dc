"""COCO: real records with hand-written expectations, and everything that can be wrong with such a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Caption, Concept, Grain, sample_key


def test_real_train_records(excerpts_dir: Path) -> None:
    folder = excerpts_dir / "coco" / "annotations"
    files = {"captions": folder / "captions_train2017.json", "instances": folder / "instances_train2017.json"}
    samples, drops = read("coco", source("coco", **files))
    assert len(samples) == 27
    assert sum(len(sample.captions) for sample in samples) == 135
    assert sum(len(sample.concepts) for sample in samples) == 278
    assert {drop.rule for drop in drops} == {"iscrowd"}
    assert len(drops) == 4
    first = samples[0]
    assert (first.source_row, first.key) == ("790", sample_key("coco", "790"))
    assert first.url == "http://images.cocodataset.org/train2017/000000000790.jpg"
    assert (first.claimed_width, first.claimed_height) == (640, 422)
    assert first.licence == "http://creativecommons.org/licenses/by/2.0/"
    assert first.captions[0] == Caption("a family is sitting down at a table to have cake", "en", "human")
    assert first.concepts[0] == Concept(Grain.OBJECT, "dog", Box(509.63, 345.38, 102.1, 72.32), (), "11434")


def test_real_captions_without_boxes(excerpts_dir: Path) -> None:
    captions = excerpts_dir / "coco" / "annotations" / "captions_val2017.json"
    samples, drops = read("coco", source(captions=captions))
    assert (len(samples), drops) == (101, [])
    assert samples[0].captions[0].text == "A big burly grizzly bear is show with grass in the background."
    assert samples[0].concepts == ()


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def instances(**changes: Any) -> dict[str, Any]:
    content = {
        "images": [{"id": 1, "coco_url": "http://x/1.jpg", "width": 10, "height": 8, "license": 4}],
        "licenses": [{"id": 4, "name": "Attribution License", "url": "http:\\/\\/cc\\/by"}],
        "categories": [{"id": 18, "name": " dog ", "supercategory": "animal"}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4.5], "iscrowd": 0}],
    }
    return content | changes


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 5, "image_id": 1, "category_id": 18, "bbox": [1, 2, 3, 4], "iscrowd": 0} | changes


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ({"iscrowd": 1, "segmentation": {"counts": [1], "size": [8, 10]}}, "iscrowd"),
        ({"category_id": 99}, "unknown_label"),
        ({"category_id": None}, "unknown_label"),
        ({"bbox": [1, 2, 3]}, "malformed_box"),
        ({"bbox": [1, 2, 3, "wide"]}, "malformed_box"),
        ({"bbox": [1, 2, 3, float("nan")]}, "malformed_box"),
        ({"bbox": None}, "malformed_box"),
    ],
)
def test_a_bad_box_is_dropped_and_its_neighbour_kept(tmp_path: Path, bad: dict[str, Any], rule: str) -> None:
    content = instances(annotations=[annotation(id=5, **bad), annotation(id=6)])
    samples, drops = read("coco", source(instances=write(tmp_path, "i.json", content)))
    assert [concept.annotation_id for concept in samples[0].concepts] == ["6"]
    assert rules(drops) == [("1", "concept", "5", rule)]


def test_values_outside_the_image_are_not_for_the_reader_to_judge(tmp_path: Path) -> None:
    content = instances(annotations=[annotation(bbox=[-900, 2, 0, 4000])])
    [sample], drops = read("coco", source(instances=write(tmp_path, "i.json", content)))
    assert (sample.concepts[0].box, drops) == (Box(-900, 2, 0, 4000), [])


def test_annotations_of_unknown_images_and_bad_images(tmp_path: Path) -> None:
    images = [
        {"id": 1, "coco_url": "http://x/1.jpg"},
        {"id": 2, "coco_url": ""},
        {"id": 1, "coco_url": "http://x/again.jpg"},
        {"coco_url": "http://x/3.jpg"},
        {"id": 4, "flickr_url": "http://flickr/4.jpg"},
    ]
    captions = {
        "images": images,
        "annotations": [
            {"id": 1, "image_id": 1, "caption": "  two \n dogs "},
            {"id": 2, "image_id": 2, "caption": "lost with its image"},
            {"id": 3, "image_id": 9, "caption": "nobody's"},
            {"id": 4, "image_id": 4, "caption": " "},
        ],
    }
    boxes = instances(annotations=[annotation(id=7, image_id=2), annotation(id=8, image_id=9)])
    files = {"captions": write(tmp_path, "c.json", captions), "instances": write(tmp_path, "i.json", boxes)}
    samples, drops = read("coco", source(**files))
    assert [(sample.source_row, [caption.text for caption in sample.captions]) for sample in samples] == [
        ("1", ["two dogs"]),
        ("4", []),
    ]
    assert rules(drops) == [
        ("1", "row", "", "duplicate_row"),
        ("captions.images[3]", "row", "", "malformed_row"),
        ("9", "caption", "3", "unknown_image"),
        ("9", "concept", "8", "unknown_image"),
        ("2", "row", "", "missing_url"),
        ("2", "caption", "2", "row_dropped"),
        ("2", "concept", "7", "row_dropped"),
        ("4", "caption", "4", "empty_caption"),
    ]


def test_licences_lose_stray_backslashes(tmp_path: Path) -> None:
    [sample], _ = read("coco", source(instances=write(tmp_path, "i.json", instances())))
    assert sample.licence == "http://cc/by"
    assert sample.concepts[0].text == "dog"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"images": [',
            "instances file i.json: not valid JSON: expected a value, found the end of the file at byte 12",
        ),
        ("[]", "not a JSON object at the top level"),
        ('{"images": [], "annotations": []}', "no list called categories at the top level"),
        ('{"images": [3], "annotations": [], "categories": []}', r"images\[0\] is not an object"),
    ],
)
def test_a_file_that_is_not_coco(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "i.json"
    path.write_text(text)
    with pytest.raises(SourceUnavailable, match=f"card test_card: .*{message}"):
        read("coco", source(instances=path))


def test_missing_files_and_roles_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="COCO needs a file for role `captions` or `instances`"):
        read("coco", source())
    with pytest.raises(SourceUnavailable, match=r"card test_card: captions file gone.json is missing"):
        read("coco", source(captions=tmp_path / "gone.json"))
