"""Generating a text about an image, token by token: greedy and beam search over filled [MASK]s (X2-VLM, captioning).

The model was not trained on next-token prediction but on filling [MASK]. So every step reads the newest token followed
by a [MASK], with causal attention, and caches keys and values of the tokens, never of the [MASK].
B images, K beams, R = B x K rows, N new tokens, T cached tokens, H heads, E head width, D text width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from x2vlm.config import FrozenConfig
from x2vlm.models.fusion import FusionLayer, VisionMemory
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM

KeysValues = tuple[Tensor, Tensor]


class GenerateConfig(FrozenConfig):
    """Settings of the search; lengths count tokens after the prompt.

    A finished text's sum of log probabilities is divided by ((5 + length) / 6) ** length_penalty. `no_repeat`: no
    n-gram of this size may occur twice in the text after the prompt (0: no limit); by default trigrams, as in the
    released evaluation. One beam is greedy search.
    """

    max_tokens: int = Field(default=50, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    num_beams: int = Field(default=1, ge=1)
    length_penalty: float = 0.0
    no_repeat: int = Field(default=3, ge=0)


@dataclass(frozen=True)
class Written:
    """The best text of an image: tokens after the prompt without the end token, and its score."""

    tokens: list[int]
    score: float


@torch.no_grad()
def generate(
    model: X2VLM, vision: VisionTokens, prompt_ids: Sequence[int], mask_id: int, end_id: int, config: GenerateConfig
) -> list[Written]:
    """A text for every row of `vision`, independent of the other rows of the batch.

    `prompt_ids` begins with the start token and has no end token. ValueError if prompt and text are longer than the
    model has positions.
    """
    longest = len(prompt_ids) + config.max_tokens
    if longest > _num_positions(model):
        raise ValueError(
            f"prompt and text have up to {longest} tokens, the model has {_num_positions(model)} positions"
        )
    num_images, num_beams, device = vision.num_rows, config.num_beams, vision.summary_BD.device
    memory = model.image_memory(vision).select(torch.arange(num_images, device=device).repeat_interleave(num_beams))
    texts_RT = torch.tensor([list(prompt_ids)] * (num_images * num_beams), device=device)
    scores_BK = torch.full((num_images, num_beams), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0  # all beams are equal at first: only one counts
    cache: list[KeysValues] | None = None
    finished: list[list[Written]] = [[] for _ in range(num_images)]
    for step in range(config.max_tokens):
        newest = texts_RT if cache is None else texts_RT[:, -1:]
        logits_RV, cache = _fill_mask(model, pad(newest, (0, 1), value=mask_id), texts_RT.shape[1], cache, memory)
        log_probs_RV = logits_RV.float().log_softmax(dim=-1)
        _forbid(log_probs_RV, texts_RT[:, len(prompt_ids) :], step, end_id, config)
        scores_BK, from_R, words_R = _best(scores_BK, log_probs_RV)
        texts_RT = torch.cat([texts_RT[from_R], words_R[:, None]], dim=1)
        cache = [(keys[from_R], values[from_R]) for keys, values in cache]
        is_last = step + 1 == config.max_tokens
        _collect(finished, scores_BK, texts_RT[:, len(prompt_ids) :], end_id, is_last, config)
        scores_BK = scores_BK.masked_fill((words_R == end_id).reshape(num_images, num_beams), -torch.inf)
        if bool(scores_BK.isneginf().all()):
            break
    # Nothing is finished only if every continuation was forbidden.
    return [max(texts, key=lambda text: text.score, default=Written([], -torch.inf)) for texts in finished]


def _best(scores_BK: Tensor, log_probs_RV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best K continuations of each image: their scores, the row each continues, and its new token."""
    num_images, num_beams = scores_BK.shape
    vocab_size = log_probs_RV.shape[1]
    total_BX = (scores_BK[:, :, None] + log_probs_RV.reshape(num_images, num_beams, -1)).flatten(1)
    best_BK, index_BK = total_BX.topk(num_beams, dim=1)
    first_B1 = torch.arange(num_images, device=scores_BK.device)[:, None] * num_beams
    return best_BK, (first_B1 + index_BK // vocab_size).flatten(), (index_BK % vocab_size).flatten()


def _forbid(log_probs_RV: Tensor, written_RT: Tensor, step: int, end_id: int, config: GenerateConfig) -> None:
    """Forbids the end token before the minimum length, and tokens that would repeat an n-gram of `no_repeat` tokens."""
    if step < config.min_tokens:
        log_probs_RV[:, end_id] = -torch.inf
    size = config.no_repeat
    if not size:
        return
    for row, tokens in enumerate(written_RT.tolist()):
        last = tokens[len(tokens) - size + 1 :] if len(tokens) >= size - 1 else None
        for start in range(len(tokens) - size + 1):
            if tokens[start : start + size - 1] == last:
                log_probs_RV[row, tokens[start + size - 1]] = -torch.inf


def _collect(
    finished: list[list[Written]],
    scores_BK: Tensor,
    written_RT: Tensor,
    end_id: int,
    is_last: bool,
    config: GenerateConfig,
) -> None:
    """Adds the texts that ended in this step, and in the last step those that were cut."""
    length = written_RT.shape[1]
    penalty = ((5 + length) / 6) ** config.length_penalty
    num_beams = scores_BK.shape[1]
    for row, tokens in enumerate(written_RT.tolist()):
        score = scores_BK[row // num_beams, row % num_beams].item()
        if score == -torch.inf or not (tokens[-1] == end_id or is_last):
            continue
        text = tokens[:-1] if tokens[-1] == end_id else tokens
        finished[row // num_beams].append(Written(text, score / penalty))


def _fill_mask(
    model: X2VLM, tokens_RN: Tensor, length: int, cache: list[KeysValues] | None, memory: VisionMemory
) -> tuple[Tensor, list[KeysValues]]:
    """Logits (R, V) at the last of the new tokens, a [MASK] at position `length`, and the cache with all new but it."""
    num_new = tokens_RN.shape[1]
    positions = torch.arange(length + 1 - num_new, length + 1, device=tokens_RN.device)
    encoder: Any = model.text.encoder
    hidden: Tensor = encoder.embeddings(input_ids=tokens_RN, position_ids=(positions + _offset(model))[None])
    mask_NX = torch.ones(num_new, length + 1, dtype=torch.bool, device=tokens_RN.device).tril(length + 1 - num_new)
    grown: list[KeysValues] = []
    for number, layer in enumerate(encoder.encoder.layer):
        hidden, keys_values = _text_layer(layer, hidden, None if cache is None else cache[number], mask_NX)
        grown.append(keys_values)
    for index, fusion in enumerate(model.fusion.layers):
        assert isinstance(fusion, FusionLayer)
        past = None if cache is None else cache[len(encoder.encoder.layer) + index]
        hidden, keys_values = _fusion_layer(fusion, hidden, past, mask_NX, memory, index)
        grown.append(keys_values)
    logits_R1V = model.word_head(hidden[:, -1:], model.text.word_embeddings.weight)
    return logits_R1V[:, 0], [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in grown]


def _text_layer(layer: Any, hidden_RND: Tensor, past: KeysValues | None, mask_NX: Tensor) -> tuple[Tensor, KeysValues]:
    """One layer of a BERT or RoBERTa of transformers, whose own cache only works for decoders."""
    attention = layer.attention.self
    num_heads = attention.num_attention_heads
    query, keys, values = (
        _heads(part(hidden_RND), num_heads) for part in (attention.query, attention.key, attention.value)
    )
    keys, values = _after(past, keys, values)
    attended = scaled_dot_product_attention(query, keys, values, attn_mask=mask_NX)
    hidden_RND = layer.attention.output(attended.transpose(1, 2).flatten(2), hidden_RND)
    return layer.output(layer.intermediate(hidden_RND), hidden_RND), (keys, values)


def _fusion_layer(
    layer: FusionLayer, hidden_RND: Tensor, past: KeysValues | None, mask_NX: Tensor, memory: VisionMemory, index: int
) -> tuple[Tensor, KeysValues]:
    attention = layer.self_attention
    keys, values = (attention.split_heads(part(hidden_RND)) for part in (attention.key, attention.value))
    keys, values = _after(past, keys, values)
    image_keys, image_values = (part.expand(memory.image_of_B) for part in memory.layers[index])
    image_mask = memory.mask_B11N()
    return layer.finish(hidden_RND, (keys, values), mask_NX, (image_keys, image_values), image_mask), (keys, values)


def _after(past: KeysValues | None, keys: Tensor, values: Tensor) -> KeysValues:
    if past is None:
        return keys, values
    return torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)


def _heads(states_RND: Tensor, num_heads: int) -> Tensor:
    return states_RND.reshape(*states_RND.shape[:-1], num_heads, -1).transpose(1, 2)


def _offset(model: X2VLM) -> int:
    """The first position: RoBERTa counts from one after its padding token."""
    text = model.config.text
    return text.pad_id + 1 if text.architecture == "xlm-roberta" else 0


def _num_positions(model: X2VLM) -> int:
    return model.config.text.max_positions - _offset(model)
