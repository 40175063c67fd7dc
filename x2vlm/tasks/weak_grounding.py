"""Visual grounding by a model that never saw a box: where it looks to match text and image (X-VLM, RefCOCO+ weakly).

Example: for "the dog on the left" the gradient of the matching logit says which image tokens its attention to made the
text match; of the boxes that a detector proposes, the one with the densest map wins. Fine-tuning uses texts and images
alone, with the losses of retrieval.
B texts, M images, H heads, L text tokens, P patches of a G x G grid, N = P + 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError
from x2vlm.samples import Box
from x2vlm.tasks.config import WeakGroundingConfig
from x2vlm.tasks.grounding import batch_of, map_by_image, prediction_table
from x2vlm.tasks.matching.learning import RETRIEVAL_TRAINING
from x2vlm.tasks.scoring import bootstrap_interval, box_iou
from x2vlm.tasks.task import Task, TaskContext, TaskResult, data_digest

if TYPE_CHECKING:
    from x2vlm.models.downstream.task_model import TaskModel


def check_weak_grounding(examples: Sequence[Example], labels: Sequence[str], options: WeakGroundingConfig) -> None:
    """ConfigError if an example is not an image, a text, a box, and proposals of positive size.

    Splits to train on need neither box nor proposals.
    """
    for example in examples:
        counts = (len(example.media), len(example.texts))
        is_asked = not example.split.startswith("train")
        if counts != (1, 1) or example.kind != "image" or (is_asked and not (example.box and example.proposals)):
            raise ConfigError(
                f"example {example.example_id}: {counts[0]} {example.kind}s, {counts[1]} texts, "
                f"{'no' if example.box is None else 'a'} box and {len(example.proposals)} proposals; weakly supervised "
                "grounding takes an image, a text, a box, and at least one proposal of a detector"
            )
        empty = [box for box in example.proposals if box.w <= 0 or box.h <= 0]
        if empty:
            raise ConfigError(f"example {example.example_id}: the proposal {empty[0]} is empty; leave it out")


def evaluate_weak_grounding(model: TaskModel, options: WeakGroundingConfig, ctx: TaskContext) -> TaskResult:
    """Share of texts whose best proposal is right; `proposal_recall`: of those for which a right one was proposed.

    Raises InvalidSample for an empty split, ConfigError as `check_weak_grounding` and if the model has no such layer.
    """
    check_examples(ctx.examples, "weak_grounding")
    check_weak_grounding(ctx.examples, (), options)
    layer = map_layer_of(model, options)
    model.eval()

    def choose(batch: Sequence[Example]) -> list[list[float]]:
        inputs, visuals = batch_of(batch, ctx)
        maps_BGG = matching_maps(model, *inputs, layer)
        return [
            proposal_scores(map_GG, visual.size, example.proposals, options.area_power)
            for map_GG, visual, example in zip(maps_BGG, visuals, batch, strict=True)
        ]

    scores = map_by_image(ctx.examples, ctx, choose)
    chosen = [e.proposals[best_of(each)] for e, each in zip(ctx.examples, scores, strict=True)]
    targets = [example.box for example in ctx.examples if example.box is not None]
    ious = [box_iou(box, target, options.iou) for box, target in zip(chosen, targets, strict=True)]
    hits = [100.0 * (iou >= options.iou_threshold) for iou in ious]
    possible = [
        any(box_iou(box, target, options.iou) >= options.iou_threshold for box in example.proposals)
        for example, target in zip(ctx.examples, targets, strict=True)
    ]
    return TaskResult(
        metrics={
            "accuracy": sum(hits) / len(hits),
            "mean_iou_fraction": sum(ious) / len(ious),
            "proposal_recall": 100.0 * sum(possible) / len(possible),
        },
        predictions=prediction_table(ctx.examples, chosen, ious),
        data_digest=data_digest([example.example_id for example in ctx.examples]),
        intervals={"accuracy": bootstrap_interval(hits)},
        num_examples=len(hits),
        measured_as={"iou": options.iou, "map": f"fusion layer {layer} of {model.config.fusion.num_layers}"},
    )


def map_layer_of(model: TaskModel, options: WeakGroundingConfig) -> int:
    """The fusion layer that is read; ConfigError if the model has none of that number."""
    num_layers = model.config.fusion.num_layers
    layer = num_layers // 2 if options.map_layer is None else options.map_layer
    if layer >= num_layers:
        raise ConfigError(f"map_layer is {layer}, the model has fusion layers 0 to {num_layers - 1}")
    return layer


def matching_maps(
    model: TaskModel, pixels_MCHW: Tensor, image_of_B: Tensor, ids_BL: Tensor, mask_BL: Tensor, layer: int
) -> Tensor:
    """(B, G, G) attention x gradient of the matching logit where that is positive; mean over heads and text tokens."""
    base = model.base
    with torch.no_grad():
        vision = base.encode_image(pixels_MCHW)
        memory, text_BLD = base.image_memory(vision).select(image_of_B), base.encode_text(ids_BL, mask_BL)
    fused_BLD, map_BHLN = base.fusion.forward_with_map(text_BLD, mask_BL, memory, layer)
    with torch.enable_grad():
        (gradient_BHLN,) = torch.autograd.grad(base.match(fused_BLD)[:, 1].sum(), map_BHLN)
    seen_BHLP = (map_BHLN.detach() * gradient_BHLN.clamp_min(0))[..., 1:]  # without the summary token
    real_B1L1 = mask_BL[:, None, :, None].to(seen_BHLP.dtype)
    mean_BP = (seen_BHLP * real_B1L1).sum(dim=(1, 2)) / (seen_BHLP.shape[1] * real_B1L1.sum(dim=(1, 2)))
    grid = math.isqrt(mean_BP.shape[1])
    return mean_BP.view(-1, grid, grid)


def proposal_scores(map_GG: Tensor, size: tuple[int, int], proposals: Sequence[Box], area_power: float) -> list[float]:
    """For each box the sum of the map, resized to the image's `size` (width, height), in it / area ** `area_power`.

    Pixels are whole ones, from the truncated left and top edges to the truncated right and bottom ones.
    """
    width, height = size
    map_HW = interpolate(map_GG[None, None].float(), (height, width), mode="bicubic")[0, 0].double().cpu()
    sums = torch.zeros(height + 1, width + 1, dtype=torch.float64)
    sums[1:, 1:] = map_HW.cumsum(0).cumsum(1)
    scores = []
    for box in proposals:
        left, right = (min(max(int(edge), 0), width) for edge in (box.x, box.x + box.w))
        top, bottom = (min(max(int(edge), 0), height) for edge in (box.y, box.y + box.h))
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        scores.append(float(inside) / box.area**area_power)
    return scores


def best_of(scores: Sequence[float]) -> int:
    """The number of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda number: (scores[number], -number))


WEAK_GROUNDING = Task(evaluate=evaluate_weak_grounding, training=RETRIEVAL_TRAINING, check=check_weak_grounding)
