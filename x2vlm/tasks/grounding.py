"""Zero-shot visual grounding: the box that the model predicts for a text, against the annotated one (X2-VLM 4.3.4).

Example: for "dog" on a 640 x 480 photo the box head says (cx, cy, w, h) of the squashed square; scaled back to
640 x 480 it is right when its intersection over union with the annotated box is at least 0.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import torch

from x2vlm.data.boxes import pixel_box
from x2vlm.data.text.texts import concept_text
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box, Concept, Sample
from x2vlm.tasks.config import GroundingConfig
from x2vlm.tasks.scoring import bootstrap_interval, box_iou
from x2vlm.tasks.task import Task, TaskContext, TaskResult, data_digest

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.models.x2vlm import X2VLM


@torch.no_grad()
def evaluate_grounding(model: X2VLM, cfg: GroundingConfig, ctx: TaskContext) -> TaskResult:
    """Fraction of texts whose predicted box is right, and the mean IoU, over the concepts of all samples of `ctx`.

    Raises InvalidSample if no concept remains.
    """
    examples = [(sample, concept) for sample in ctx.samples for concept in _questions(sample, cfg.unambiguous)]
    if not examples:
        raise InvalidSample("empty_split", "grounding needs held-out samples with boxes; there are none")
    model.eval()
    boxes = [
        box
        for sample in ctx.samples
        for box in _predict(model, ctx, sample, _questions(sample, cfg.unambiguous), cfg.clip_boxes)
    ]
    ious = [box_iou(box, concept.box, cfg.iou) for box, (_, concept) in zip(boxes, examples, strict=True)]
    hits = [100.0 * (iou >= cfg.iou_threshold) for iou in ious]
    ids = [f"{sample.key}#{concept.annotation_id}" for sample, concept in examples]
    predictions = pa.table(
        {
            "key": [sample.key for sample, _ in examples],
            "annotation_id": [concept.annotation_id for _, concept in examples],
            "text": [concept_text(concept) for _, concept in examples],
            "box_xywh": [[box.x, box.y, box.w, box.h] for box in boxes],
            "target_xywh": [[c.box.x, c.box.y, c.box.w, c.box.h] for _, c in examples],
            "iou": ious,
        }
    )
    return TaskResult(
        metrics={"accuracy": sum(hits) / len(hits), "mean_iou_fraction": sum(ious) / len(ious)},
        predictions=predictions,
        data_digest=data_digest(ids),
        intervals={"accuracy": bootstrap_interval(hits)},
        num_examples=len(examples),
        measured_as={
            "texts": "unambiguous" if cfg.unambiguous else "all",
            "iou": cfg.iou,
            "boxes": "clipped" if cfg.clip_boxes else "unclipped",
        },
    )


def _questions(sample: Sample, unambiguous: bool) -> list[Concept]:
    texts = [concept_text(concept) for concept in sample.concepts]
    return [
        concept
        for concept, text in zip(sample.concepts, texts, strict=True)
        if not unambiguous or texts.count(text) == 1
    ]


def _predict(model: X2VLM, ctx: TaskContext, sample: Sample, concepts: list[Concept], clip: bool) -> list[Box]:
    """Predicted boxes in pixels of the oriented original, one image pass for all concepts of a sample."""
    if not concepts:
        return []
    if sample.media is None:
        raise InvalidSample("missing_media", f"sample {sample.key} has no media")
    pixels = ctx.processor.images([ctx.load_image(sample)]).to(ctx.device)
    vision = model.encode_image(pixels).select(torch.zeros(len(concepts), dtype=torch.long, device=ctx.device))
    ids_BL, mask_BL = (tensor.to(ctx.device) for tensor in ctx.processor.texts([concept_text(c) for c in concepts]))
    fused = model.fuse(model.encode_text(ids_BL, mask_BL), mask_BL, vision)
    width, height = sample.media.width, sample.media.height
    return [pixel_box(row, width, height, clip) for row in model.locate(fused).double().cpu().tolist()]


GROUNDING = Task(evaluate=evaluate_grounding)
