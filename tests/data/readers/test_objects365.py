"""Objects365: the real record, names as published, and images that are no good."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.data.cards import load_card
from x2vlm.data.readers.annotated.objects365 import FIXED_NAMES, object_name
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Concept, Grain


def write(folder: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "images/v2/patch16/objects365_v2_00900001.jpg", "width": 9, "height": 8}],
        "annotations": [{"id": 5, "image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "Person"}],
    }
    path = folder / "zhiyuan_objv2_train.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_the_real_record(excerpts_dir: Path, tmp_path: Path) -> None:
    excerpt = excerpts_dir / "objects365" / "zhiyuan_objv2_train.excerpt.json"
    content = json.loads(excerpt.read_text())
    # The excerpt was cut before the categories: number 84 is made up here.
    path = write(tmp_path, **content, categories=[{"id": 84, "name": "Air Conditioner "}])
    [sample], drops = read("objects365", source("objects365", instances=path))
    assert (sample.source_row, sample.kind, drops) == ("420917", "image", [])
    assert sample.url == "http://objects365.invalid/patch8/objects365_v1_00420917.jpg"
    assert (sample.claimed_width, sample.claimed_height, sample.captions) == (769, 512, ())
    box = Box(491.3955078011, 88.1856689664, 35.65588379410002, 44.442382796800004)
    assert sample.concepts == (Concept(Grain.OBJECT, "Air Conditioner", box, (), "51"),)
    with pytest.raises(SourceUnavailable, match="no list called categories at the top level"):
        read("objects365", source(instances=excerpt))


@pytest.mark.parametrize(
    ("published", "meant"),
    [
        ("Dinning Table", {"Dining Table"}),
        ("Noddles", {"Noodles"}),
        ("Moniter/TV", {"Monitor", "TV"}),
        ("Bowl/Basin", {"Bowl", "Basin"}),
        ("Tape Measur/ Ruler", {"Tape Measure", "Ruler"}),
        ("Person", {"Person"}),
        ("/", {"/"}),
    ],
)
def test_names_are_spelt_right_and_every_alternative_is_read(published: str, meant: set[str]) -> None:
    assert {object_name(published, str(number)) for number in range(20)} == meant
    assert object_name(published, "3") == object_name(published, "3")


def test_no_fixed_name_needs_fixing() -> None:
    assert not set(FIXED_NAMES) & set(FIXED_NAMES.values())


def test_bad_images_and_boxes(tmp_path: Path) -> None:
    image = {"id": 7, "file_name": "images/v1/patch8/a b.jpg", "width": 9, "height": 8}
    box = {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    path = write(
        tmp_path,
        images=[image, image | {"id": 8, "file_name": ""}, image, image | {"id": 9, "url": "http://mirror/9.jpg"}],
        annotations=[
            box | {"id": 1},
            box | {"id": 2, "iscrowd": 1},
            box | {"id": 3, "category_id": 400},
            box | {"id": 4, "bbox": "wide"},
            box | {"id": 5, "image_id": 8},
            box | {"id": 6, "image_id": 10},
            box | {"id": 7, "image_id": 9},
        ],
    )
    samples, drops = read("objects365", source(instances=path))
    assert [(sample.source_row, sample.url) for sample in samples] == [
        ("7", "http://objects365.invalid/patch8/a%20b.jpg"),
        ("9", "http://mirror/9.jpg"),
    ]
    assert [concept.annotation_id for concept in samples[0].concepts] == ["1"]
    assert rules(drops) == [
        ("7", "row", "", "duplicate_row"),
        ("10", "concept", "6", "unknown_image"),
        ("7", "concept", "2", "iscrowd"),
        ("7", "concept", "3", "unknown_label"),
        ("7", "concept", "4", "malformed_box"),
        ("8", "row", "", "missing_url"),
        ("8", "concept", "5", "row_dropped"),
    ]


def test_the_card_names_broken_images_by_row(project_root: Path, tmp_path: Path) -> None:
    card = load_card(project_root / "datasets" / "pretrain" / "objects365.yaml")
    numbers = [908726, 320532, 320534, 2024631, 1118660, 509398]
    images = [{"id": number, "file_name": f"images/v1/patch1/objects365_v1_{number:08d}.jpg"} for number in numbers]
    samples, _ = read("objects365", source(instances=write(tmp_path, images=images, annotations=[])))
    assert [sample.source_row for sample in samples] == list(card.known_broken)
