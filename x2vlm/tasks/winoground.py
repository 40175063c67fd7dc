"""Winoground, zero-shot: two images, two captions of the same words, which belongs to which (X2-VLM 4.3.7).

Example: "some plants surrounding a lightbulb" and "a lightbulb surrounding some plants". Chance is 25 % of texts and of
images, 16.7 % of groups.
B examples, P = 4 B pairs; captions and images of an example are neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError
from x2vlm.tasks.config import WinogroundConfig
from x2vlm.tasks.scoring import bootstrap_interval, winoground_answers
from x2vlm.tasks.sharing import map_batches
from x2vlm.tasks.task import Task, TaskContext, TaskResult, data_digest

if TYPE_CHECKING:
    from x2vlm.models.downstream.task_model import TaskModel


def check_winoground(examples: Sequence[Example], labels: Sequence[str], options: WinogroundConfig) -> None:
    """ConfigError if an example is not two images and two captions."""
    for example in examples:
        if (len(example.media), len(example.texts), example.kind) != (2, 2, "image"):
            raise ConfigError(
                f"example {example.example_id}: {len(example.media)} {example.kind}s and {len(example.texts)} "
                "captions; Winoground takes 2 images and 2 captions"
            )


@torch.no_grad()
def evaluate_winoground(model: TaskModel, options: WinogroundConfig, ctx: TaskContext) -> TaskResult:
    """Shares of examples whose texts, images, and both are right; of each first tag too, as `group_score/Object`.

    Raises InvalidSample for an empty split, ConfigError as `check_winoground`.
    """
    check_examples(ctx.examples, "winoground")
    check_winoground(ctx.examples, (), options)
    model.eval()

    def score(batch: Sequence[Example]) -> list[list[float]]:
        pixels = ctx.processor.images([ctx.load(name).frames[0] for example in batch for name in example.media])
        ids_BL, mask_BL = ctx.processor.texts([text for example in batch for text in example.texts])
        pixels, ids_BL, mask_BL = (tensor.to(ctx.device) for tensor in (pixels, ids_BL, mask_BL))
        scores_B22 = pair_scores(model, pixels, ids_BL, mask_BL, options).double().cpu()
        return [list(map(float, row)) for row in scores_B22.view(-1, 4)]

    scores_N22 = np.array(map_batches(ctx.examples, ctx.batch_size, ctx.ranks, score)).reshape(-1, 2, 2)
    texts, images = winoground_answers(scores_N22)
    answers = {"text_score": texts, "image_score": images, "group_score": texts & images}
    metrics = {name: 100.0 * float(right.mean()) for name, right in answers.items()}
    for tag in sorted({tag for example in ctx.examples for tag in example.tags[:1]}):
        has_tag = np.array([tag in example.tags[:1] for example in ctx.examples])
        metrics |= {f"{name}/{tag}": 100.0 * float(right[has_tag].mean()) for name, right in answers.items()}
    predictions = pa.table(
        {
            "example_id": [example.example_id for example in ctx.examples],
            "captions": [list(example.texts) for example in ctx.examples],
            "tags": [list(example.tags) for example in ctx.examples],
            "scores": scores_N22.reshape(-1, 4).tolist(),  # caption 0 with image 0 and 1, caption 1 with image 0 and 1
            **{name.replace("score", "right"): right for name, right in answers.items()},
        }
    )
    return TaskResult(
        metrics=metrics,
        predictions=predictions,
        data_digest=data_digest([f"{e.example_id}={'|'.join(e.texts)}" for e in ctx.examples]),
        intervals={name: bootstrap_interval(100.0 * right) for name, right in answers.items()},
        num_examples=len(ctx.examples),
        measured_as={"score": options.score, "ties": "wrong"},
    )


def pair_scores(
    model: TaskModel, images_BCHW: Tensor, ids_BL: Tensor, mask_BL: Tensor, options: WinogroundConfig
) -> Tensor:
    """(B, 2, 2) the score of each caption with each image; images and texts hold two rows an example."""
    base = model.base
    vision, text_BLD = base.encode_image(images_BCHW), base.encode_text(ids_BL, mask_BL)
    first = 2 * torch.arange(len(text_BLD) // 2, device=text_BLD.device)
    captions_P = (first[:, None] + torch.tensor([0, 0, 1, 1], device=first.device)).flatten()
    images_P = (first[:, None] + torch.tensor([0, 1, 0, 1], device=first.device)).flatten()
    if options.score == "cosine":
        image_BE, text_BE = base.project(vision, text_BLD)
        return (text_BE[captions_P] * image_BE[images_P]).sum(dim=1).view(-1, 2, 2)
    memory = base.image_memory(vision).select(images_P)
    logits_P2 = base.match(base.fuse(text_BLD[captions_P], mask_BL[captions_P], memory)).float()
    scores_P = logits_P2[:, 1] if options.score == "match" else logits_P2[:, 1] - logits_P2[:, 0]
    return scores_P.view(-1, 2, 2)


WINOGROUND = Task(evaluate=evaluate_winoground, check=check_winoground)
