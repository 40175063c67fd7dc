"""Classifying an image, a clip or two images with a text: NLVR2, MaRVL, XVNLI, MSRVTT-QA, MSVD-QA (X2-VLM 4.3.3, 4.4).

Example: to two photos and "both dogs are lying down" the head answers False or True; to five frames and "what is the
man cutting?" one of 1,500 answers. An example whose answer is none of the classes is never right and stays in the
denominator, as in the reference. With several weighted answers a row it learns VQA's answers as classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError
from x2vlm.models.downstream.classifier import (
    NO_CLASS,
    Classifier,
    classification_loss,
    weighted_classification_loss,
)
from x2vlm.models.downstream.config import ClassifierConfig
from x2vlm.models.tokens import VisionTokens
from x2vlm.tasks.answering.checks import check_known, check_labels, check_questions
from x2vlm.tasks.answering.results import Answered, chosen_metric, has_answers, score_with, scored, unscored
from x2vlm.tasks.answering.rows import answered_rows, prepare_answered
from x2vlm.tasks.config import ClassificationConfig
from x2vlm.tasks.scoring.answers import nlvr2_submission
from x2vlm.tasks.sharing import map_batches
from x2vlm.tasks.task import LossContext, Task, TaskContext, TaskResult, TaskTraining
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.tasks.training.rows import PreparedRow, join_pixels, join_texts

if TYPE_CHECKING:
    from x2vlm.inference.processor import Processor
    from x2vlm.models.downstream.task_model import TaskModel

CLASSES = "the list of classes"
SUBMISSION = "predictions.csv"


def check_classification(examples: Sequence[Example], labels: Sequence[str], options: ClassificationConfig) -> None:
    """ConfigError if there are no labels, or an example has another number of images, texts or answers."""
    check_labels(labels, CLASSES)
    check_questions(examples, options.num_images)
    if not options.several_answers:
        for example in examples:
            if len(example.answers) > 1:
                raise ConfigError(
                    f"example {example.example_id} has {len(example.answers)} answers, this task takes one; set "
                    "`several_answers: true` to learn all of them by their weights"
                )
    check_known(examples, labels, CLASSES)


@torch.no_grad()
def evaluate_classification(model: TaskModel, options: ClassificationConfig, ctx: TaskContext) -> TaskResult:
    """Accuracy; and where groups have several examples (NLVR2) consistency, the share of groups all of which are right.

    With `several_answers` the accuracy is that of VQA. For a split without answers the file that NLVR2's program takes.
    Raises InvalidSample for an empty split, ConfigError as `check_classification` and for a model of other classes.
    """
    check_examples(ctx.examples, "classification")
    check_classification(ctx.examples, ctx.labels, options)
    _check_head(model, options, len(ctx.labels))
    model.eval()

    def classify(examples: Sequence[Example]) -> list[list[float]]:
        pixels = torch.cat([evaluation_pixels(examples, number, ctx) for number in range(options.num_images)])
        ids_BL, mask_BL = (tensor.to(ctx.device) for tensor in ctx.processor.texts([e.texts[0] for e in examples]))
        logits_BC = classify_batch(model, pixels.to(ctx.device), ids_BL, mask_BL)
        # Of equally probable classes the first: `max` leaves it open.
        best = logits_BC.double().softmax(dim=1).sort(dim=1, descending=True, stable=True)
        return [[float(i), float(p)] for i, p in zip(best.indices[:, 0], best.values[:, 0], strict=True)]

    chosen = map_batches(ctx.examples, ctx.batch_size, ctx.ranks, classify)
    answers = [ctx.labels[int(index)] for index, _ in chosen]
    answered = Answered(ctx.examples, answers, [value for _, value in chosen])
    if not has_answers(ctx.examples):
        ids = [example.example_id for example in ctx.examples]
        return unscored(answered, {SUBMISSION: nlvr2_submission(ids, answers)}, {})
    unknown = sum(not set(example.answers) & set(ctx.labels) for example in ctx.examples)
    measured_as = {"unknown_answers": f"{unknown}, counted as wrong"}
    if options.several_answers:
        metric = chosen_metric(ctx.examples, "auto")
        measured_as |= {"metric": metric} | ({"vqa_variant": options.vqa_variant} if metric == "vqa" else {})
        return scored(answered, score_with(metric, options.vqa_variant), measured_as)
    return scored(
        answered,
        score_with("exact", options.vqa_variant),
        measured_as,
        more_metrics=lambda scores: _consistency(ctx.examples, [score > 0 for score in scores]),
        right=lambda score: score > 0,
    )


def _check_head(model: TaskModel, options: ClassificationConfig, num_labels: int) -> None:
    if not isinstance(model.head, Classifier):
        raise ConfigError("this model has no classifier: fine-tune it for the task `classification` first")
    config = model.head.config
    if (config.num_labels, config.num_images) != (num_labels, options.num_images):
        raise ConfigError(
            f"the model's classifier has {config.num_labels} classes for {config.num_images} image(s); the data have "
            f"{num_labels} and the options {options.num_images}: take the data and options that it was fine-tuned with"
        )


def classify_batch(model: TaskModel, pixels: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Logits (B, C). `pixels`: (B, C, H, W) or (B, F, C, H, W); with several images a row those of all rows in turn."""
    head = model.head
    assert isinstance(head, Classifier)
    logits_BC: Tensor = head(model.base, encode_media(model, pixels), ids_BL, mask_BL)
    return logits_BC


def encode_media(model: TaskModel, pixels: Tensor) -> VisionTokens:
    """Images (B, C, H, W) or clips (B, F, C, H, W)."""
    return model.base.encode_video(pixels) if pixels.ndim == 5 else model.base.encode_image(pixels)


def evaluation_pixels(examples: Sequence[Example], number: int, ctx: TaskContext) -> Tensor:
    """Media `number` of all examples, which are of one kind: (B, C, H, W) of images, (B, F, C, H, W) of clips."""
    visuals = [ctx.load(example.media[number]) for example in examples]
    if examples[0].kind == "video":
        return ctx.processor.clips(visuals)
    return ctx.processor.images([visual.frames[0] for visual in visuals])


def _consistency(examples: Sequence[Example], right: Sequence[bool]) -> dict[str, float]:
    groups: dict[str, bool] = {}
    for example, is_right in zip(examples, right, strict=True):
        if example.group:
            groups[example.group] = groups.get(example.group, True) and is_right
    return {"consistency": 100.0 * sum(groups.values()) / len(groups)} if len(groups) < len(examples) and groups else {}


def _collate(rows: Sequence[PreparedRow], processor: Processor, options: ClassificationConfig) -> TaskBatch:
    ids_BL, mask_BL = join_texts(rows, processor)
    images = {f"pixels{number}": join_pixels(rows, number) for number in range(options.num_images)}
    answers = {"answers": [row.notes["answers"] for row in rows]}
    return TaskBatch([row.key for row in rows], {"ids": ids_BL, "mask": mask_BL, **images}, answers)


def _losses(
    model: TaskModel, batch: TaskBatch, options: ClassificationConfig, context: LossContext
) -> dict[str, Tensor]:
    pixels = torch.cat([batch.pixels(f"pixels{number}") for number in range(options.num_images)])
    logits_BC = classify_batch(model, pixels, batch.tensors["ids"], batch.tensors["mask"])
    numbers = {label: number for number, label in enumerate(context.labels)}
    given = [json.loads(answers) for answers in batch.notes["answers"]]
    device = logits_BC.device
    if not options.several_answers:
        targets = [numbers.get(answer, NO_CLASS) for row in given for answer in row]
        return {"classification": classification_loss(logits_BC, torch.tensor(targets, device=device))}
    known = [
        (numbers[answer], weight, row)
        for row, answers in enumerate(given)
        for answer, weight in answers.items()
        if answer in numbers
    ]
    targets_A = torch.tensor([target for target, _, _ in known], dtype=torch.long, device=device)
    weights_A = torch.tensor([weight for _, weight, _ in known], device=device)
    row_of_A = torch.tensor([row for _, _, row in known], dtype=torch.long, device=device)
    return {"classification": weighted_classification_loss(logits_BC, targets_A, weights_A, row_of_A)}


CLASSIFICATION = Task(
    evaluate=evaluate_classification,
    training=TaskTraining(
        rows=answered_rows,
        prepare=prepare_answered,
        collate=_collate,
        losses=_losses,
        head=lambda num_labels, options: ClassifierConfig(num_labels=num_labels, num_images=options.num_images),
    ),
    check=check_classification,
)
