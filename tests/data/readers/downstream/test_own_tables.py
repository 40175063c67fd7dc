"""A user's own tables: four forms, forgiving names of columns, splits, and clear words about what cannot be used."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.sets.downstream import dropped, read, write_json, write_lines
from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.samples import Box

ROWS = [
    {"image": "a.jpg", "question": "What is it?", "answer": "cat"},
    {"image": "b.jpg", "question": "Who is it?", "answer": "dog"},
    {"image": "c.mp4", "question": "What  moves?", "answer": "dog"},
]


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the name says."""
    if path.suffix == ".jsonl":
        return write_lines(path, rows)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_questions_in_every_format_are_the_same(tmp_path: Path, suffix: str) -> None:
    data = read("own_questions", {"rows": table(tmp_path / f"my.{suffix}", ROWS)}, "train")
    assert [(one.example_id, one.media, one.texts, one.answers, one.kind) for one in data.examples] == [
        ("0", ("a.jpg",), ("What is it?",), ("cat",), "image"),
        ("1", ("b.jpg",), ("Who is it?",), ("dog",), "image"),
        ("2", ("c.mp4",), ("What moves?",), ("dog",), "video"),
    ]
    assert data.labels == ("dog", "cat")  # the most frequent first
    assert data.dropped == ()


def test_several_answers_are_a_list_also_as_json_in_a_csv(tmp_path: Path) -> None:
    rows = [{"img_path": "a.jpg", "Question": "Q?", "answers": json.dumps(["cat", "a cat"])}]
    [one] = read("own_questions", {"rows": table(tmp_path / "my.csv", rows)}).examples
    assert one.answers == ("cat", "a cat")


def test_questions_without_a_column_of_answers_are_for_a_test(tmp_path: Path) -> None:
    rows = [{"image": "a.jpg", "question": "Q?", "question_id": 17}]
    [one] = read("own_questions", {"rows": table(tmp_path / "my.csv", rows)}).examples
    assert (one.example_id, one.answers) == ("17", ())


def test_an_answer_list_decides_on_the_labels(tmp_path: Path) -> None:
    files = {
        "rows": table(tmp_path / "my.csv", ROWS),
        "answers": write_json(tmp_path / "l.json", ["cat", "dog", "cow"]),
    }
    assert read("own_questions", files).labels == ("cat", "dog", "cow")


def test_captions_of_several_columns_and_languages(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.jpg", "captions": ["a cat", "the cat"], "lang": "en"},
        {"file_name": "b.jpg", "captions": ["eine Katze", ""], "lang": "de"},
        {"file_name": "b.jpg", "captions": [], "lang": "de"},
    ]
    data = read("own_captions", {"rows": table(tmp_path / "my.jsonl", rows)})
    assert [(one.texts, one.language, one.group) for one in data.examples] == [
        (("a cat", "the cat"), "en", "a.jpg"),
        (("eine Katze",), "de", "b.jpg"),
    ]
    assert dropped(data) == [("1", "empty_caption"), ("2", "empty_caption")]


def test_boxes_stand_one_a_row_or_in_lists(tmp_path: Path) -> None:
    single = [{"image": "a.jpg", "phrase": "red star", "bbox": [1, 2, 3, 4]}]
    [one] = read("own_boxes", {"rows": table(tmp_path / "one.jsonl", single)}).examples
    assert (one.example_id, one.texts, one.box) == ("0.0", ("red star",), Box(1, 2, 3, 4))
    rows = [{"image": "a.jpg", "boxes": "[[0, 0, 5, 5], [1, 1, 9, 9]]", "phrases": '["star", "ring"]'}]
    options = {"boxes": {"format": "xyxy", "unit": "pixels"}}
    data = read("own_boxes", {"rows": table(tmp_path / "two.csv", rows)}, **options)
    assert [(one.example_id, one.box) for one in data.examples] == [("0.0", Box(0, 0, 5, 5)), ("0.1", Box(1, 1, 8, 8))]


def test_boxes_in_fractions_need_the_size_of_the_image(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "phrase": "star", "bbox": [0.5, 0.5, 0.5, 0.25], "width": 200, "height": 100}
    rows = [row, row | {"width": None}, row | {"bbox": [0.9, 0.5, 0.5, 0.25]}]
    options = {"boxes": {"format": "xywh", "unit": "fraction"}}
    data = read("own_boxes", {"rows": table(tmp_path / "my.jsonl", rows)}, **options)
    assert [one.box for one in data.examples] == [Box(100, 50, 100, 25)]
    assert dropped(data) == [("1.0", "size_unknown"), ("2.0", "box_outside_image")]


def test_bad_boxes_are_named(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "phrase": "star", "bbox": [1, 2, 3, 4]}
    bad = [{"bbox": [1, 2, 3]}, {"bbox": "here"}, {"bbox": [1, 2, 0, 4]}, {"phrase": ""}, {"phrase": ["a", "b"]}]
    data = read("own_boxes", {"rows": table(tmp_path / "my.jsonl", [row, *(row | one for one in bad)])})
    assert len(data.examples) == 1
    assert dropped(data) == [
        ("1.0", "malformed_box"),
        ("2", "malformed_box"),
        ("3.0", "malformed_box"),
        ("4.0", "empty_text"),
        ("5", "unequal_lengths"),
    ]


def test_one_image_or_two_and_a_label(tmp_path: Path) -> None:
    rows = [
        {"left": "a.jpg", "right": "b.jpg", "sentence": "Both are red.", "label": True},
        {"left": "a.jpg", "right": "c.jpg", "sentence": "Both are red.", "label": False},
        {"left": "a.jpg", "right": "", "sentence": "Both are red.", "label": False},
    ]
    data = read("own_labels", {"rows": table(tmp_path / "my.jsonl", rows)})
    assert [(one.media, one.answers) for one in data.examples] == [
        (("a.jpg", "b.jpg"), ("True",)),
        (("a.jpg", "c.jpg"), ("False",)),
        (("a.jpg",), ("False",)),
    ]
    assert data.labels == ("False", "True")
    single = [{"image": "a.jpg", "hypothesis": "It is red.", "gold_label": "neutral"}]
    [one] = read("own_labels", {"rows": table(tmp_path / "one.csv", single)}).examples
    assert (one.media, one.texts, one.answers) == (("a.jpg",), ("It is red.",), ("neutral",))


def test_a_column_says_the_split_and_labels_are_those_of_all(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "text": "one", "label": "b", "split": "training"},
        {"image": "b.jpg", "text": "two", "label": "a", "split": "dev"},
        {"image": "c.jpg", "text": "three", "label": "c", "split": "test"},
    ]
    files = {"rows": table(tmp_path / "my.csv", rows)}
    splits = {name: read("own_labels", files, name) for name in ("train", "val", "test")}
    assert {name: [one.texts[0] for one in data.examples] for name, data in splits.items()} == {
        "train": ["one"],
        "val": ["two"],
        "test": ["three"],
    }
    assert {data.labels for data in splits.values()} == {("a", "b", "c")}
    with pytest.raises(SourceUnavailable, match=r"no row of split `testA`; splits: test 1, train 1, val 1"):
        read("own_labels", files, "testA")


def test_a_share_of_the_images_is_kept_for_validation(tmp_path: Path) -> None:
    rows = [{"image": f"{number // 2}.jpg", "question": f"{number}?", "answer": "yes"} for number in range(400)]
    files = {"rows": table(tmp_path / "my.csv", rows)}
    train, val = (read("own_questions", files, name, val_share=0.1) for name in ("train", "val"))
    assert len(train.examples) + len(val.examples) == 400
    assert 20 <= len(val.examples) <= 60
    assert not {one.media for one in train.examples} & {one.media for one in val.examples}


def test_columns_may_be_named_and_wrong_names_find_the_nearest(tmp_path: Path) -> None:
    files = {"rows": table(tmp_path / "my.csv", [{"bild": "a.jpg", "frage": "Q?", "antwort": "ja"}])}
    columns = {"media": "bild", "question": "frage", "answers": "antwort"}
    [one] = read("own_questions", files, columns=columns).examples
    assert (one.media, one.texts, one.answers) == (("a.jpg",), ("Q?",), ("ja",))
    with pytest.raises(ConfigError, match="no column `bld`, given for media; did you mean `bild`"):
        read("own_questions", files, columns=columns | {"media": "bld"})
    with pytest.raises(ConfigError, match="no field `medium` here; did you mean `media`"):
        read("own_questions", files, columns={"medium": "bild"})
    with pytest.raises(SourceUnavailable, match=r"no column is known to hold the media; columns: bild, frage, antwort"):
        read("own_questions", files)


def test_images_lie_below_the_folder_of_media(tmp_path: Path) -> None:
    names = ["/data/images/sub/a.jpg", "/elsewhere/a.jpg", "../a.jpg", "https://x.org/a.jpg", "", "./sub/../b.jpg"]
    rows = [{"image": name, "caption": "text"} for name in names]
    data = read("own_captions", {"rows": table(tmp_path / "my.csv", rows)}, media_root="/data/images")
    assert [one.media for one in data.examples] == [("sub/a.jpg",), ("b.jpg",)]
    assert dropped(data) == [
        ("1", "outside_media_folder"),
        ("2", "outside_media_folder"),
        ("3", "not_a_file"),
        ("4", "missing_media"),
    ]


def test_a_bad_line_does_not_end_a_table(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes(b'{"image": "a.jpg", "caption": "one"}\n{"image": \n\xff\n{"image": "b.jpg", "caption": "two"}\n')
    data = read("own_captions", {"rows": path})
    assert [one.texts for one in data.examples] == [("one",), ("two",)]
    assert dropped(data) == [("1", "malformed_json"), ("2", "not_utf8")]
    assert data.dropped[0].reason.startswith("line 2:")


def test_a_file_without_a_usable_row_says_why(tmp_path: Path) -> None:
    path = table(tmp_path / "my.csv", [{"image": "a.jpg", "caption": ""}])
    with pytest.raises(SourceUnavailable, match=r"no example of split `test` .*\(1 dropped; row 0: empty_caption"):
        read("own_captions", {"rows": path})


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path) -> None:
    empty = tmp_path / "mine.jsonl"
    empty.write_text("")
    with pytest.raises(SourceUnavailable, match=r"mine\.jsonl: no column .* columns: none, the file is empty"):
        read("own_questions", {"rows": empty})
