"""GQA and xGQA: official questions by id, and training rows with scored answers.

xGQA's files have GQA's form with questions in another language and English answers.
"""

from x2vlm.data.readers.downstream.options import GqaLabelsOptions, GqaOptions
from x2vlm.data.readers.downstream.reading import (
    Reading,
    Record,
    answer_list,
    id_field,
    json_records,
    media_name,
    text_field,
)
from x2vlm.data.readers.json_stream import stream_dict
from x2vlm.data.readers.source import finite_number
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample

OFFICIAL = "Expected testdev_balanced_questions.json or its like: {question id: {imageId, question, answer}}"


def read_gqa_questions(reading: Reading, options: GqaOptions) -> TaskData:
    """One example a question, in file order; the id is the question's. Rows without an answer are for a test server."""
    for question_id, record in stream_dict(reading.source, "questions", OFFICIAL):
        reading.keep(
            question_id,
            _question,
            reading,
            options,
            question_id,
            record,
        )
    return reading.data("questions", labels=answer_list(reading.source, "answers"))


def _question(reading: Reading, options: GqaOptions, question_id: str, record: Record) -> Example:
    if not isinstance(record, dict):
        raise InvalidSample("malformed_row", f"not an object: {record!r:.80}")
    if options.balanced and record.get("isBalanced") is False:
        raise InvalidSample("not_balanced", "the question is not of the balanced set")
    return reading.example(
        question_id,
        (media_name(options.media, record),),
        (text_field(record, "question"),),
        (text_field(record, "answer"),) if "answer" in record else (),
    )


def read_gqa_labels(reading: Reading, options: GqaLabelsOptions) -> TaskData:
    """One example a row {img_id, sent, label: {answer: score}, question_id}; scores are the weights of the answers."""
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _labelled, reading, options, record)
    return reading.data("rows", labels=answer_list(reading.source, "answers"))


def _labelled(reading: Reading, options: GqaLabelsOptions, record: Record) -> Example:
    label = record.get("label")
    if not isinstance(label, dict):
        raise InvalidSample("malformed_row", f"label is no {{answer: score}}: {label!r:.80}")
    if not label:
        raise InvalidSample("no_answer", "label is empty")
    scores = [finite_number(score) for score in label.values()]
    if any(score is None or score <= 0 for score in scores):
        raise InvalidSample("malformed_row", f"a score is no positive number: {label!r:.80}")
    return reading.example(
        id_field(record, "question_id"),
        (media_name(options.media, record),),
        (text_field(record, "sent", "question"),),
        tuple(label),
        answer_weights=tuple(float(score) for score in scores if score is not None),
    )
