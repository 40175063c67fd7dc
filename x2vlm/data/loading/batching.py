"""Rows and pixels to tensors: the batch that the losses read.

B rows, M images of a region batch, R region rows, L tokens, K masked positions, P patches, C H W pixels, F frames.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from x2vlm.data.kinds import BatchKind
from x2vlm.data.loading.batch import UNUSED_LABEL, Batch
from x2vlm.data.loading.examples import TextRow, VisualInput

# Token rows are padded to a multiple of this: few distinct shapes, little padding for short texts.
LENGTH_MULTIPLE = 8


def visual_batch(kind: BatchKind, rows: Sequence[TextRow], images: Sequence[VisualInput], max_masks: int) -> Batch:
    """An image (B, C, H, W) or video (B, F, C, H, W) batch: row b of the texts belongs to image b."""
    return Batch(kind=kind, **_pixels(images), **_texts(rows, max_masks))


def region_batch(
    rows: Sequence[TextRow], image_of: Sequence[int], images: Sequence[VisualInput], max_masks: int
) -> Batch:
    """A region batch: `image_of` is the index of each row's image among the M images."""
    regions = [row.region for row in rows if row.region is not None]
    if len(regions) != len(rows):
        raise ValueError("a region batch holds rows without a region")
    return Batch(
        kind="region",
        image_of_R=torch.tensor(list(image_of), dtype=torch.long),
        image_of=tuple(image_of),
        patch_mask_RP=torch.from_numpy(np.stack([region.patch_mask_P for region in regions])),
        box_cxcywh_R4=torch.tensor([region.box_cxcywh for region in regions], dtype=torch.float32),
        is_whole_image_R=torch.tensor([region.is_whole_image for region in regions]),
        **_pixels(images),
        **_texts(rows, max_masks),
    )


def _pixels(images: Sequence[VisualInput]) -> dict[str, Any]:
    return {
        "pixels": torch.stack([image.pixels for image in images]),
        "operations": tuple(own for image in images for own in image.operations),
    }


def _texts(rows: Sequence[TextRow], max_masks: int) -> dict[str, Any]:
    longest = max(len(row.ids) for row in rows)
    length = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return {
        "keys": [row.key for row in rows],
        "lengths": tuple(len(row.ids) for row in rows),
        "num_masked": tuple(len(row.masked.positions) for row in rows),
        "image_ids_B": torch.tensor([row.image_id for row in rows], dtype=torch.long),
        "text_ids_BL": _padded([row.ids for row in rows], length, 0),
        "text_mask_BL": _padded([[1] * len(row.ids) for row in rows], length, 0),
        "masked_ids_BL": _padded([row.masked.ids for row in rows], length, 0),
        "masked_positions_BK": _padded([row.masked.positions for row in rows], max_masks, 0),
        "masked_labels_BK": _padded([row.masked.labels for row in rows], max_masks, UNUSED_LABEL),
    }


def _padded(rows: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
    padded = np.full((len(rows), length), filler, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)
