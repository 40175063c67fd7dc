"""The two losses of predicted boxes, and generalised IoU (arXiv 1902.09630) row by row.

R rows. Boxes are (cx, cy, w, h) or corners (left, top, right, bottom), in fractions of the image side.
"""

import torch
from torch import Tensor

from x2vlm.objectives.config import Parity


def box_losses(
    predicted_cxcywh_R4: Tensor, target_cxcywh_R4: Tensor, counts_R: Tensor, parity: Parity = "fixed"
) -> tuple[Tensor, Tensor]:
    """L1 (summed over the four numbers) and 1 - generalised IoU, both averaged over the rows where `counts_R`.

    No counted row gives 0 with a graph, and a box of negative size only loses its own IoU term. The reference divides
    0 by 0, and one such box disables the term of the whole batch: `parity="reference"`.
    """
    predicted, target, weight_R = predicted_cxcywh_R4.float(), target_cxcywh_R4.float(), counts_R.float()
    l1_R = (predicted - target).abs().sum(dim=1)
    sound_R = (predicted[:, 2:] >= 0).all(dim=1) & (target[:, 2:] >= 0).all(dim=1)
    if parity == "reference":
        sound_R = sound_R.all().expand_as(sound_R)
    giou_R = generalised_iou(to_xyxy(predicted), to_xyxy(target))
    count = weight_R.sum() if parity == "reference" else weight_R.sum().clamp_min(1)
    return (l1_R * weight_R).sum() / count, (torch.where(sound_R, 1 - giou_R, 0.0) * weight_R).sum() / count


def to_xyxy(box_cxcywh_R4: Tensor) -> Tensor:
    """Corners (left, top, right, bottom) of centre-and-size boxes."""
    centre, size = box_cxcywh_R4[:, :2], box_cxcywh_R4[:, 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def generalised_iou(first_xyxy_R4: Tensor, second_xyxy_R4: Tensor) -> Tensor:
    """Generalised IoU (R,) of boxes row by row, in [-1, 1]; two empty boxes give a finite value."""
    smallest = 1e-12  # far below the area of one pixel of any image; keeps 0/0 out of the backward pass
    area_first, area_second = _area(first_xyxy_R4), _area(second_xyxy_R4)
    inner_size = torch.minimum(first_xyxy_R4[:, 2:], second_xyxy_R4[:, 2:]) - torch.maximum(
        first_xyxy_R4[:, :2], second_xyxy_R4[:, :2]
    )
    outer_size = torch.maximum(first_xyxy_R4[:, 2:], second_xyxy_R4[:, 2:]) - torch.minimum(
        first_xyxy_R4[:, :2], second_xyxy_R4[:, :2]
    )
    inner = inner_size.clamp_min(0).prod(dim=1)
    outer = outer_size.clamp_min(0).prod(dim=1)
    union = area_first + area_second - inner
    return inner / union.clamp_min(smallest) - (outer - union) / outer.clamp_min(smallest)


def _area(box_xyxy_R4: Tensor) -> Tensor:
    return (box_xyxy_R4[:, 2:] - box_xyxy_R4[:, :2]).prod(dim=1)
