"""Training rows of questions with answers, which ranking a list and classification share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError
from x2vlm.tasks.scoring.answers import answer_weights
from x2vlm.tasks.training.rows import PreparedRow, RowPreparation

if TYPE_CHECKING:
    from x2vlm.inference.visuals import Visual


def answered_rows(examples: Sequence[Example], options: Any) -> list[tuple[int, int]]:
    """A row per example; ConfigError, naming one, if any has no answer to learn."""
    if unanswered := [example.example_id for example in examples if not example.answers]:
        raise ConfigError(f"{len(unanswered)} training examples have no answer, such as {unanswered[0]}")
    return [(index, 0) for index in range(len(examples))]


def prepare_answered(
    example: Example, item: int, media: Sequence[Visual], preparation: RowPreparation, options: Any
) -> PreparedRow:
    """The row, with its answers and their weights as JSON in the note `answers`."""
    # Neither a question nor an answer that says left or right may be mirrored.
    pixels, operations = preparation.all_media(media, [*example.texts, *example.answers])
    weights = answer_weights(example.answers, example.answer_weights, example.weight)
    return PreparedRow(example.example_id, pixels, operations, example.texts, notes={"answers": json.dumps(weights)})
