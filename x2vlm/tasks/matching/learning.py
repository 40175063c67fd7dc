"""Fine-tuning for retrieval: contrastive and matching losses where several captions share an image (X2-VLM 4.3.1).

A row is one caption with its image or clip. B rows of this process, G rows of all processes, E width of the comparison
space, L tokens, D text width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x2vlm.data.task_examples import Example
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.across_ranks import Gather, NegativeGroup
from x2vlm.objectives.losses import contrastive, matching
from x2vlm.objectives.negatives import draw_negatives
from x2vlm.tasks.classification import encode_media
from x2vlm.tasks.config import RetrievalConfig, WeakGroundingConfig
from x2vlm.tasks.task import LossContext, TaskTraining
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.tasks.training.rows import PreparedRow, RowPreparation, join_pixels, join_texts

if TYPE_CHECKING:
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual
    from x2vlm.models.downstream.task_model import TaskModel

Options = RetrievalConfig | WeakGroundingConfig
Negatives = tuple[Tensor, Tensor, Tensor | None]  # image of each text, text of each image, which rows have them


def shown_by(example: Example) -> str:
    """What the image of an example shows: equal for examples whose captions describe each other's images."""
    return f"group:{example.group}" if example.group else f"media:{example.media[0]}"


def image_number(example: Example) -> int:
    """52 bits of a hash of `shown_by`, alike on all processes: two of 100,000 images agree by chance with 1e-6."""
    return int.from_bytes(hashlib.sha256(shown_by(example).encode()).digest()[:7], "big") >> 4


def retrieval_losses(
    model: TaskModel,
    vision: VisionTokens,
    ids_BL: Tensor,
    mask_BL: Tensor,
    image_ids_B: Tensor,
    *,
    gather: Gather | None = None,
    group: NegativeGroup | None = None,
    generator: torch.Generator | None = None,
    negatives: Negatives | None = None,
) -> dict[str, Tensor]:
    """`contrastive`, over the rows of all processes, its target spread evenly over equal `image_ids_B`; and `matching`.

    Negatives never share the image id; they are drawn from the rows of this process, or of a `group`, unless
    `negatives` says which.
    """
    base = model.base
    text_BLD = base.encode_text(ids_BL, mask_BL)
    image_BE, text_BE = base.project(vision, text_BLD)
    loss = contrastive(image_BE, text_BE, base.temperature, gather=gather, image_ids_B=image_ids_B)
    image_of_text, text_of_image, has_negative_B = negatives or draw_negatives(
        image_BE, text_BE, base.temperature, image_ids_B, generator, None if group is None else group.gather
    )
    logits = matching_logits(model, vision, text_BLD, mask_BL, (image_of_text, text_of_image), group)
    return {"contrastive": loss, "matching": matching(logits, has_negative_B)}


def matching_logits(
    model: TaskModel,
    vision: VisionTokens,
    text_BLD: Tensor,
    mask_BL: Tensor,
    negatives: tuple[Tensor, Tensor],
    group: NegativeGroup | None = None,
) -> Tensor:
    """Logits (3 B, 2): pairs, then texts with a wrong image, then images with a wrong text.

    `negatives` count the rows of `group`, if there is one. Keys of an image are projected once for all its pairs.
    """
    first, mask = 0, mask_BL.bool()
    texts_GLD, mask_GL, images = text_BLD, mask, vision
    if group is not None:
        first = group.gather.rank * len(text_BLD)
        texts_GLD, lengths_G = group.gather_texts(text_BLD, mask.sum(dim=1))
        mask_GL = torch.arange(texts_GLD.shape[1], device=mask.device) < lengths_G[:, None]
        images = group.gather_images(vision)
        missing = texts_GLD.shape[1] - text_BLD.shape[1]
        text_BLD = torch.nn.functional.pad(text_BLD, (0, 0, 0, missing))
        mask = torch.nn.functional.pad(mask, (0, missing))
    image_of_text, text_of_image = negatives
    own = torch.arange(len(text_BLD), device=mask.device)
    memory = model.base.image_memory(images).select(torch.cat([first + own, image_of_text, first + own]))
    texts = torch.cat([text_BLD, text_BLD, texts_GLD[text_of_image]])
    fused = model.base.fuse(texts, torch.cat([mask, mask, mask_GL[text_of_image]]), memory)
    return model.base.match(fused)


def _rows(examples: Sequence[Example], options: Options) -> list[tuple[int, int]]:
    return [(index, turn) for index, example in enumerate(examples) for turn in range(len(example.texts))]


def _prepare(
    example: Example, item: int, media: Sequence[Visual], preparation: RowPreparation, options: Options
) -> PreparedRow:
    texts = (example.texts[item],)
    pixels, operations = preparation.all_media(media, texts)
    return PreparedRow(
        example.example_id, pixels, operations, texts, values={"image_id": [float(image_number(example))]}
    )


def _collate(rows: Sequence[PreparedRow], processor: Processor, options: Options) -> TaskBatch:
    ids_BL, mask_BL = join_texts(rows, processor)
    image_ids_B = torch.tensor([row.values["image_id"][0] for row in rows], dtype=torch.float64).long()
    tensors = {"pixels": join_pixels(rows), "ids": ids_BL, "mask": mask_BL, "image_ids": image_ids_B}
    return TaskBatch([row.key for row in rows], tensors)


def _losses(model: TaskModel, batch: TaskBatch, options: Options, context: LossContext) -> dict[str, Tensor]:
    gather = context.ranks.gather()
    group = None
    if gather is not None and options.negatives == "all":
        ids_BL = batch.tensors["ids"]
        length = int(gather.rows(torch.tensor([ids_BL.shape[1]], device=ids_BL.device)).max())
        group = NegativeGroup(gather, length)
    return retrieval_losses(
        model,
        encode_media(model, batch.pixels()),
        batch.tensors["ids"],
        batch.tensors["mask"],
        batch.tensors["image_ids"],
        gather=gather,
        group=group,
        generator=context.generator,
    )


RETRIEVAL_TRAINING = TaskTraining(rows=_rows, prepare=_prepare, collate=_collate, losses=_losses, compares_rows=True)
