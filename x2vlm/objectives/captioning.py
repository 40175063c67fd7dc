"""Losses of captioning: words at [MASK]s read from left to right, and self-critical training (X2-VLM 4.3.5).

A text is trained in one of two ways. In place, as UniLM does, some of its tokens are replaced by a [MASK]. Inserted,
a [MASK] stands before the true token and has its position; no other token sees it, so the text is read as it is when
captions are written (Zeng and Nie, "An Investigation of Suitability of Pre-Trained Language Models for Dialogue
Generation", 2021). Self-critical training (arXiv 1612.00563) raises the probability of sampled captions that are
better than the one of greedy search.
B texts, L tokens, K masked positions, V vocabulary, R sampled texts, T tokens of them, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.models.tokens import VisionTokens
    from x2vlm.models.x2vlm import X2VLM

LABEL_SMOOTHING = 0.1
EPSILON = 1e-5  # the reference's, in the denominator of the mean over masked words


def left_to_right(inserted_BL: Tensor) -> Tensor:
    """(B, L, L), true where a token (second dimension) may attend: itself and earlier ones.

    `inserted_BL` is true on the [MASK]s that were inserted, which only they themselves see.
    """
    length, device = inserted_BL.shape[1], inserted_BL.device
    earlier_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    itself_LL = torch.eye(length, dtype=torch.bool, device=device)
    return (earlier_LL & ~inserted_BL[:, None, :]) | itself_LL


def word_logits(
    model: X2VLM,
    vision: VisionTokens,
    ids_BL: Tensor,
    mask_BLL: Tensor,
    offsets_BL: Tensor,
    masked_positions_BK: Tensor,
) -> Tensor:
    """Logits (B, K, V) at the masked positions of texts with any attention and any token positions `offsets_BL`."""
    states_BLD = model.encode_text(ids_BL, mask_BLL, offsets_BL)
    return model.predict_words(model.fuse(states_BLD, mask_BLL, vision), masked_positions_BK)


def smoothed_words(
    logits_BKV: Tensor, labels_BK: Tensor, counts_BK: Tensor, start_id: int, smoothing: float = LABEL_SMOOTHING
) -> Tensor:
    """Divergence of the predicted words from smoothed targets, averaged over the masked words of the batch.

    A target has 1 - `smoothing`; the rest is spread evenly over all other words but the start token, which no text
    holds a second time. `counts_BK` is 1 on masked words and 0 on unused slots, whose labels do not matter. As in the
    reference, 1e-5 is added to the number of words; no masked word at all gives 0.
    """
    log_probs_BKV = log_softmax(logits_BKV.float(), dim=-1)
    labels_BK1 = labels_BK.clamp_min(0)[:, :, None]
    of_target_BK = log_probs_BKV.gather(2, labels_BK1)[:, :, 0]
    each = smoothing / (logits_BKV.shape[-1] - 2)
    of_others_BK = log_probs_BKV.sum(dim=2) - of_target_BK - log_probs_BKV[:, :, start_id]
    # Without the (V, V) matrix of targets: sum of q (log q - log p) with two values of q. At 0, q log q is 0.
    entropy = _q_log_q(1 - smoothing) + (logits_BKV.shape[-1] - 2) * _q_log_q(each)
    per_word_BK = entropy - (1 - smoothing) * of_target_BK - each * of_others_BK
    counts = counts_BK.to(per_word_BK.dtype)
    return (per_word_BK * counts).sum() / (counts.sum() + EPSILON)


def _q_log_q(probability: float) -> float:
    return probability * math.log(probability) if probability > 0 else 0.0


def text_log_probs(
    model: X2VLM, vision: VisionTokens, prompt_ids: Sequence[int], tokens_RT: Tensor, mask_id: int
) -> Tensor:
    """Log probabilities (R, T) of every token of the texts after the prompt, given the tokens before it.

    One pass: a [MASK] is inserted before every token, so that each is predicted as `generate` predicts it. `vision` has
    a row for every text. With gradients.
    """
    num_texts, num_tokens = tokens_RT.shape
    device = tokens_RT.device
    prompt_RP = torch.tensor(list(prompt_ids), device=device).expand(num_texts, -1)
    pairs_RX = torch.stack([torch.full_like(tokens_RT, mask_id), tokens_RT], dim=2).flatten(1)
    start = prompt_RP.shape[1]
    offsets_T = torch.arange(start, start + num_tokens, device=device).repeat_interleave(2)
    offsets_L = torch.cat([torch.arange(start, device=device), offsets_T])
    ids_RL = torch.cat([prompt_RP, pairs_RX], dim=1)
    inserted_L = torch.zeros(ids_RL.shape[1], dtype=torch.bool, device=device)
    masks_T = torch.arange(start, ids_RL.shape[1], 2, device=device)
    inserted_L[masks_T] = True
    mask_RLL = left_to_right(inserted_L[None]).expand(num_texts, -1, -1)
    logits_RTV = word_logits(
        model, vision, ids_RL, mask_RLL, offsets_L.expand(num_texts, -1), masks_T.expand(num_texts, -1)
    )
    log_probs_RTV = log_softmax(logits_RTV.float(), dim=-1)
    return log_probs_RTV.gather(2, tokens_RT[:, :, None])[:, :, 0]


def self_critical(log_probs_RT: Tensor, written_RT: Tensor, advantage_R: Tensor) -> Tensor:
    """Mean over the sampled texts of -(mean log probability of a text's tokens) x (its reward above the baseline).

    `written_RT` is true up to and with the end token; `advantage_R` has no gradient.
    """
    written = written_RT.to(log_probs_RT.dtype)
    mean_R = (log_probs_RT * written).sum(dim=1) / written.sum(dim=1).clamp_min(1)
    return -(mean_R * advantage_R.detach()).mean()
