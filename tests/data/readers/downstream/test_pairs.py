"""NLVR2, MaRVL, XVNLI and Winoground: which rows are examples, and what groups them. OVAD: attributes of boxes."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.sets.downstream import dropped, read, write_json, write_lines
from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.samples import Box


def pair(identifier: str, label: Any = "True", **values: Any) -> dict[str, Any]:
    return {
        "identifier": identifier,
        "sentence": "Two dogs.",
        "label": label,
        "left_url": "http://x/l%20.jpg?a=1",
        **values,
    }


def test_sentences_of_nlvr2_are_grouped_without_their_pair(tmp_path: Path) -> None:
    rows = [
        pair("train-1-0-2", directory=40),
        pair("train-1-3-2", "False", directory=40),
        pair("train-1-3-1", directory=7),
    ]
    options = {"set": "train", "left": "images/train/{directory}/{stem}-img0.png", "right": "{left_name}"}
    data = read("nlvr2", {"rows": write_lines(tmp_path / "t.json", rows)}, "train", **options)
    assert [one.group for one in data.examples] == ["train-1--2", "train-1--2", "train-1--1"]
    assert data.examples[0].media == ("images/train/40/train-1-0-img0.png", "l%20.jpg")


def test_bad_rows_of_nlvr2_are_named(tmp_path: Path) -> None:
    rows = [
        *(pair("dev-1-0-0"), pair("dev-1-0-0"), pair("dev-1"), pair("test1-1-0-0"), pair("dev-1-1-0", "maybe")),
        *("{", "[1]", pair("dev-1-2-0", sentence="")),
    ]
    data = read("nlvr2", {"rows": write_lines(tmp_path / "t.json", rows)}, set="dev")
    assert [one.example_id for one in data.examples] == ["dev-1-0-0"]
    assert dropped(data) == [
        ("1", "duplicate_id"),
        ("2", "malformed_row"),
        ("3", "other_set"),
        ("4", "malformed_row"),
        ("5", "malformed_json"),
        ("6", "malformed_json"),
        ("7", "empty_text"),
    ]
    assert data.dropped[4].reason.startswith("line 6: ")


def test_an_option_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    files = {"rows": write_lines(tmp_path / "t.json", [pair("dev-1-0-0")])}
    with pytest.raises(ConfigError, match=r"options of reader `nlvr2`.*\n.*set: Field required"):
        read("nlvr2", files)
    with pytest.raises(ConfigError, match=r"sets: unknown key; did you mean `set`"):
        read("nlvr2", files, set="dev", sets="dev")
    with pytest.raises(ConfigError, match=r"takes no file `row`"):
        read("nlvr2", files | {"row": files["rows"]}, set="dev")


def test_lists_of_pairs_know_booleans(tmp_path: Path) -> None:
    rows = [
        {"images": ["a.png", "b.png"], "sentence": "Two.", "label": True},
        {"images": ["a.png"], "sentence": "Two.", "label": "False"},
        {"images": ["a.png", "/etc/passwd"], "sentence": "Two.", "label": "False"},
    ]
    data = read("image_pair_list", {"rows": write_json(tmp_path / "t.json", rows)})
    assert [(one.example_id, one.answers) for one in data.examples] == [("0", ("True",))]
    assert dropped(data) == [("1", "malformed_row"), ("2", "outside_media_folder")]


def test_winoground_takes_two_images_and_two_captions(tmp_path: Path) -> None:
    row = {
        "id": 3,
        "image_0": "ex_3_img_0",
        "image_1": "ex_3_img_1",
        "caption_0": "a cat sees a dog",
        "caption_1": "a dog sees a cat",
        "tag": "Noun",
        "secondary_tag": "",
        "num_main_preds": 1,
        "collapsed_tag": "Object",
    }
    rows = [row, row | {"id": 4, "caption_1": None}, row]
    files = {
        "rows": write_lines(tmp_path / "e.jsonl", rows),
        "tags": write_json(tmp_path / "t.json", {"3": ["Unusual Text"]}),
    }
    data = read("winoground", files, media="images/{image}.png")
    [one] = data.examples
    assert one.media == ("images/ex_3_img_0.png", "images/ex_3_img_1.png")
    assert one.texts == ("a cat sees a dog", "a dog sees a cat")
    assert one.tags == ("Object", "Noun", "Unusual Text")
    assert dropped(data) == [("1", "malformed_row"), ("2", "duplicate_id")]


def ovad(**changes: Any) -> dict[str, Any]:
    box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0.0, 0.0, 50.0, 40.0], "att_vec": [1, 0, -1]}
    content = {
        "images": [{"id": 7, "file_name": "000000000007.jpg", "width": 50, "height": 40}],
        "categories": [{"id": 3, "name": "dog"}],
        "attributes": [
            {"id": 2, "name": "size:big/large", "freq_set": "tail"},
            {"id": 0, "name": "color:grey/gray", "freq_set": "head"},
            {"id": 1, "name": "color:red", "freq_set": "medium", "is_has_att": "has"},
        ],
        "annotations": [
            box,
            box | {"id": 2, "att_vec": [1, 0]},
            box | {"id": 3, "image_id": 8},
            box | {"id": 4, "category_id": 9},
            box | {"id": 5, "bbox": [0, 0, 60, 10]},
            box | {"id": 6, "att_vec": [1, 0, 2]},
        ],
    }
    return content | changes


def test_ovad_labels_stand_in_the_order_of_the_vectors(tmp_path: Path) -> None:
    data = read("ovad", {"annotations": write_json(tmp_path / "ovad2000.json", ovad())}, media="val2017/{file_name}")
    assert data.labels == ("color:grey/gray", "color:red", "size:big/large")
    assert data.label_tags == (("head",), ("medium", "has"), ("tail",))
    [one] = data.examples
    assert (one.example_id, one.texts, one.attributes, one.box) == ("1", ("dog",), (1, 0, -1), Box(0, 0, 50, 40))
    assert dropped(data) == [
        ("2", "malformed_row"),
        ("3", "unknown_image"),
        ("4", "unknown_category"),
        ("5", "box_outside_image"),
        ("6", "malformed_row"),
    ]


def test_ovad_without_sets_of_attributes_is_another_file(tmp_path: Path) -> None:
    path = write_json(tmp_path / "o.json", ovad(attributes=[{"id": 0, "name": "red", "freq_set": "common"}]))
    with pytest.raises(SourceUnavailable, match=r"not distinct names of head, medium or tail.*Expected ovad2000"):
        read("ovad", {"annotations": path})
