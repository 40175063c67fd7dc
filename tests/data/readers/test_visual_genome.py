"""Visual Genome: real records in both spellings, and records that are no good."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Concept, Grain

IMAGE = {"image_id": 1, "url": "http://x/1.jpg", "width": 800, "height": 600, "coco_id": None, "flickr_id": None}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content))
    return path


def test_real_regions_and_attributes(excerpts_dir: Path, tmp_path: Path) -> None:
    folder = excerpts_dir / "visual_genome"
    files = {"regions": folder / "region_descriptions.json", "attributes": folder / "attributes.json"}
    [sample], drops = read("visual_genome", source(images=write(tmp_path, "image_data.json", [IMAGE]), **files))
    assert drops == []
    assert (sample.source_row, sample.captions, sample.claimed_width, sample.claimed_height) == ("1", (), 800, 600)
    assert sample.concepts == (
        Concept(Grain.REGION, "the clock is green in colour", Box(421, 57, 82, 139), (), "1382"),
        Concept(Grain.REGION, "shade is along the street", Box(194, 372, 182, 109), (), "1383"),
        Concept(Grain.REGION, "man is wearing sneakers", Box(241, 491, 61, 30), (), "1384"),
        Concept(Grain.OBJECT, "clock", Box(421, 91, 79, 339), ("green", "tall"), "1058498"),
        Concept(Grain.OBJECT, "street", Box(77, 328, 714, 262), ("sidewalk",), "5046"),
        Concept(Grain.OBJECT, "shade", Box(119, 338, 274, 192), (), "5045"),
        Concept(Grain.OBJECT, "man", Box(238, 249, 60, 262), (), "1058529"),
        Concept(Grain.OBJECT, "sneakers", Box(243, 489, 52, 26), ("grey",), "5048"),
    )


def test_other_releases_spell_keys_differently(tmp_path: Path) -> None:
    regions = [{"image_id": 1, "regions": [{"id": 7, "phrase": "a dog", "x": 1, "y": 2, "w": 3, "h": 4}]}]
    objects = [{"id": 1, "attributes": [{"object_id": 8, "name": "dog", "x": 1, "y": 2, "width": 3, "height": 4}]}]
    files = {
        "images": write(tmp_path, "images.json", [{"id": 1, "url": "http://x/1.jpg"}]),
        "regions": write(tmp_path, "regions.json", regions),
        "attributes": write(tmp_path, "attributes.json", objects),
    }
    [sample], drops = read("visual_genome", source(**files))
    box = Box(1, 2, 3, 4)
    assert sample.concepts == (Concept(Grain.REGION, "a dog", box, (), "7"), Concept(Grain.OBJECT, "dog", box, (), "8"))
    assert (sample.claimed_width, drops) == (None, [])


def test_bad_records_are_dropped_one_by_one(tmp_path: Path) -> None:
    good = {"region_id": 1, "image_id": 1, "phrase": "a dog", "x": 1, "y": 2, "width": 3, "height": 4}
    regions = [
        {"id": 1, "regions": [good, good | {"region_id": 2, "phrase": " "}, good | {"region_id": 3, "width": None}]},
        {"id": 2, "regions": [good | {"region_id": 4}]},
        {"id": 9, "regions": [good | {"region_id": 5}]},
    ]
    objects = [{"image_id": 1, "attributes": [{"object_id": 6, "names": [], "x": 1, "y": 1, "w": 1, "h": 1}]}]
    files = {
        "images": write(tmp_path, "images.json", [IMAGE, IMAGE | {"image_id": 2, "url": None}, IMAGE, {"url": "u"}]),
        "regions": write(tmp_path, "regions.json", regions),
        "attributes": write(tmp_path, "attributes.json", objects),
    }
    samples, drops = read("visual_genome", source(**files))
    assert [[concept.annotation_id for concept in sample.concepts] for sample in samples] == [["1"]]
    assert rules(drops) == [
        ("1", "row", "", "duplicate_row"),
        ("images[3]", "row", "", "malformed_row"),
        ("9", "concept", "5", "unknown_image"),
        ("1", "concept", "2", "empty_text"),
        ("1", "concept", "3", "malformed_box"),
        ("1", "concept", "6", "empty_text"),
        ("2", "row", "", "missing_url"),
        ("2", "concept", "4", "row_dropped"),
    ]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"regions": []}, "not a list of objects at the top level"),
        ([{"id": 1, "objects": []}], "record 0 has no list called regions"),
        ([3], "not a list of objects"),
    ],
)
def test_a_file_of_another_kind(tmp_path: Path, regions: Any, message: str) -> None:
    files = {"images": write(tmp_path, "images.json", [IMAGE]), "regions": write(tmp_path, "regions.json", regions)}
    with pytest.raises(SourceUnavailable, match=f"card test_card: regions file regions.json: {message}"):
        read("visual_genome", source(**files))


def test_missing_roles_are_named(tmp_path: Path) -> None:
    images = write(tmp_path, "images.json", [IMAGE])
    with pytest.raises(SourceUnavailable, match=r"no file for role `images` \(there are: none\)"):
        read("visual_genome", source())
    with pytest.raises(SourceUnavailable, match="needs a file for role `regions` or `attributes`"):
        read("visual_genome", source(images=images))


def test_real_relationships_and_objects(excerpts_dir: Path, tmp_path: Path) -> None:
    folder = excerpts_dir / "visual_genome"
    files = {
        "images": write(tmp_path, "image_data.json", [IMAGE]),
        "objects": folder / "objects.json",
        "relationships": folder / "relationships.json",
    }
    [sample], drops = read("visual_genome", source(**files))
    assert drops == []
    assert sample.concepts == (
        Concept(Grain.OBJECT, "clock", Box(421, 91, 79, 339), (), "1058498"),
        Concept(Grain.REGION, "shade on sidewalk", Box(78, 308, 722, 290), (), "rel:15927"),
        Concept(Grain.REGION, "bikes near tree", Box(249, 0, 176, 360), (), "rel:3186260"),
    )


def test_objects_that_attributes_hold_too_are_dropped(excerpts_dir: Path, tmp_path: Path) -> None:
    folder = excerpts_dir / "visual_genome"
    files = {
        "images": write(tmp_path, "image_data.json", [IMAGE]),
        "attributes": folder / "attributes.json",
        "objects": folder / "objects.json",
    }
    [sample], drops = read("visual_genome", source(**files))
    assert [concept.text for concept in sample.concepts] == ["clock", "street", "shade", "man", "sneakers"]
    assert sample.concepts[0].attributes == ("green", "tall")
    assert rules(drops) == [("1", "concept", "1058498", "duplicate_annotation")]


def test_relationships_with_missing_parts(tmp_path: Path) -> None:
    end = {"name": "dog", "x": 1, "y": 2, "w": 3, "h": 4}
    good = {"relationship_id": 1, "predicate": "bites", "subject": end, "object": end | {"names": ["cat"], "x": 5}}
    bad: list[Any] = [
        good | {"relationship_id": 2, "predicate": " "},
        good | {"relationship_id": 3, "object": end | {"name": None}},
        good | {"relationship_id": 4, "subject": end | {"h": None}},
        good | {"relationship_id": 5, "subject": 7},
        "bites",
    ]
    content = [{"image_id": 1, "relationships": [good, *bad]}, {"image_id": 2, "relationships": [good]}]
    files = {
        "images": write(tmp_path, "images.json", [IMAGE]),
        "relationships": write(tmp_path, "relationships.json", content),
    }
    [sample], drops = read("visual_genome", source(**files))
    assert sample.concepts == (Concept(Grain.REGION, "dog bites cat", Box(1, 2, 7, 4), (), "rel:1"),)
    assert rules(drops) == [
        ("1", "concept", "", "malformed_record"),
        ("2", "concept", "rel:1", "unknown_image"),
        ("1", "concept", "rel:2", "empty_text"),
        ("1", "concept", "rel:3", "empty_text"),
        ("1", "concept", "rel:4", "malformed_box"),
        ("1", "concept", "rel:5", "empty_text"),
    ]


def test_truncated_regions_say_where(tmp_path: Path) -> None:
    path = tmp_path / "regions.json"
    path.write_text('[{"id": 1, "regions": [{"region_id": 1')
    with pytest.raises(SourceUnavailable, match=r"regions file regions.json: not valid JSON: .* at byte 38\."):
        read("visual_genome", source(images=write(tmp_path, "images.json", [IMAGE]), regions=path))
