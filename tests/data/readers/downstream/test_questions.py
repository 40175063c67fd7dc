"""VQA's pairs of files, Visual Genome's questions, GQA's dictionaries and the released models' lists."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.sets.downstream import dropped, read, write_json, write_lines
from x2vlm.errors import ConfigError, SourceUnavailable

MEDIA = "val2014/COCO_val2014_{image_id:012d}.jpg"


def question(number: int, image: int = 1, text: str = "What is it?") -> dict[str, Any]:
    return {"image_id": image, "question": text, "question_id": number}


def annotation(number: int, image: int = 1, answer: str = "cat") -> dict[str, Any]:
    answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": one} for one in range(1, 11)]
    return {
        "image_id": image,
        "question_id": number,
        "question_type": "what is",
        "answer_type": "other",
        "multiple_choice_answer": answer,
        "answers": answers,
    }


def vqa(folder: Path, questions: list[Any], annotations: list[Any], subtype: str = "val2014") -> Mapping[str, Path]:
    return {
        "questions": write_json(folder / "q.json", {"questions": questions, "data_subtype": "val2014"}),
        "annotations": write_json(folder / "a.json", {"data_subtype": subtype, "annotations": annotations}),
    }


def test_a_question_brings_its_ten_answers_as_they_were_given(tmp_path: Path) -> None:
    files = vqa(tmp_path, [question(11), question(12, 2)], [annotation(12, 2, "a  Dog"), annotation(11)])
    one, two = read("vqa", files, "val", media=MEDIA).examples
    assert (one.example_id, one.answers, one.tags) == ("11", ("cat",) * 10, ("other", "what is"))
    assert two.answers == ("a  Dog",) * 10
    assert two.media == ("val2014/COCO_val2014_000000000002.jpg",)


def test_annotations_of_another_split_are_refused(tmp_path: Path) -> None:
    files = vqa(tmp_path, [question(11)], [annotation(11)], subtype="train2014")
    with pytest.raises(SourceUnavailable, match=r"a\.json: it is of `train2014`, not of `val2014`"):
        read("vqa", files, "val", media=MEDIA)


def test_annotations_of_other_questions_are_refused(tmp_path: Path) -> None:
    files = vqa(tmp_path, [question(11)], [annotation(21), annotation(22)])
    with pytest.raises(SourceUnavailable, match="none of its 2 question ids is in the questions"):
        read("vqa", files, "val", media=MEDIA)


def test_a_test_split_has_questions_alone_and_says_so(tmp_path: Path) -> None:
    files = {"questions": write_json(tmp_path / "q.json", {"questions": [question(1)]})}
    with pytest.raises(SourceUnavailable, match=r"needs the role `annotations`.*`answered: false`"):
        read("vqa", files, media=MEDIA)
    [one] = read("vqa", files, media=MEDIA, answered=False).examples
    assert one.answers == ()


def test_bad_questions_are_named(tmp_path: Path) -> None:
    questions = [
        *(question(1), question(2, text=" "), question(3, image=9), question(4), question(1)),
        *("text", {"question": "?"}, question(5) | {"image_id": "cat"}),
    ]
    annotations = [annotation(1), annotation(2), annotation(3), annotation(7), annotation(5) | {"image_id": "cat"}]
    data = read("vqa", vqa(tmp_path, questions, annotations), "val", media=MEDIA)
    assert [one.example_id for one in data.examples] == ["1"]
    assert dropped(data) == [
        ("2", "empty_text"),
        ("3", "mixed_ids"),
        ("4", "no_annotation"),
        ("1", "duplicate_id"),
        ("questions 5", "malformed_row"),
        ("6", "malformed_row"),
        ("5", "malformed_row"),
        ("7", "unknown_question"),
    ]


def test_answer_lists_are_texts_or_numbers_by_answer(tmp_path: Path) -> None:
    files = dict(vqa(tmp_path, [question(11)], [annotation(11)]))
    listed = files | {"answers": write_json(tmp_path / "l.json", ["cat", "dog"])}
    assert read("vqa", listed, "val", media=MEDIA).labels == ("cat", "dog")
    numbered = files | {"answers": write_json(tmp_path / "n.json", {"dog": 1, "cat": 0})}
    assert read("vqa", numbered, "val", media=MEDIA).labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (["cat", "cat"], "the answer 'cat' is there twice"),
        ({"cat": 0, "dog": 2}, "the numbers of its 2 answers are not 0 to 1"),
        (["cat", 3], "3 is no answer"),
    ],
)
def test_wrong_answer_lists_are_refused(tmp_path: Path, value: Any, problem: str) -> None:
    files = dict(vqa(tmp_path, [question(11)], [annotation(11)])) | {"answers": write_json(tmp_path / "l.json", value)}
    with pytest.raises(SourceUnavailable, match=problem):
        read("vqa", files, "val", media=MEDIA)


def test_an_unknown_field_of_the_pattern_is_named_with_the_nearest(tmp_path: Path) -> None:
    files = vqa(tmp_path, [question(11)], [annotation(11)])
    with pytest.raises(ConfigError, match=r"the row has no \{imageid\}; did you mean `image_id`"):
        read("vqa", files, "val", media="{imageid}.jpg")


def test_visual_genome_finds_the_folder_of_an_image(tmp_path: Path) -> None:
    qas = [{"qa_id": 5, "image_id": 1, "question": "Where?", "answer": "On a Street."}]
    more = [{"qa_id": 6, "image_id": 2, "question": "Who?", "answer": "A man."}]
    files = {
        "rows": write_json(tmp_path / "qa.json", [{"id": 1, "qas": qas}, {"id": 2, "qas": more}, {"id": 3}]),
        "images": write_json(tmp_path / "i.json", [{"image_id": 1, "url": "https://x/rak248/VG_100K_2/1.jpg"}]),
        "answers": write_json(tmp_path / "l.json", ["on a street"]),
    }
    data = read("vg_qa", files, "train")
    [one] = data.examples
    assert (one.example_id, one.media, one.answers) == ("vg-5", ("VG_100K_2/1.jpg",), ("on a street",))
    assert dropped(data) == [("1.0", "unknown_image"), ("2", "malformed_row")]
    listed = read("vg_qa", files, "train", media="{image_id}.jpg", only_listed=True)
    assert dropped(listed) == [("1.0", "answer_not_listed"), ("2", "malformed_row")]


def test_rows_of_a_list_weigh_by_their_data_set(tmp_path: Path) -> None:
    rows = [
        {"question_id": 7, "image": "a.jpg", "question": "Q?", "answer": ["yes"] * 10, "dataset": "vqa"},
        {"image": "b.jpg", "question": "Q?", "answer": "street", "dataset": "vg"},
        {"question_id": 8, "image": "a.jpg", "question": "Q?", "answer": [], "dataset": "vqa"},
    ]
    data = read("vqa_list", {"rows": write_json(tmp_path / "r.json", rows)}, "train")
    assert [(one.example_id, one.weight, len(one.answers)) for one in data.examples] == [
        ("7", 1.0, 10),
        ("vg-1", 0.5, 1),
    ]
    assert dropped(data) == [("2", "no_answer")]
    test = [{"question_id": 9, "image": "a.jpg", "question": "Q?", "dataset": "vqa"}]
    [one] = read("vqa_list", {"rows": write_json(tmp_path / "t.json", test)}, answered=False).examples
    assert one.answers == ()


def test_gqa_takes_balanced_questions_and_scored_answers(tmp_path: Path) -> None:
    records = {
        "1": {"imageId": "n1", "question": "Is it red?", "answer": "no", "isBalanced": True},
        "2": {"imageId": "n1", "question": "Is it red?", "answer": "no", "isBalanced": False},
        "3": {"imageId": "n2", "question": "Was?"},
    }
    files = {"questions": write_json(tmp_path / "q.json", records)}
    data = read("gqa", files, language="de")
    assert [(one.example_id, one.answers) for one in data.examples] == [("de:1", ("no",)), ("de:3", ())]
    assert dropped(data) == [("2", "not_balanced")]
    rows = [
        {"img_id": "n1", "sent": "Is it red?", "label": {"no": 1.0, "maybe": 0.5}, "question_id": "1"},
        {"img_id": "n1", "sent": "Is it?", "label": {}, "question_id": "2"},
        {"img_id": "n1", "sent": "Is it?", "label": {"no": float("nan")}, "question_id": "3"},
    ]
    data = read("gqa_labels", {"rows": write_json(tmp_path / "t.json", rows)}, "train")
    [one] = data.examples
    assert (one.answers, one.answer_weights) == (("no", "maybe"), (1.0, 0.5))
    assert dropped(data) == [("1", "no_answer"), ("2", "malformed_row")]


def test_msvd_clips_are_called_as_their_mapping_says(tmp_path: Path) -> None:
    names = tmp_path / "youtube_mapping.txt"
    names.write_text("-4wsuPCjDBc_5_15 vid1\n-7KMZQEsJW4_205_208 vid2\n")
    rows = [
        {"video_id": 1, "question": "what is it?", "answer": "squirrel"},
        {"video_id": "vid2", "question": "who?", "answer": "unheard of"},
        {"video_id": 3, "question": "who?", "answer": "squirrel"},
    ]
    answers = write_json(tmp_path / "l.json", {"squirrel": 0, "man": 1})
    files = {"rows": write_lines(tmp_path / "t.jsonl", rows), "answers": answers}
    data = read("video_qa", files | {"names": names}, media="clips/{name}.avi")
    one, two = data.examples
    assert (one.media, one.kind, data.labels) == (("clips/-4wsuPCjDBc_5_15.avi",), "video", ("squirrel", "man"))
    assert two.answers == ("unheard of",)  # stays, and is never right
    assert dropped(data) == [("2", "unknown_video")]
    numbered = read("video_qa", files, media="video{number}.mp4")
    assert [one.media for one in numbered.examples] == [("video1.mp4",), ("video2.mp4",), ("video3.mp4",)]
    other = files | {"answers": write_json(tmp_path / "o.json", ["red"])}
    with pytest.raises(SourceUnavailable, match="none of the answers is among its 1"):
        read("video_qa", other)
