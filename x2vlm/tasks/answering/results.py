"""From one answer per example to the result of a task: metrics, predictions, and the file for a test server."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.tasks.config import AnswerMetric
from x2vlm.tasks.scoring import bootstrap_interval
from x2vlm.tasks.scoring.answers import (
    FULL_AGREEMENT,
    VqaVariant,
    exact_match,
    mean,
    mean_of_languages,
    means_of_parts,
    vqa_accuracy,
)
from x2vlm.tasks.task import TaskResult, data_digest


@dataclass(frozen=True)
class Answered:
    """The answer to every example and its probability, in the order of the examples."""

    examples: Sequence[Example]
    answers: Sequence[str]
    probabilities: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.answers) != len(self.examples) or len(self.probabilities) != len(self.examples):
            raise InvalidSample("missing_predictions", f"{len(self.answers)} answers to {len(self.examples)} examples")
        if any(math.isnan(value) for value in self.probabilities):
            raise InvalidSample("nan_score", "probabilities hold NaN: the model or its input is broken")


def has_answers(examples: Sequence[Example]) -> bool:
    """Whether the split can be scored here. ConfigError, naming an example, if only some of it have answers."""
    known = [bool(example.answers) for example in examples]
    if any(known) and not all(known):
        raise ConfigError(
            f"example {examples[known.index(False)].example_id} has no answer and others of the split have: score the "
            "two apart"
        )
    return bool(known) and all(known)


def chosen_metric(examples: Sequence[Example], metric: AnswerMetric) -> Literal["vqa", "exact"]:
    """What "auto" means for these examples; ConfigError if the answers do not fit the metric.

    VQA accuracy compares an answer with those of several people: with fewer than four of them nothing reaches 100.
    """
    counts = {len(example.answers): example.example_id for example in examples}
    if metric == "exact" or (metric == "auto" and set(counts) == {1}):
        return "exact"
    if min(counts) <= FULL_AGREEMENT:
        raise ConfigError(
            f"example {counts[min(counts)]} has {min(counts)} answers, and VQA accuracy needs at least "
            f"{FULL_AGREEMENT + 1} of different people; set `metric: exact` to compare with any of them"
        )
    return "vqa"


def score_with(metric: Literal["vqa", "exact"], variant: VqaVariant) -> Callable[[str, Example], float]:
    """Percent for an answer to an example."""
    if metric == "exact":
        return lambda answer, example: exact_match(answer, example.answers)
    return lambda answer, example: vqa_accuracy(answer, example.answers, variant)


def scored(
    answered: Answered,
    score: Callable[[str, Example], float],
    measured_as: Mapping[str, str],
    more_metrics: Callable[[Sequence[float]], Mapping[str, float]] = lambda scores: {},
    right: Callable[[float], bool] | None = None,
) -> TaskResult:
    """`accuracy`, the mean score; per language where there are several, and per type where examples have a first tag.

    With `right` the predictions have columns for the right answer and whether it was given.
    """
    examples = answered.examples
    scores = [score(answer, example) for answer, example in zip(answered.answers, examples, strict=True)]
    metrics = {"accuracy": mean(scores)}
    metrics |= mean_of_languages(scores, [example.language for example in examples], "accuracy")
    metrics |= means_of_parts(scores, [example.tags[:1] for example in examples], "accuracy")
    columns: dict[str, list[object]] = {"accuracy": list(scores)}
    if right is not None:
        columns = {"right_answer": [e.answers[0] for e in examples], "right": [right(value) for value in scores]}
    return TaskResult(
        metrics=metrics | dict(more_metrics(scores)),
        predictions=_predictions(answered, columns),
        data_digest=_digest(examples),
        intervals={"accuracy": bootstrap_interval(scores)},
        num_examples=len(scores),
        measured_as=measured_as,
    )


def unscored(answered: Answered, submission: Mapping[str, str], measured_as: Mapping[str, str]) -> TaskResult:
    """The result for a split whose answers are not public: no metrics, and the files for its server."""
    return TaskResult(
        metrics={},
        predictions=_predictions(answered, {}),
        data_digest=_digest(answered.examples),
        num_examples=len(answered.examples),
        measured_as=measured_as,
        submission=submission,
    )


def _predictions(answered: Answered, columns: Mapping[str, Sequence[object]]) -> pa.Table:
    return pa.table(
        {
            "example_id": [example.example_id for example in answered.examples],
            "text": [example.texts[0] for example in answered.examples],
            "answer": list(answered.answers),
            **columns,
            "probability": list(answered.probabilities),
        }
    )


def _digest(examples: Sequence[Example]) -> str:
    return data_digest([f"{example.example_id}={example.texts[0]}" for example in examples])
