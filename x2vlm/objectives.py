"""The five losses of X2-VLM pre-training as plain functions of features and logits.

B rows, E width of the comparison space, K masked positions, V vocabulary, W ranks.
Where the reference computes something nobody would want, the default here is right and `parity="reference"` (or
`gradient="reference"`) repeats the reference, so that the two can be compared. All losses are computed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from x2vlm.across_ranks import Gather, NegativeGroup, rows_of_all_ranks
from x2vlm.batch import UNUSED_LABEL, Batch
from x2vlm.box_losses import box_losses
from x2vlm.models.fusion import VisionMemory
from x2vlm.models.precision import full_precision
from x2vlm.models.tokens import VisionTokens, join_rows
from x2vlm.objective_config import ContrastiveGradient, ObjectiveConfig

if TYPE_CHECKING:
    from x2vlm.models.x2vlm import X2VLM


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


def draw_negatives(
    image_BE: Tensor,
    text_BE: Tensor,
    temperature: Tensor,
    image_ids_B: Tensor | None = None,
    generator: torch.Generator | None = None,
    group: Gather | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A hard negative image for every text, a hard negative text for every image, and which rows have one: (B,) each.

    Drawn with probability softmax(similarity / temperature) + 1e-5, never from rows of the same image: from the rows of
    this rank, or with `group` from those of all its ranks, numbered in rank order. `generator` must live on the
    features' device. Nothing waits for the device.
    """
    with torch.no_grad(), full_precision(image_BE):
        image, text = image_BE.float(), text_BE.float()
        first = 0 if group is None else group.rank * len(image)
        ids = image_ids_B if image_ids_B is not None else first + torch.arange(len(image), device=image.device)
        images, texts, all_ids = (x if group is None else group.rows(x) for x in (image, text, ids))
        same_BG = ids[:, None] == all_ids[None, :]
        image_weights = negative_weights(text @ images.T / temperature.float(), same_BG)
        text_weights = negative_weights(image @ texts.T / temperature.float(), same_BG)
        image_of_text = _multinomial(image_weights, generator)
        text_of_image = _multinomial(text_weights, generator)
        return image_of_text, text_of_image, ~same_BG.all(dim=1)


def negative_weights(similarity_BG: Tensor, same_BG: Tensor) -> Tensor:
    """Weights to draw a negative for each of B rows from G candidates: softmax + 1e-5, zero where `same_BG`."""
    return (similarity_BG.softmax(dim=1) + 1e-5).masked_fill(same_BG, 0.0)


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


def pretrain_losses(
    model: X2VLM,
    batch: Batch,
    negatives: tuple[Tensor, Tensor] | None = None,
    *,
    config: ObjectiveConfig | None = None,
    gather: Gather | None = None,
    negative_group: NegativeGroup | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Unweighted losses of one batch: masked_lm; with pictures contrastive, matching; with regions box_l1, box_giou.

    `negatives` = (image index per text, text index per image) pins the pairs of the matching loss; with a
    `negative_group` they are drawn from, and counted over, the rows of all its ranks (by default this rank's, as in the
    reference). The temperature is used as it is: clamp it before (`X2VLM.clamp_temperature`).
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
            among = None if negative_group is None else negative_group.gather
            *drawn, has_negative = draw_negatives(
                image_BE, text_BE, model.temperature, batch.image_ids_B, generator, among
            )
            negatives = (drawn[0], drawn[1])
        text, mask, images, own = text_BLD, batch.text_mask_BL, memory, rows
        if negative_group is not None:
            text, mask = negative_group.share_texts(text, mask)
            images = model.remember(negative_group.share_images(vision))
            own = rows + negative_group.gather.rank * batch.num_rows
        losses["matching"] = matching_pass(model, text, mask, images, negatives, has_negative, own)
    losses["masked_lm"] = masked_lm_pass(model, batch, memory.select(rows) if whole is not None else memory)
    if whole is not None:
        fused = model.fuse(text_BLD, batch.text_mask_BL, memory.select(rows + batch.num_rows))
        losses["box_l1"], losses["box_giou"] = _box_pass(model, batch, fused, config)
    return losses


def _encode_pixels(model: X2VLM, batch: Batch) -> tuple[VisionTokens, VisionTokens | None]:
    """Image tokens of every text row and, for regions, the same rows described by their whole image."""
    pixels = batch.float_pixels()
    if batch.kind == "video":
        return model.encode_video(pixels), None
    images = model.encode_image(pixels)
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
    rows: Tensor,
) -> Tensor:
    """The matching loss from one fusion call on 3 B rows: own pairs, texts with wrong images, images with wrong texts.

    `rows` are the B texts and images that belong together, `negatives` (image row per text, text row per image); all
    are row numbers of `text_BLD` and of `memory`, which may hold more.
    """
    image_negative, text_negative = negatives
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
