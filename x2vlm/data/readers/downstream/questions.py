"""Questions about images: VQA v2, Visual Genome's question-answers, and the lists of the released models.

Answers stay as they were given (VQA's accuracy has its own rules of cleaning), ten an example in VQA.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from x2vlm.data.readers.downstream.options import VgQaOptions, VqaListOptions, VqaOptions
from x2vlm.data.readers.downstream.reading import (
    Reading,
    Record,
    answer_list,
    id_field,
    json_records,
    media_name,
    text_field,
    texts_field,
)
from x2vlm.data.readers.json_stream import stream_sections
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample

QUESTIONS = "Expected v2_OpenEnded_mscoco_<split>_questions.json of the split"
ANNOTATIONS = "Expected v2_mscoco_<split>_annotations.json of the same split as the questions"


class Annotation(NamedTuple):
    """What VQA's annotations say of one question."""

    image_id: Any
    answers: tuple[str, ...]
    tags: tuple[str, ...]


def read_vqa(reading: Reading, options: VqaOptions) -> TaskData:
    """One example a question, in the order of the questions; the ids are VQA's.

    `tags`: the types of answer and question. Without the role `annotations` (test splits) examples have no answer.
    SourceUnavailable where the two files are of different splits, or no annotation fits a question.
    """
    source = reading.source
    answers = _annotations(reading) if options.answered else None
    _check_subtype(reading, "questions", options.data_subtype)
    if answers is not None:
        _check_subtype(reading, "annotations", options.data_subtype)
    seen: set[str] = set()
    for number, record in _section(reading, "questions", "questions", QUESTIONS):
        row = str(record.get("question_id", number))
        seen.add(row)
        reading.keep(row, _vqa, reading, options, record, answers)
    for question_id in answers or ():
        if question_id not in seen:
            reading.drop_item(question_id, "annotation", question_id, "unknown_question")
    if answers and seen and not seen & answers.keys():
        source.fail("annotations", f"none of its {len(answers)} question ids is in the questions", ANNOTATIONS)
    return reading.data("questions", labels=answer_list(source, "answers"))


def _vqa(reading: Reading, options: VqaOptions, record: Record, answers: Mapping[str, Annotation] | None) -> Example:
    question_id = id_field(record, "question_id")
    question = text_field(record, "question")
    name = media_name(options.media, record)
    given: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    if answers is not None:
        if question_id not in answers:
            raise InvalidSample("no_annotation", f"question {question_id} has no annotation")
        image_id, given, tags = answers[question_id]
        if image_id is not None and image_id != record.get("image_id"):
            own = record.get("image_id")
            raise InvalidSample(
                "mixed_ids", f"question {question_id} is about image {own}, its annotation on {image_id}"
            )
        if not given:
            raise InvalidSample("malformed_row", f"answers of question {question_id} are no list of {{answer: ...}}")
    return reading.example(
        question_id,
        (name,),
        (question,),
        given,
        tags=tags,
    )


def _given(annotation: Record) -> tuple[str, ...]:
    """The answers in their order; () where they are no list of objects with a text each."""
    listed = annotation.get("answers")
    found = listed if isinstance(listed, list) else []
    texts: list[Any] = [one.get("answer") if isinstance(one, dict) else None for one in found]
    # Few answers are distinct: 4.4 million of the training set would be as many texts.
    return tuple(sys.intern(text) for text in texts) if all(isinstance(text, str) for text in texts) else ()


def _annotations(reading: Reading) -> dict[str, Annotation]:
    if "annotations" not in reading.source.files:
        reading.source.fail(
            "questions",
            f"split `{reading.split}` needs the role `annotations`",
            "Add the file, or give the option `answered: false` where answers are not public",
        )
    found: dict[str, Annotation] = {}
    for number, record in _section(reading, "annotations", "annotations", ANNOTATIONS):
        try:
            question_id = id_field(record, "question_id")
        except InvalidSample as error:
            reading.drop_item(f"annotation {number}", "annotation", str(number), error.rule, error.message)
            continue
        if question_id in found:
            reading.drop_item(question_id, "annotation", str(number), "duplicate_id", f"{question_id} again")
            continue
        tags = tuple(sys.intern(str(record[key])) for key in ("answer_type", "question_type") if record.get(key))
        found[question_id] = Annotation(record.get("image_id"), _given(record), tags)
    return found


def _section(reading: Reading, role: str, key: str, remedy: str) -> Any:
    """(number, object) of a list under a key of an object; SourceUnavailable if there is no such list."""
    found = False
    for _, records in stream_sections(reading.source, role, (key,), remedy):
        if records is None:
            reading.source.fail(role, f"`{key}` is no list", remedy)
        found = True
        for number, record in enumerate(records):
            if isinstance(record, dict):
                yield number, record
            else:
                reading.drop(f"{key} {number}", "malformed_row", f"not an object: {record!r:.80}")
    if not found:
        reading.source.fail(role, f"no list `{key}`", remedy)


def _check_subtype(reading: Reading, role: str, expected: str | None) -> None:
    """Both official files say which split they are of ("train2014"), usually before the list."""
    said = _subtype(reading, role)
    if expected is None:
        expected = _subtype(reading, "questions")
    if said is not None and expected is not None and said != expected:
        reading.source.fail(role, f"it is of `{said}`, not of `{expected}`", "Give the file of that split")


def _subtype(reading: Reading, role: str) -> str | None:
    """The value of `data_subtype`, without reading the whole file: it is looked for near both ends."""
    marker = b'"data_subtype"'
    with reading.source.file(role).open("rb") as file:
        head = file.read(1 << 14)
        file.seek(max(0, reading.source.file(role).stat().st_size - (1 << 14)))
        tail = file.read()
    for part in (head, tail):
        _, found, rest = part.partition(marker)
        pieces = rest.split(b'"', 2)
        if found and len(pieces) == 3 and pieces[0].strip() == b":":
            return pieces[1].decode("utf-8", "replace")
    return None


def read_vg_qa(reading: Reading, options: VgQaOptions) -> TaskData:
    """One example a question of Visual Genome, with half the weight of VQA's; ids are "vg-<qa_id>".

    Field {folder} of `media`: VG_100K or VG_100K_2, from the role `images` (image_data.json); a pattern without it
    needs no such file.
    """
    labels = answer_list(reading.source, "answers")
    listed = frozenset(labels)
    folders = _vg_folders(reading) if "images" in reading.source.files else {}
    for number, record in json_records(reading, "rows"):
        qas = record.get("qas")
        if not isinstance(qas, list):
            reading.drop(str(number), "malformed_row", "no list `qas`")
            continue
        for position, qa in enumerate(qas):
            row = f"{number}.{position}"
            reading.keep(row, _vg, reading, options, qa, folders, listed)
    return reading.data("rows", labels=labels)


def _vg(reading: Reading, options: VgQaOptions, qa: Any, folders: Mapping[str, str], listed: frozenset[str]) -> Example:
    if not isinstance(qa, dict):
        raise InvalidSample("malformed_row", f"not an object: {qa!r:.80}")
    image_id = id_field(qa, "image_id")
    fields = {"image_id": image_id} | ({"folder": folders[image_id]} if image_id in folders else {})
    if "{folder}" in options.media and image_id not in folders:
        raise InvalidSample("unknown_image", f"no image {image_id} in image_data.json (role `images`)")
    answer = text_field(qa, "answer")
    if options.answers == "plain":
        answer = answer.removesuffix(".").strip().lower()
    if options.only_listed and answer not in listed:
        raise InvalidSample("answer_not_listed", f"{answer!r:.80} is not in the answer list")
    return reading.example(
        f"vg-{id_field(qa, 'qa_id')}",
        (media_name(options.media, fields),),
        (text_field(qa, "question"),),
        (answer,),
        weight=options.weight,
    )


def _vg_folders(reading: Reading) -> dict[str, str]:
    folders = {}
    for number, image in json_records(reading, "images"):
        url = image.get("url")
        try:
            folders[id_field(image, "image_id", "id")] = str(url).split("/")[-2]
        except (InvalidSample, IndexError):
            reading.drop_item(f"image {number}", "image", str(number), "malformed_row", "no id and url")
    return folders


def read_vqa_list(reading: Reading, options: VqaListOptions) -> TaskData:
    """One example a row; a row without `question_id` (Visual Genome's) is called by its data set and number."""
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _listed, reading, options, number, record)
    return reading.data("rows", labels=answer_list(reading.source, "answers"))


def _listed(reading: Reading, options: VqaListOptions, number: int, record: Record) -> Example:
    dataset = str(record.get("dataset", "vqa"))
    example_id = id_field(record, "question_id") if "question_id" in record else f"{dataset}-{number}"
    answers = tuple(texts_field(record, "answer")) if options.answered else ()
    if options.answered and not any(text.strip() for text in answers):
        raise InvalidSample("no_answer", "an answered split must have answers (option `answered`)")
    return reading.example(
        example_id,
        (media_name(options.media, record),),
        (text_field(record, "question"),),
        answers,
        weight=options.weights.get(dataset, 1.0),
    )
