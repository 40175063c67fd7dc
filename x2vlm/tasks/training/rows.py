"""One training row of a task: its media cut and augmented, its texts and its targets.

C channels, H W pixels, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from x2vlm.data.loading.config import AugmentConfig
from x2vlm.data.loading.operations import Operation, apply_operations
from x2vlm.data.loading.transforms import ImagePlan, cut_plan, plan_image
from x2vlm.data.randomness import Draws
from x2vlm.data.text.captions import mentions_a_side

if TYPE_CHECKING:
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual


@dataclass(frozen=True)
class PreparedRow:
    """A row of a batch. `pixels` uint8: (C, H, W) of an image, (F, C, H, W) of a clip, one entry per media.

    `operations`: the pending ones of every image or frame, in the order of `pixels`. `values`: numbers that a task's
    `collate` needs; `texts` are as written in the data, for the processor to clean and cut.
    """

    key: str
    pixels: Sequence[Tensor]
    operations: Sequence[tuple[Operation, ...]]
    texts: Sequence[str] = ()
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowPreparation:
    """How media of one row are augmented; `draws` are its own, a function of seed, pass and row."""

    augment: AugmentConfig
    image_res: int
    draws: Draws

    def may_flip(self, texts: Sequence[str]) -> bool:
        """Not if a text speaks of left or right (`AugmentConfig`)."""
        parity = self.augment.parity == "reference"
        return not (self.augment.careful_flip and mentions_a_side(list(texts), parity))

    def plan(self, visual: Visual, texts: Sequence[str]) -> ImagePlan:
        """Crop, mirror and operations."""
        return plan_image(*visual.size, self.draws, self.augment, self.may_flip(texts))

    def cut(self, visual: Visual, plan: ImagePlan) -> Tensor:
        """uint8 (C, H, W), or (F, C, H, W) of a clip, whose frames share the plan."""
        frames = [_cut(frame, plan, self.image_res, self.augment) for frame in visual.frames]
        return torch.stack(frames) if visual.is_clip else frames[0]

    def all_media(
        self, media: Sequence[Visual], texts: Sequence[str]
    ) -> tuple[list[Tensor], list[tuple[Operation, ...]]]:
        """Pixels of every image or clip, each with a plan of its own, and the pending operations of every frame."""
        pixels, operations = [], []
        for visual in media:
            plan = self.plan(visual, texts)
            pixels.append(self.cut(visual, plan))
            operations += [plan.operations] * len(visual.frames)
        return pixels, operations


def join_pixels(rows: Sequence[PreparedRow], number: int = 0) -> Tensor:
    """uint8 (B, C, H, W) or (B, F, C, H, W): media `number` of every row, its operations applied."""
    stacked = torch.stack([row.pixels[number] for row in rows])
    flat = stacked.flatten(0, stacked.ndim - 4)
    frames = [row.pixels[number].shape[0] if row.pixels[number].ndim == 4 else 1 for row in rows]
    first = [sum(_frames(pixels) for pixels in row.pixels[:number]) for row in rows]
    operations = tuple(
        item for row, start, count in zip(rows, first, frames, strict=True) for item in row.operations[start:][:count]
    )
    return apply_operations(flat, operations).view(*stacked.shape)


def join_texts(rows: Sequence[PreparedRow], processor: Processor, number: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, L) of text `number` of every row."""
    return processor.texts([row.texts[number] for row in rows])


def _frames(pixels: Tensor) -> int:
    return pixels.shape[0] if pixels.ndim == 4 else 1


def _cut(image: Image.Image, plan: ImagePlan, image_res: int, augment: AugmentConfig) -> Tensor:
    return cut_plan(torch.from_numpy(np.array(image)), plan, image_res, augment.parity)
