"""The losses of X2-VLM pre-training as plain functions of features and logits; boxes have a file of their own.

B rows, E width of the comparison space, K masked positions, V vocabulary, W ranks.
Where the reference is wrong, the default here is correct and `parity="reference"` (or `gradient="reference"`)
reproduces the reference, so that the two can be compared. All losses are computed in float32.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from x2vlm.data.loading.batch import UNUSED_LABEL
from x2vlm.models.blocks.precision import full_precision
from x2vlm.objectives.across_ranks import Gather, rows_of_all_ranks
from x2vlm.objectives.config import ContrastiveGradient


def contrastive(
    image_BE: Tensor,
    text_BE: Tensor,
    temperature: Tensor,
    *,
    gather: Gather | None = None,
    gradient: ContrastiveGradient = "true",
    image_ids_B: Tensor | None = None,
) -> Tensor:
    """Mean of image-to-text and text-to-image cross entropy over the rows of all ranks (X2-VLM 3.3.1).

    Every rank computes the same value. Gradients must be averaged over ranks afterwards, as DDP does; then `gradient`
    sets the features' gradient relative to that of a single process with the whole batch: "true" equals it; "reference"
    is 1/W of it, because the backward pass of the reference's gather returns only the local slice; a number is that
    factor for any W (1/8 repeats the published base run). The temperature's is always the true one. The target is split
    evenly among rows with equal `image_ids_B`. Memory is (B x W) squared: 268 MB at 8,192 rows.
    """
    with full_precision(image_BE):
        scale = _gradient_scale(gradient, 1 if gather is None else gather.world_size)
        image = rows_of_all_ranks(image_BE.float(), gather, scale)
        text = rows_of_all_ranks(text_BE.float(), gather, scale)
        ids = image_ids_B if image_ids_B is None or gather is None else gather.rows(image_ids_B)
        logits = image @ text.T / temperature.float()
        if ids is None:
            labels = torch.arange(len(logits), device=logits.device)
            return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        same = (ids[:, None] == ids[None, :]).float()
        target = same / same.sum(dim=1, keepdim=True)
        per_row = -(target * (log_softmax(logits, 1) + log_softmax(logits.T, 1))).sum(dim=1)
        return per_row.mean() / 2


def matching(logits_3B2: Tensor, has_negative_B: Tensor | None = None) -> Tensor:
    """Cross entropy of B matching pairs followed by 2 B negatives (wrong image, wrong text), 1:1:1.

    Rows without a negative contribute nothing, neither as a pair nor as negatives; no row left gives 0.
    """
    num_rows = len(logits_3B2) // 3
    labels = torch.zeros(len(logits_3B2), dtype=torch.long, device=logits_3B2.device)
    labels[:num_rows] = 1
    per_row = cross_entropy(logits_3B2.float(), labels, reduction="none")
    if has_negative_B is None:
        return per_row.mean()
    weight = has_negative_B.float().repeat(3)
    return (per_row * weight).sum() / weight.sum().clamp_min(1)


def masked_lm(logits_BKV: Tensor, labels_BK: Tensor) -> Tensor:
    """Cross entropy averaged over all masked tokens of the batch; labels of UNUSED_LABEL do not count, none gives 0."""
    total = cross_entropy(
        logits_BKV.flatten(0, 1).float(), labels_BK.flatten(), ignore_index=UNUSED_LABEL, reduction="sum"
    )
    return total / (labels_BK != UNUSED_LABEL).sum().clamp_min(1)


def _gradient_scale(gradient: ContrastiveGradient, world_size: int) -> float:
    """Factor on the local slice of the features' gradient, so that the average over ranks is as `gradient` sets it."""
    if gradient == "true":
        return float(world_size)
    if gradient == "reference":
        return 1.0
    if isinstance(gradient, str):
        raise ValueError(f'contrastive gradient {gradient!r} is neither "true", "reference" nor a number')
    return gradient * world_size
