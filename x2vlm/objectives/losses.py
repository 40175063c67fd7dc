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

_MAX_TEXT = 1024  # tokens of the longest text that `text_keys` can tell apart


def contrastive(
    image_BE: Tensor,
    text_BE: Tensor,
    temperature: Tensor,
    *,
    gather: Gather | None = None,
    gradient: ContrastiveGradient = "true",
    image_ids_B: Tensor | None = None,
    text_keys_B: Tensor | None = None,
) -> Tensor:
    """Mean of image-to-text and text-to-image cross entropy over the rows of all ranks (X2-VLM 3.3.1).

    Every rank computes the same value. Gradients must be averaged over ranks afterwards, as DDP does; then `gradient`
    sets the features' gradient relative to that of a single process with the whole batch: "true" equals it; "reference"
    is 1/W of it, because the backward pass of the reference's gather returns only the local slice; a number is that
    factor for any W (1/8 repeats the published base run). The temperature's is always the true one. The target is split
    evenly among rows with equal `image_ids_B`. Rows of equal `text_keys_B` (`text_keys`) that are no targets of each
    other are not compared. Memory is (B x W) squared: 268 MB at 8,192 rows.
    """
    with full_precision(image_BE):
        scale = _gradient_scale(gradient, 1 if gather is None else gather.world_size)
        image = rows_of_all_ranks(image_BE.float(), gather, scale)
        text = rows_of_all_ranks(text_BE.float(), gather, scale)
        ids = image_ids_B if image_ids_B is None or gather is None else gather.rows(image_ids_B)
        logits = image @ text.T / temperature.float()
        if text_keys_B is not None:
            return _without_equal_texts(logits, ids, text_keys_B if gather is None else gather.rows(text_keys_B))
        if ids is None:
            labels = torch.arange(len(logits), device=logits.device)
            return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        same = (ids[:, None] == ids[None, :]).float()
        target = same / same.sum(dim=1, keepdim=True)
        per_row = -(target * (log_softmax(logits, 1) + log_softmax(logits.T, 1))).sum(dim=1)
        return per_row.mean() / 2


def _without_equal_texts(logits_GG: Tensor, ids_G: Tensor | None, keys_G: Tensor) -> Tensor:
    """The contrastive loss of G rows, where equal texts are no negatives of each other."""
    rows = torch.arange(len(logits_GG), device=logits_GG.device) if ids_G is None else ids_G
    is_target = rows[:, None] == rows[None, :]
    is_left_out = (keys_G[:, None] == keys_G[None, :]) & ~is_target
    logits_GG = logits_GG.masked_fill(is_left_out, -torch.inf)
    total = log_softmax(logits_GG, 1) + log_softmax(logits_GG.T, 1)
    per_row = -torch.where(is_target, total, 0.0).sum(dim=1) / is_target.sum(dim=1)
    return per_row.mean() / 2


def text_keys(ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """(B,) a number for every text, equal for equal tokens, whatever their padding, without synchronisation.

    A sum of ids times fixed random odd 64-bit factors: two different texts agree with a probability of about 2^-63.
    """
    generator = torch.Generator().manual_seed(20221122)
    length = ids_BL.shape[1]
    drawn = torch.randint(-(2**62), 2**62, (_MAX_TEXT,), generator=generator) * 2 + 1
    factors_L = drawn[:length].to(ids_BL.device, non_blocking=True)
    return ((ids_BL.long() + 1) * mask_BL.bool() * factors_L).sum(dim=1)


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
