"""What is wrong with examples and labels of a question-answering task, said before the first batch."""

from __future__ import annotations

from collections.abc import Sequence

from x2vlm.data.task_examples import Example
from x2vlm.data.text.captions import pre_caption
from x2vlm.errors import ConfigError, InvalidSample


def check_labels(labels: Sequence[str], what: str) -> None:
    """ConfigError if there is no label, one occurs twice, or one is blank; `what`: how the task calls the list."""
    if not labels:
        raise ConfigError(
            f"this task needs {what}, and the data name none: give rows with an answer (own tables: a column `answer` "
            "or `label`), or a list of answers (`answers` among the files, --answers)"
        )
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise ConfigError(f"{twice!r} occurs twice in {what}")
    if blank := [number for number, label in enumerate(labels) if not label.strip()]:
        raise ConfigError(f"entry {blank[0]} of {what} is blank")


def check_questions(examples: Sequence[Example], num_media: int) -> None:
    """ConfigError, naming the example, for another number of media or texts, mixed kinds, blank texts or answers."""
    for example in examples:
        counts = (len(example.media), len(example.texts))
        if counts != (num_media, 1):
            raise ConfigError(
                f"example {example.example_id}: {counts[0]} images and {counts[1]} texts; this task takes "
                f"{num_media} and 1"
            )
        if example.kind != examples[0].kind:
            raise ConfigError(
                f"example {example.example_id} shows a {example.kind}, {examples[0].example_id} a {examples[0].kind}: "
                "give images and clips as two sets"
            )
        if example.answer_weights and len(example.answer_weights) != len(example.answers):
            raise ConfigError(
                f"example {example.example_id}: {len(example.answer_weights)} weights, {len(example.answers)} answers"
            )
        if any(not answer.strip() for answer in example.answers):
            raise ConfigError(f"example {example.example_id}: a blank answer; take it out of the file")
        try:
            pre_caption(example.texts[0], 1)
        except InvalidSample:
            raise ConfigError(
                f"example {example.example_id}: nothing is left of {example.texts[0]!r} after cleaning; take the row "
                "out of the file"
            ) from None


def check_known(examples: Sequence[Example], labels: Sequence[str], what: str) -> None:
    """ConfigError if examples have answers and none of them is a label: the list belongs to other files."""
    given = [answer for example in examples for answer in example.answers]
    if given and not set(given) & set(labels):
        raise ConfigError(
            f"none of the answers, such as {given[0]!r}, is in {what} of {len(labels)}, such as {labels[0]!r}: take "
            "the list that belongs to these files"
        )
