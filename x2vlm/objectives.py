"""The five losses of X2-VLM pre-training as plain functions of features and logits.

B rows, E width of the comparison space, K masked positions, V vocabulary, W ranks.
Where the reference computes something nobody would want, the default here is right and `parity="reference"` (or
`gradient="reference"`) repeats the reference, so that the two can be compared. All losses are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from x2vlm.batch import UNUSED_LABEL, Batch
from x2vlm.config import FrozenConfig
from x2vlm.models.fusion import VisionMemory
from x2vlm.models.precision import full_precision
from x2vlm.models.tokens import VisionTokens, join_rows

if TYPE_CHECKING:
    from x2vlm.models.x2vlm import X2VLM

Parity = Literal["fixed", "reference"]
ContrastiveGradient = Literal["true", "reference"] | float


class ObjectiveConfig(FrozenConfig):
    """Which losses are computed and where they follow the reference."""

    matching: bool = True
    contrastive_gradient: ContrastiveGradient = "true"
    box_loss_on_whole_images: bool = False
    parity: Parity = "fixed"


@dataclass(frozen=True)
class Gather:
    """How rows of other ranks are reached: `rows` returns those of all ranks in rank order, without a gradient."""

    rank: int
    world_size: int
    rows: Callable[[Tensor], Tensor]


def gather_over(group: dist.ProcessGroup | None = None) -> Gather:
    """A Gather over an initialised process group (default: all ranks). Every rank must bring equally many rows."""

    def rows(local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts)

    return Gather(dist.get_rank(group), dist.get_world_size(group), rows)


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

    Every rank computes the same value. Gradients are meant to be averaged over ranks afterwards, as DDP does; then
    `gradient` decides how the features' gradient relates to the one a single process with the whole batch would see:
    "true" equals it; "reference" is 1/W of it, because the reference's gather hands back only the local slice; a
    number is that factor, whatever W is (1/8 repeats the published base run). The temperature's is always the true
    one. Rows with equal `image_ids_B` share their target evenly. Memory is (B x W) squared: 268 MB at 8,192 rows.
    """
    with full_precision(image_BE):
        scale = _gradient_scale(gradient, 1 if gather is None else gather.world_size)
        image = _RowsOfAllRanks.apply(image_BE.float(), gather, scale)  # type: ignore[no-untyped-call]
        text = _RowsOfAllRanks.apply(text_BE.float(), gather, scale)  # type: ignore[no-untyped-call]
        ids = image_ids_B if image_ids_B is None or gather is None else gather.rows(image_ids_B)
        logits = image @ text.T / temperature.float()
        if ids is None:
            labels = torch.arange(len(logits), device=logits.device)
            return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        same = (ids[:, None] == ids[None, :]).float()
        target = same / same.sum(dim=1, keepdim=True)
        per_row = -(target * (log_softmax(logits, 1) + log_softmax(logits.T, 1))).sum(dim=1)
        return per_row.mean() / 2


def draw_negatives(
    image_BE: Tensor,
    text_BE: Tensor,
    temperature: Tensor,
    image_ids_B: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A hard negative image for every text, a hard negative text for every image, and which rows have one: (B,) each.

    Drawn from the rows of this rank with probability softmax(similarity / temperature) + 1e-5, never from rows of the
    same image. `generator` must live on the features' device. Nothing waits for the device.
    """
    with torch.no_grad(), full_precision(image_BE):
        similarity_BB = image_BE.float() @ text_BE.float().T / temperature.float()
        ids = image_ids_B if image_ids_B is not None else torch.arange(len(image_BE), device=image_BE.device)
        same_BB = ids[:, None] == ids[None, :]
        image_weights, text_weights = (negative_weights(s, same_BB) for s in (similarity_BB.T, similarity_BB))
        image_of_text = _multinomial(image_weights, generator)
        text_of_image = _multinomial(text_weights, generator)
        return image_of_text, text_of_image, ~same_BB.all(dim=1)


def negative_weights(similarity_BB: Tensor, same_BB: Tensor) -> Tensor:
    """Weights (B, B) to draw a negative for each row from: softmax + 1e-5, zero where `same_BB`."""
    return (similarity_BB.softmax(dim=1) + 1e-5).masked_fill(same_BB, 0.0)


def matching(logits_3B2: Tensor, has_negative_B: Tensor | None = None) -> Tensor:
    """Cross entropy of B matching pairs followed by 2 B negatives (wrong image, wrong text), 1:1:1.

    Rows without a negative contribute nothing, neither their pair nor their made-up negatives; no row left gives 0.
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
    """Cross entropy averaged over all masked words of the batch; labels of UNUSED_LABEL do not count, none gives 0."""
    total = cross_entropy(
        logits_BKV.flatten(0, 1).float(), labels_BK.flatten(), ignore_index=UNUSED_LABEL, reduction="sum"
    )
    return total / (labels_BK != UNUSED_LABEL).sum().clamp_min(1)


def box_losses(
    predicted_cxcywh_R4: Tensor, target_cxcywh_R4: Tensor, counts_R: Tensor, parity: Parity = "fixed"
) -> tuple[Tensor, Tensor]:
    """L1 (summed over the four numbers) and 1 - generalised IoU, both averaged over the rows where `counts_R`.

    No counted row gives 0 with a graph, and a box of negative size loses only its own IoU term. The reference divides
    0 by 0 and lets one such box switch off the term of the whole batch: `parity="reference"`.
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


def pretrain_losses(
    model: X2VLM,
    batch: Batch,
    negatives: tuple[Tensor, Tensor] | None = None,
    *,
    config: ObjectiveConfig | None = None,
    gather: Gather | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Unweighted losses of one batch: masked_lm; with pictures contrastive, matching; with regions box_l1, box_giou.

    `negatives` = (image index per text, text index per image) pins the pairs of the matching loss. The temperature is
    used as it is: clamp it before (`X2VLM.clamp_temperature`).
    """
    config = config or ObjectiveConfig()
    if batch.kind == "text":
        return {"masked_lm": masked_lm_pass(model, batch, None)}
    vision, whole = _encode_pixels(model, batch)
    text_BLD = model.encode_text(batch.text_ids_BL, batch.text_mask_BL)
    memory = model.remember(vision if whole is None else join_rows(vision, whole))
    rows = torch.arange(batch.num_rows, device=text_BLD.device)
    image_BE, text_BE = model.project(vision, text_BLD)
    losses = {
        "contrastive": contrastive(
            image_BE,
            text_BE,
            model.temperature,
            gather=gather,
            gradient=config.contrastive_gradient,
            # Regions of one image are different things: their texts are true negatives of each other here.
            image_ids_B=None if batch.kind == "region" else batch.image_ids_B,
        )
    }
    if config.matching:
        has_negative = None
        if negatives is None:
            *drawn, has_negative = draw_negatives(image_BE, text_BE, model.temperature, batch.image_ids_B, generator)
            negatives = (drawn[0], drawn[1])
        losses["matching"] = matching_pass(model, text_BLD, batch.text_mask_BL, memory, negatives, has_negative)
    losses["masked_lm"] = masked_lm_pass(model, batch, memory.select(rows) if whole is not None else memory)
    if whole is not None:
        fused = model.fuse(text_BLD, batch.text_mask_BL, memory.select(rows + batch.num_rows))
        losses["box_l1"], losses["box_giou"] = _box_pass(model, batch, fused, config)
    return losses


def _encode_pixels(model: X2VLM, batch: Batch) -> tuple[VisionTokens, VisionTokens | None]:
    """Image tokens of every text row and, for regions, the same rows described by their whole image."""
    assert batch.pixels is not None
    if batch.kind == "video":
        return model.encode_video(batch.pixels), None
    images = model.encode_image(batch.pixels)
    if batch.kind == "image":
        return images, None
    assert batch.image_of_R is not None
    assert batch.patch_mask_RP is not None
    return model.pool_regions(images, batch.image_of_R, batch.patch_mask_RP), images.select(batch.image_of_R)


def matching_pass(
    model: X2VLM,
    text_BLD: Tensor,
    text_mask_BL: Tensor,
    memory: VisionMemory,
    negatives: tuple[Tensor, Tensor],
    has_negative_B: Tensor | None,
) -> Tensor:
    """The matching loss from one fusion call on 3 B rows: own pairs, texts with wrong images, images with wrong texts.

    `negatives` are (image row per text, text row per image); `memory` holds at least the B images.
    """
    image_negative, text_negative = negatives
    rows = torch.arange(len(text_BLD), device=text_BLD.device)
    text_rows = torch.cat([rows, rows, text_negative])
    image_rows = torch.cat([rows, image_negative, rows])
    fused = model.fuse(text_BLD[text_rows], text_mask_BL[text_rows], memory.select(image_rows))
    return matching(model.match(fused), has_negative_B)


def masked_lm_pass(model: X2VLM, batch: Batch, memory: VisionMemory | None) -> Tensor:
    """The masked-word loss of the batch's texts, looking at `memory` (None: at the text alone)."""
    masked_BLD = model.encode_text(batch.masked_ids_BL, batch.text_mask_BL)
    fused = model.fuse(masked_BLD, batch.text_mask_BL, memory)
    return masked_lm(model.predict_words(fused, batch.masked_positions_BK), batch.masked_labels_BK)


def _box_pass(model: X2VLM, batch: Batch, fused: Tensor, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    assert batch.box_cxcywh_R4 is not None
    assert batch.is_whole_image_R is not None
    counts = ~batch.is_whole_image_R.bool()
    if config.box_loss_on_whole_images:
        counts = torch.ones_like(counts)
    return box_losses(model.locate(fused), batch.box_cxcywh_R4, counts, config.parity)


def _area(box_xyxy_R4: Tensor) -> Tensor:
    return (box_xyxy_R4[:, 2:] - box_xyxy_R4[:, :2]).prod(dim=1)


def _multinomial(weights_BB: Tensor, generator: torch.Generator | None) -> Tensor:
    """One draw per row with probability proportional to its weights; 0 for a row of zeros.

    `torch.multinomial` raises on such a row, and to find out it makes the host wait for the device. Dividing by
    exponential noise and taking the largest is the same distribution and does neither.
    """
    noise = torch.empty_like(weights_BB).exponential_(generator=generator)
    return (weights_BB / noise.clamp_min(torch.finfo(noise.dtype).tiny)).argmax(dim=1)


def _gradient_scale(gradient: ContrastiveGradient, world_size: int) -> float:
    """Factor on the local slice of the features' gradient, so that averaging over ranks gives what `gradient` asks."""
    if gradient == "true":
        return float(world_size)
    if gradient == "reference":
        return 1.0
    if isinstance(gradient, str):
        raise ValueError(f'contrastive gradient {gradient!r} is neither "true", "reference" nor a number')
    return gradient * world_size


class _RowsOfAllRanks(torch.autograd.Function):
    """Gathers rows; the backward pass keeps the local slice times `scale`, so it needs no communication.

    Enough because every rank computes the same full loss: the sum over ranks of local slices is the true gradient.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, gather: Gather | None, scale: float) -> Tensor:
        ctx.rows = slice(0, len(local)) if gather is None else slice(gather.rank * len(local), None)
        ctx.num_rows, ctx.scale = len(local), scale
        return local.clone() if gather is None else gather.rows(local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.rows][: ctx.num_rows] * ctx.scale, None, None
