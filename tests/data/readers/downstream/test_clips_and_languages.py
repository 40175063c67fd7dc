"""MSRVTT with both training lists; Multi30K, COCO in three languages, WIT and xFlickrCO."""

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.support.sets.downstream import dropped, read, write_gzip, write_json, write_lines
from x2vlm.errors import SourceUnavailable


@pytest.fixture
def msrvtt(tmp_path: Path) -> dict[str, Path]:
    splits = ["train", "train", "validate", "test", "test"]
    videos = [{"video_id": f"video{number}", "split": split} for number, split in enumerate(splits)]
    sentences = [
        {"video_id": f"video{n}", "caption": f"text {k} of {n}", "sen_id": n} for n in range(5) for k in (0, 1)
    ]
    test = tmp_path / "MSRVTT_JSFUSION_test.csv"
    test.write_text("key,vid_key,video_id,sentence\nret0,msr4,video4,a man cooks\n")
    data = write_json(tmp_path / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    return {"data": data, "test": test}


def test_the_training_list_is_recorded_in_every_example(msrvtt: dict[str, Path]) -> None:
    nine, seven = (read("msrvtt", msrvtt, "train", training=one) for one in ("9k", "7k"))
    assert [one.example_id for one in nine.examples] == ["video0", "video1", "video2", "video3"]
    assert [one.example_id for one in seven.examples] == ["video0", "video1", "video2"]
    assert {one.tags for one in nine.examples} == {("train-9k",)}
    assert {one.tags for one in seven.examples} == {("train-7k",)}
    assert nine.examples[0].texts == ("text 0 of 0", "text 1 of 0")
    assert (nine.examples[0].media, nine.examples[0].kind) == (("video0.mp4",), "video")


def test_the_test_is_the_jsfusion_list_or_the_official_split(msrvtt: dict[str, Path]) -> None:
    [one] = read("msrvtt", msrvtt).examples
    assert (one.example_id, one.texts) == ("video4", ("a man cooks",))
    assert [one.example_id for one in read("msrvtt", msrvtt, test="official").examples] == ["video3", "video4"]
    assert [one.example_id for one in read("msrvtt", msrvtt, "val").examples] == ["video2"]


def test_a_list_of_ones_own_is_taken_and_unknown_clips_are_counted(msrvtt: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("video_id\nvideo1\nvideo99\n")
    data = read("msrvtt", msrvtt | {"training": own}, "train")
    assert [one.example_id for one in data.examples] == ["video1"]
    assert [rule for _, rule in dropped(data)] == ["unknown_video"]
    without = {"data": msrvtt["data"]}
    with pytest.raises(SourceUnavailable, match=r"the 9k clips are those that MSRVTT_JSFUSION_test\.csv does not name"):
        read("msrvtt", without, "train")


def multi30k(folder: Path, **lines: list[str]) -> dict[str, Path]:
    files = {"images": folder / "images.txt"}
    files["images"].write_text("1.jpg\n2.jpg#0\n")
    return files | {role.replace("_", "."): write_gzip(folder / f"{role}.gz", one) for role, one in lines.items()}


def test_lines_of_multi30k_are_about_the_images_in_their_order(tmp_path: Path) -> None:
    files = multi30k(tmp_path, en_1=["a dog", "a cat"], en_2=["the dog", ""], de_1=["ein Hund", "eine Katze"])
    data = read("multi30k", files, media="flickr30k-images/{image}")
    assert [(one.example_id, one.texts, one.group, one.language) for one in data.examples] == [
        ("1.jpg", ("a dog", "the dog"), "1.jpg", "en"),
        ("2.jpg", ("a cat",), "2.jpg", "en"),
        ("de:1.jpg", ("ein Hund",), "1.jpg", "de"),
        ("de:2.jpg", ("eine Katze",), "2.jpg", "de"),
    ]
    assert dropped(data) == [("2.jpg", "empty_caption")]


def test_a_file_of_another_split_has_another_number_of_lines(tmp_path: Path) -> None:
    files = multi30k(tmp_path, en_1=["a dog", "a cat"], de_1=["ein Hund"])
    with pytest.raises(SourceUnavailable, match=r"de\.1 file de_1\.gz: 1 lines, and 2 images.*line n is about image n"):
        read("multi30k", files)


def test_a_cut_off_gzip_file_is_named(tmp_path: Path) -> None:
    files = multi30k(tmp_path, en_1=["a dog", "a cat"])
    files["en.1"].write_bytes(files["en.1"].read_bytes()[:-6])
    with pytest.raises(SourceUnavailable, match=r"en_1\.gz: not readable after line .*download it again"):
        read("multi30k", files)


def test_files_of_three_forms_make_one_split(tmp_path: Path) -> None:
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "犬"}]}
    sentences = [{"raw": f"text {number}"} for number in range(6)]
    karpathy = {"images": [{"split": "test", "cocoid": 1, "image": "1.jpg", "sentences": sentences}]}
    files = {
        "zh": write_json(tmp_path / "zh.json", [{"image": "1.jpg", "caption": ["狗", "一只狗"], "image_id": 1}]),
        "ja": write_json(tmp_path / "ja.json", coco),
        "en": write_json(tmp_path / "en.json", karpathy),
    }
    data = read("caption_files", files)
    assert [(one.example_id, len(one.texts), one.language, one.group) for one in data.examples] == [
        ("zh:0", 2, "zh", "1"),
        ("ja:1", 1, "ja", "1"),
        ("1", 5, "en", "1"),
    ]
    with pytest.raises(SourceUnavailable, match="1 images, and the protocol `5k` has 5000"):
        read("caption_files", files, protocol="5k")


def wit(number: int, **values: Any) -> dict[str, Any]:
    row = {"image_url": f"http://x/{number}.jpg", "caption_reference_description": f"text {number}", "language": "en"}
    return row | {"wit_ix": "wit-test_1"} | values


def test_wit_groups_equal_bytes_and_holds_them(tmp_path: Path) -> None:
    content = base64.b64encode(b"pixels").decode()
    rows = [
        *(wit(0, image_content=content), wit(1, image_content=content), wit(2), wit(2)),
        *(wit(3, image_content="!!"), wit(4, caption_reference_description=" "), wit(5, language="de")),
    ]
    data = read("wit", {"rows": write_lines(tmp_path / "t.jsonl", rows)})
    one, two, three, four, german = data.examples
    assert data.inline_media == {one.media[0]: b"pixels"}
    assert one.group == two.group != three.group == four.group
    assert three.media == ("2.jpg",)
    assert german.example_id == "de:6"
    assert dropped(data) == [("4", "malformed_media"), ("5", "empty_text")]


def test_rows_of_xflickrco_without_any_text_are_counted(tmp_path: Path) -> None:
    rows = [
        {"sentences": ["ein Hund", ""], "id": "1", "img_path": "1.jpg"},
        {"sentences": ["", " "], "id": "2", "img_path": "2.jpg"},
        {"sentences": [], "id": "3", "img_path": "3.jpg"},
    ]
    data = read("xflickrco", {"rows": write_lines(tmp_path / "t.jsonl", rows)}, language="de")
    assert [(one.example_id, one.texts) for one in data.examples] == [("de:1", ("ein Hund",))]
    assert dropped(data) == [("0", "empty_caption"), ("1", "empty_caption"), ("2", "empty_caption")]
