"""Visual grounding: the box that the model predicts for a text, against the annotated one (X2-VLM 4.3.4).

Example: for "dog" on a 640 x 480 photo the box head says (cx, cy, w, h) of the squashed square; scaled back to
640 x 480 it is right when its intersection over union with the annotated box is at least 0.5.

B texts, M images of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import Tensor

from x2vlm.data.boxes import pixel_box
from x2vlm.data.loading.config import RegionConfig
from x2vlm.data.loading.operations import COLOUR_OPS
from x2vlm.data.loading.regions import draw_crop_around, place_boxes
from x2vlm.data.loading.transforms import ImagePlan, draw_operations
from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.objectives.box_losses import box_losses
from x2vlm.samples import Box
from x2vlm.tasks.config import GroundingConfig
from x2vlm.tasks.from_samples import grounding_examples
from x2vlm.tasks.scoring import bootstrap_interval, box_iou
from x2vlm.tasks.sharing import map_batches
from x2vlm.tasks.task import LossContext, Task, TaskContext, TaskResult, TaskTraining, data_digest
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.tasks.training.rows import PreparedRow, RowPreparation, join_pixels, join_texts

if TYPE_CHECKING:
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual
    from x2vlm.models.downstream.task_model import TaskModel


def check_grounding(examples: Sequence[Example], labels: Sequence[str], options: GroundingConfig) -> None:
    """ConfigError if an example is not one image, one text and a box."""
    for example in examples:
        counts = (len(example.media), len(example.texts))
        if counts != (1, 1) or example.box is None or example.kind != "image":
            raise ConfigError(
                f"example {example.example_id}: {counts[0]} {example.kind}s, {counts[1]} texts and "
                f"{'no' if example.box is None else 'a'} box; grounding takes an image, a text and a box"
            )


@torch.no_grad()
def evaluate_grounding(model: TaskModel, cfg: GroundingConfig, ctx: TaskContext) -> TaskResult:
    """Share of texts whose predicted box is right, and the mean IoU.

    Raises InvalidSample for an empty split, also if no text names one box of its image alone; ConfigError as
    `check_grounding`.
    """
    check_examples(ctx.examples, "grounding")
    check_grounding(ctx.examples, (), cfg)
    examples = _unambiguous(ctx.examples) if cfg.unambiguous else list(ctx.examples)
    if not examples:
        raise InvalidSample("empty_split", "grounding: every text names several boxes of its image")
    model.eval()
    boxes = _predict(model, ctx, examples, cfg.clip_boxes)
    targets = [example.box for example in examples if example.box is not None]
    ious = [box_iou(box, target, cfg.iou) for box, target in zip(boxes, targets, strict=True)]
    hits = [100.0 * (iou >= cfg.iou_threshold) for iou in ious]
    return TaskResult(
        metrics={"accuracy": sum(hits) / len(hits), "mean_iou_fraction": sum(ious) / len(ious)},
        predictions=prediction_table(examples, boxes, ious),
        data_digest=data_digest([example.example_id for example in examples]),
        intervals={"accuracy": bootstrap_interval(hits)},
        num_examples=len(examples),
        measured_as={
            "texts": "unambiguous" if cfg.unambiguous else "all",
            "iou": cfg.iou,
            "boxes": "clipped" if cfg.clip_boxes else "unclipped",
        },
    )


def prediction_table(examples: Sequence[Example], boxes: Sequence[Box], ious: Sequence[float]) -> pa.Table:
    """One row per example: its text, the box it was given, the annotated one, and their overlap."""
    targets = [example.box for example in examples if example.box is not None]
    return pa.table(
        {
            "example_id": [example.example_id for example in examples],
            "text": [example.texts[0] for example in examples],
            "box_xywh": [[box.x, box.y, box.w, box.h] for box in boxes],
            "target_xywh": [[box.x, box.y, box.w, box.h] for box in targets],
            "iou": ious,
        }
    )


def _unambiguous(examples: Sequence[Example]) -> list[Example]:
    """Those whose text stands once with their image."""
    counts = Counter((example.media[0], example.texts[0]) for example in examples)
    return [example for example in examples if counts[example.media[0], example.texts[0]] == 1]


def _predict(model: TaskModel, ctx: TaskContext, examples: Sequence[Example], clip: bool) -> list[Box]:
    """Predicted boxes in pixels of the oriented original."""

    def locate(batch: Sequence[Example]) -> list[list[float]]:
        inputs, visuals = batch_of(batch, ctx)
        located_B4 = locate_batch(model, *inputs).double().cpu().tolist()
        boxes = [pixel_box(row, *visual.size, clip) for row, visual in zip(located_B4, visuals, strict=True)]
        return [[box.x, box.y, box.w, box.h] for box in boxes]

    return [Box(*box) for box in map_by_image(examples, ctx, locate)]


def map_by_image(
    examples: Sequence[Example], ctx: TaskContext, work: Callable[[Sequence[Example]], list[list[float]]]
) -> list[list[float]]:
    """`map_batches` with examples of one image as neighbours, so that an image is encoded once; results in order."""
    places: dict[str, int] = {}
    for example in examples:
        places.setdefault(example.media[0], len(places))
    order = sorted(range(len(examples)), key=lambda number: places[examples[number].media[0]])
    found = map_batches([examples[number] for number in order], ctx.batch_size, ctx.ranks, work)
    by_number = dict(zip(order, found, strict=True))
    return [by_number[number] for number in range(len(examples))]


def batch_of(batch: Sequence[Example], ctx: TaskContext) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Visual]]:
    """Pixels of the distinct images, the image, ids and mask of each text; and the image that each text is about."""
    visuals = {example.media[0]: ctx.load(example.media[0]) for example in batch}
    row_of = {name: row for row, name in enumerate(visuals)}
    pixels_MCHW = ctx.processor.images([visual.frames[0] for visual in visuals.values()])
    image_of_B = torch.tensor([row_of[example.media[0]] for example in batch])
    ids_BL, mask_BL = ctx.processor.texts([example.texts[0] for example in batch])
    pixels_MCHW, image_of_B, ids_BL, mask_BL = (
        tensor.to(ctx.device) for tensor in (pixels_MCHW, image_of_B, ids_BL, mask_BL)
    )
    return (pixels_MCHW, image_of_B, ids_BL, mask_BL), [visuals[example.media[0]] for example in batch]


def locate_batch(model: TaskModel, pixels_MCHW: Tensor, image_of_B: Tensor, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Boxes (B, 4) as (cx, cy, w, h) in fractions of the image side; text b is about image `image_of_B[b]`."""
    vision = model.base.encode_image(pixels_MCHW).select(image_of_B)
    return model.base.locate(model.base.fuse(model.base.encode_text(ids_BL, mask_BL), mask_BL, vision))


def box_target(box: Box, plan: ImagePlan, image_res: int) -> tuple[float, float, float, float]:
    """(cx, cy, w, h) of the box in fractions of the cut image; InvalidSample if less than half of it is in there."""
    found = place_boxes([box], [0], plan.crop, plan.flipped, image_res, image_res, 1, RegionConfig(whole_pixels=False))
    if not found:
        raise InvalidSample("no_usable_box", f"{box} is not inside the image")
    return found[0].box_cxcywh


def grounding_losses(predicted_B4: Tensor, target_B4: Tensor) -> dict[str, Tensor]:
    """L1 and 1 - generalised IoU of (cx, cy, w, h), averaged over the rows."""
    l1, giou = box_losses(predicted_B4, target_B4, torch.ones(len(target_B4), device=target_B4.device))
    return {"box_l1": l1, "box_giou": giou}


def _rows(examples: Sequence[Example], options: GroundingConfig) -> list[tuple[int, int]]:
    return [(index, 0) for index in range(len(examples))]


def _prepare(
    example: Example, item: int, media: Sequence[Visual], preparation: RowPreparation, options: GroundingConfig
) -> PreparedRow:
    """A random crop with all of the box in it, mirrored with it unless the text speaks of a side; colours changed.

    Operations that move pixels are left out: the box would stay behind.
    """
    (visual,), box = media, example.box
    assert box is not None
    augment, draws = preparation.augment, preparation.draws
    width, height = visual.size
    if box.x < 0 or box.y < 0 or box.x + box.w > width or box.y + box.h > height or box.area <= 0:
        raise InvalidSample("no_usable_box", f"example {example.example_id}: {box} in {width} x {height} pixels")
    crop = draw_crop_around(box, width, height, draws)
    flipped = draws.chance(augment.flip_prob) and preparation.may_flip(example.texts)
    plan = ImagePlan(crop, flipped, draw_operations(draws, augment, COLOUR_OPS))
    target = box_target(box, plan, preparation.image_res)
    pixels = preparation.cut(visual, plan)
    return PreparedRow(example.example_id, [pixels], [plan.operations], example.texts, values={"box": target})


def _collate(rows: Sequence[PreparedRow], processor: Processor, options: GroundingConfig) -> TaskBatch:
    ids_BL, mask_BL = join_texts(rows, processor)
    box_B4 = torch.tensor([list(row.values["box"]) for row in rows], dtype=torch.float32)
    tensors = {"pixels": join_pixels(rows), "ids": ids_BL, "mask": mask_BL, "box": box_B4}
    return TaskBatch([row.key for row in rows], tensors)


def _losses(model: TaskModel, batch: TaskBatch, options: GroundingConfig, context: LossContext) -> dict[str, Tensor]:
    ids_BL, mask_BL, target_B4 = (batch.tensors[name] for name in ("ids", "mask", "box"))
    rows_B = torch.arange(len(ids_BL), device=ids_BL.device)
    return grounding_losses(locate_batch(model, batch.pixels(), rows_B, ids_BL, mask_BL), target_B4)


GROUNDING = Task(
    evaluate=evaluate_grounding,
    training=TaskTraining(rows=_rows, prepare=_prepare, collate=_collate, losses=_losses),
    check=check_grounding,
    from_samples=grounding_examples,
)
