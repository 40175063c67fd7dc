"""Karpathy's file, COCO's caption files and the released models' lists: which rows are examples, and which are not."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.support.sets.downstream import dropped, read, write_json
from x2vlm.errors import SourceUnavailable


def image(number: int, split: str, captions: int = 5) -> dict[str, Any]:
    sentences = [{"raw": f"Caption {one} of {number}.\n", "sentid": 10 * number + one} for one in range(captions)]
    folder = "train2014" if split == "train" else "val2014"
    return {"cocoid": number, "filepath": folder, "filename": f"{number}.jpg", "split": split, "sentences": sentences}


@pytest.fixture
def karpathy(tmp_path: Path) -> dict[str, Path]:
    splits = [(1, "train"), (2, "restval"), (3, "val"), (4, "test"), (5, "test")]
    images = [image(number, split, 6 if number == 4 else 5) for number, split in splits]
    return {"annotations": write_json(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})}


def test_restval_joins_train_unless_it_is_left_out(karpathy: dict[str, Path]) -> None:
    assert [one.example_id for one in read("karpathy", karpathy, "train").examples] == ["1", "2"]
    left = read("karpathy", karpathy, "train", restval="left_out")
    assert [one.example_id for one in left.examples] == ["1"]
    assert left.examples[0].media == ("train2014/1.jpg",)


def test_captions_are_cut_to_five_or_all_there(karpathy: dict[str, Path]) -> None:
    cut, whole = (read("karpathy", karpathy, captions=one) for one in ("first_five", "all"))
    assert [len(one.texts) for one in cut.examples] == [5, 5]
    assert [len(one.texts) for one in whole.examples] == [6, 5]
    assert whole.examples[0].texts[5] == "Caption 5 of 4."
    assert [one.group for one in whole.examples] == ["4", "5"]


def test_a_split_that_is_not_there_names_those_that_are(karpathy: dict[str, Path]) -> None:
    with pytest.raises(SourceUnavailable, match=r"no image of split `dev`; splits: restval 1, test 2, train 1, val 1"):
        read("karpathy", karpathy, "dev")


def test_flickr30k_has_no_ids_of_coco_and_one_folder(tmp_path: Path) -> None:
    one = image(7, "test")
    del one["cocoid"], one["filepath"]
    path = write_json(tmp_path / "dataset_flickr30k.json", {"images": [one | {"imgid": 7}]})
    [example] = read("karpathy", {"annotations": path}).examples
    assert (example.example_id, example.media) == ("7", ("7.jpg",))
    [example] = read("karpathy", {"annotations": path}, media="flickr30k-images/{filename}").examples
    assert example.media == ("flickr30k-images/7.jpg",)


def test_bad_images_of_karpathys_file_are_named(tmp_path: Path) -> None:
    good = image(1, "test")
    bad = [copy.deepcopy(good) | {"cocoid": number} for number in range(2, 6)]
    bad[0]["sentences"] = []
    bad[1]["sentences"][1]["raw"] = " "
    bad[2]["filename"] = "../1.jpg"
    bad[3]["sentences"] = "text"
    images = [good, *bad, copy.deepcopy(good), "no image", {"cocoid": 9}]
    data = read("karpathy", {"annotations": write_json(tmp_path / "d.json", {"images": images})})
    assert [one.example_id for one in data.examples] == ["1", "3"]
    assert sorted(dropped(data)) == [
        ("1", "empty_caption"),
        ("2", "empty_caption"),
        ("3", "outside_media_folder"),
        ("4", "malformed_row"),
        ("5", "duplicate_id"),
        ("6", "malformed_row"),
        ("7", "malformed_row"),
    ]
    assert [drop.unit for drop in data.dropped if drop.source_row == "2"] == ["caption"]


def test_a_cut_off_file_names_the_byte(karpathy: dict[str, Path]) -> None:
    path = karpathy["annotations"]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceUnavailable, match=r"dataset_coco\.json: not valid JSON.*at byte \d+.*download it again"):
        read("karpathy", karpathy)


def test_coco_captions_go_by_image_and_orphans_are_counted(tmp_path: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (2, 1, 3)]
    captions = [(1, "a cat"), (2, "a dog"), (1, "the cat"), (9, "nobody"), (2, "")]
    annotations = [{"image_id": one, "id": at, "caption": text} for at, (one, text) in enumerate(captions)]
    path = write_json(tmp_path / "c.json", {"annotations": annotations, "images": images})
    data = read("coco_captions", {"annotations": path})
    assert [(one.example_id, one.texts) for one in data.examples] == [("2", ("a dog",)), ("1", ("a cat", "the cat"))]
    assert dropped(data) == [("9", "unknown_image"), ("2", "empty_caption"), ("3", "empty_caption")]


@pytest.mark.parametrize("missing", ["images", "annotations"])
def test_a_file_of_another_form_says_what_was_expected(tmp_path: Path, missing: str) -> None:
    content: dict[str, Any] = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": []}
    del content[missing]
    with pytest.raises(SourceUnavailable, match=rf"no list `{missing}`.*Expected captions_val2014\.json"):
        read("coco_captions", {"annotations": write_json(tmp_path / "c.json", content)})


def test_rows_of_a_training_list_stay_rows(tmp_path: Path) -> None:
    rows = [
        {"image": "train2014/a.jpg", "caption": "one", "image_id": 5},
        {"image": "train2014/a.jpg", "caption": "two", "image_id": 5},
        {"image": "train2014/b.jpg", "caption": ["three", "four"], "image_id": 6},
    ]
    data = read("caption_list", {"rows": write_json(tmp_path / "train.json", rows)}, "train")
    assert [(one.example_id, one.texts, one.group) for one in data.examples] == [
        ("0", ("one",), "5"),
        ("1", ("two",), "5"),
        ("2", ("three", "four"), "6"),
    ]


def test_a_list_of_images_finds_its_references_by_the_number_in_the_file_name(tmp_path: Path) -> None:
    rows = [{"image": "val2014/COCO_val2014_000000000042.jpg"}, {"image": "val2014/COCO_val2014_000000000043.jpg"}]
    gold = {"images": [{"id": 42}], "annotations": [{"image_id": 42, "id": 1, "caption": "A cat."}]}
    files = {"rows": write_json(tmp_path / "val.json", rows), "references": write_json(tmp_path / "gt.json", gold)}
    data = read("caption_list", files)
    assert [(one.example_id, one.texts) for one in data.examples] == [("42", ("A cat.",))]
    assert dropped(data) == [("1", "unknown_image")]


def test_names_of_fields_may_be_given(tmp_path: Path) -> None:
    rows = [{"video": "video7.mp4", "sentence": "a man cooks", "clip": 7}]
    options = {"media": "all/{video}", "text_key": "sentence", "id_key": "clip", "kind": "video"}
    [one] = read("caption_list", {"rows": write_json(tmp_path / "m.json", rows)}, **options).examples
    assert (one.media, one.kind, one.group, one.texts) == (("all/video7.mp4",), "video", "7", ("a man cooks",))
