"""The losses of sentence pairs in two languages, one in place of the image (CCLM, arXiv 2206.00621, 3.2).

B pairs, L tokens, D text width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.errors import ConfigError
from x2vlm.models.fusion import VisionMemory
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.across_ranks import Gather
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.losses import contrastive, masked_lm, matching, text_keys
from x2vlm.objectives.negatives import draw_negatives

if TYPE_CHECKING:
    from x2vlm.models.x2vlm import X2VLM


def sentence_as_image(text_BLD: Tensor, mask_BL: Tensor) -> VisionTokens:
    """States of sentences in the form of image tokens: [CLS] is the summary, the other tokens are the patches."""
    return VisionTokens(summary_BD=text_BLD[:, 0], patches_MPD=text_BLD[:, 1:], patch_mask_BP=mask_BL[:, 1:].bool())


def parallel_text_losses(
    model: X2VLM,
    batch: Batch,
    other_ids_BL: Tensor,
    other_mask_BL: Tensor,
    negatives: tuple[Tensor, Tensor] | None = None,
    *,
    config: ObjectiveConfig | None = None,
    gather: Gather | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Unweighted contrastive, matching and masked_lm of sentence pairs (row b of the batch and row b of `other`).

    The batch's own sentence takes the place of the image in the first two losses (the other one has the queries), and
    its masked tokens attend to the other sentence. `negatives` = (own row per other row, other row per own row) fixes
    the pairs of the matching loss; rows with equal `image_ids_B` are never each other's negatives.
    ConfigError if image and text widths differ: one set of cross-attention layers reads both.
    """
    config = config or ObjectiveConfig()
    if model.config.vision.width != model.config.text.width:
        raise ConfigError(
            f"sentence pairs need equal widths of image ({model.config.vision.width}) and text "
            f"({model.config.text.width}): the cross-attention that reads images reads the other sentence"
        )
    own_BLD = model.encode_text(batch.text_ids_BL, batch.text_mask_BL)
    other_BLD = model.encode_text(other_ids_BL, other_mask_BL)
    own_BE, other_BE = model.project_text(own_BLD), model.project_text(other_BLD)
    temperature, ids = model.temperature, batch.image_ids_B
    keys_B = text_keys(other_ids_BL, other_mask_BL) if config.exclude_equal_texts else None
    loss = contrastive(
        own_BE,
        other_BE,
        temperature,
        gather=gather,
        gradient=config.contrastive_gradient,
        image_ids_B=ids,
        text_keys_B=keys_B,
    )
    losses = {"contrastive": loss}
    if config.matching:
        has_negative = None
        if negatives is None:
            of_other, of_own, has_negative = draw_negatives(
                own_BE, other_BE, temperature, ids, generator, text_keys_B=keys_B
            )
            negatives = (of_other, of_own)
        memory = model.image_memory(sentence_as_image(own_BLD, batch.text_mask_BL))
        rows = torch.arange(batch.num_rows, device=own_BLD.device)
        losses["matching"] = _matching_pass(model, other_BLD, other_mask_BL, memory, negatives, has_negative, rows)
    other_memory = model.image_memory(sentence_as_image(other_BLD, other_mask_BL))
    losses["masked_lm"] = _masked_lm_pass(model, batch, other_memory)
    return losses


def _matching_pass(
    model: X2VLM,
    text_BLD: Tensor,
    text_mask_BL: Tensor,
    memory: VisionMemory,
    negatives: tuple[Tensor, Tensor],
    has_negative_B: Tensor | None,
    rows: Tensor,
) -> Tensor:
    """The matching loss from one fusion call on 3 B rows: positive pairs, texts with negative images and vice versa.

    `rows` are the B positive pairs, `negatives` (image row per text, text row per image); all are row numbers of
    `text_BLD` and of `memory`, which may have more rows.
    """
    image_negative, text_negative = negatives
    text_rows = torch.cat([rows, rows, text_negative])
    image_rows = torch.cat([rows, image_negative, rows])
    fused = model.fuse(text_BLD[text_rows], text_mask_BL[text_rows], memory.select(image_rows))
    return matching(model.match(fused), has_negative_B)


def _masked_lm_pass(model: X2VLM, batch: Batch, memory: VisionMemory) -> Tensor:
    """The MLM loss of the batch's sentences, with cross-attention to the other ones."""
    masked_BLD = model.encode_text(batch.masked_ids_BL, batch.text_mask_BL)
    fused = model.fuse(masked_BLD, batch.text_mask_BL, memory)
    return masked_lm(model.predict_words(fused, batch.masked_positions_BK), batch.masked_labels_BK)
