"""Classifying an image, a clip or two images with a text: NLVR2, MaRVL, XVNLI, MSRVTT-QA, MSVD-QA (X2-VLM 4.3.3, 4.4).

Example: to two photos and "both dogs are lying down" the head answers False or True; to five frames and "what is the
man cutting?" one of 1,500 answers. An example whose answer is none of the classes is never right and stays in the
denominator, as in the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError
from x2vlm.models.downstream.classifier import NO_CLASS, Classifier, classification_loss
from x2vlm.models.downstream.config import ClassifierConfig
from x2vlm.models.tokens import VisionTokens
from x2vlm.tasks.config import ClassificationConfig
from x2vlm.tasks.scoring import bootstrap_interval
from x2vlm.tasks.sharing import map_batches
from x2vlm.tasks.task import LossContext, Task, TaskContext, TaskResult, TaskTraining, data_digest
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.tasks.training.rows import PreparedRow, RowPreparation, join_pixels, join_texts

if TYPE_CHECKING:
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual
    from x2vlm.models.downstream.task_model import TaskModel


def check_classification(examples: Sequence[Example], labels: Sequence[str], options: ClassificationConfig) -> None:
    """ConfigError if there are no labels, or an example has another number of images, texts or answers."""
    if not labels:
        raise ConfigError("classification needs the list of classes; the data name none")
    for example in examples:
        counts = (len(example.media), len(example.texts), len(example.answers))
        if counts != (options.num_images, 1, 1):
            raise ConfigError(
                f"example {example.example_id}: {counts[0]} images, {counts[1]} texts and {counts[2]} answers; this "
                f"task takes {options.num_images}, 1 and 1"
            )
    if examples and not any(example.answers[0] in labels for example in examples):
        raise ConfigError(
            f"none of the answers, such as {examples[0].answers[0]!r}, is in the list of {len(labels)} classes, such "
            f"as {labels[0]!r}: take the list that belongs to these files"
        )


@torch.no_grad()
def evaluate_classification(model: TaskModel, options: ClassificationConfig, ctx: TaskContext) -> TaskResult:
    """Accuracy; and where groups have several examples (NLVR2) consistency, the share of groups all of which are right.

    Raises InvalidSample for an empty split, ConfigError as `check_classification`.
    """
    check_examples(ctx.examples, "classification")
    check_classification(ctx.examples, ctx.labels, options)
    model.eval()

    def classify(examples: Sequence[Example]) -> list[list[float]]:
        pixels = _evaluation_pixels(examples, options, ctx)
        ids_BL, mask_BL = (tensor.to(ctx.device) for tensor in ctx.processor.texts([e.texts[0] for e in examples]))
        logits_BC = classify_batch(model, pixels.to(ctx.device), ids_BL, mask_BL)
        best = logits_BC.double().softmax(dim=1).max(dim=1)
        return [[float(index), float(value)] for index, value in zip(best.indices, best.values, strict=True)]

    chosen = map_batches(ctx.examples, ctx.batch_size, ctx.ranks, classify)
    answers = [ctx.labels[int(index)] for index, _ in chosen]
    right = [answer == e.answers[0] for answer, e in zip(answers, ctx.examples, strict=True)]
    hits = [100.0 * is_right for is_right in right]
    metrics = {"accuracy": sum(hits) / len(hits)} | _consistency(ctx.examples, right)
    predictions = pa.table(
        {
            "example_id": [e.example_id for e in ctx.examples],
            "text": [e.texts[0] for e in ctx.examples],
            "answer": answers,
            "right_answer": [e.answers[0] for e in ctx.examples],
            "right": right,
            "probability": [value for _, value in chosen],
        }
    )
    return TaskResult(
        metrics=metrics,
        predictions=predictions,
        data_digest=data_digest([f"{e.example_id}={e.texts[0]}" for e in ctx.examples]),
        intervals={"accuracy": bootstrap_interval(hits)},
        num_examples=len(hits),
        measured_as={
            "unknown_answers": f"{sum(e.answers[0] not in ctx.labels for e in ctx.examples)}, counted as wrong"
        },
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


def _evaluation_pixels(examples: Sequence[Example], options: ClassificationConfig, ctx: TaskContext) -> Tensor:
    pixels = []
    for number in range(options.num_images):
        visuals = [ctx.load(example.media[number]) for example in examples]
        is_clip = examples[0].kind == "video"
        pixels.append(ctx.processor.clips(visuals) if is_clip else ctx.processor.images([v.frames[0] for v in visuals]))
    return torch.cat(pixels)


def _consistency(examples: Sequence[Example], right: Sequence[bool]) -> dict[str, float]:
    groups: dict[str, bool] = {}
    for example, is_right in zip(examples, right, strict=True):
        if example.group:
            groups[example.group] = groups.get(example.group, True) and is_right
    return {"consistency": 100.0 * sum(groups.values()) / len(groups)} if len(groups) < len(examples) and groups else {}


def _rows(examples: Sequence[Example], options: ClassificationConfig) -> list[tuple[int, int]]:
    return [(index, 0) for index in range(len(examples))]


def _prepare(
    example: Example, item: int, media: Sequence[Visual], preparation: RowPreparation, options: ClassificationConfig
) -> PreparedRow:
    pixels, operations = preparation.all_media(media, example.texts)
    return PreparedRow(example.example_id, pixels, operations, example.texts, notes={"answer": example.answers[0]})


def _collate(rows: Sequence[PreparedRow], processor: Processor, options: ClassificationConfig) -> TaskBatch:
    ids_BL, mask_BL = join_texts(rows, processor)
    images = {f"pixels{number}": join_pixels(rows, number) for number in range(options.num_images)}
    answers = {"answer": [row.notes["answer"] for row in rows]}
    return TaskBatch([row.key for row in rows], {"ids": ids_BL, "mask": mask_BL, **images}, answers)


def _losses(
    model: TaskModel, batch: TaskBatch, options: ClassificationConfig, context: LossContext
) -> dict[str, Tensor]:
    pixels = torch.cat([batch.pixels(f"pixels{number}") for number in range(options.num_images)])
    logits_BC = classify_batch(model, pixels, batch.tensors["ids"], batch.tensors["mask"])
    numbers = {label: number for number, label in enumerate(context.labels)}
    targets = [numbers.get(answer, NO_CLASS) for answer in batch.notes["answer"]]
    return {"classification": classification_loss(logits_BC, torch.tensor(targets, device=logits_BC.device))}


CLASSIFICATION = Task(
    evaluate=evaluate_classification,
    training=TaskTraining(
        rows=_rows,
        prepare=_prepare,
        collate=_collate,
        losses=_losses,
        head=lambda num_labels, options: ClassifierConfig(num_labels=num_labels, num_images=options.num_images),
    ),
    check=check_classification,
)
