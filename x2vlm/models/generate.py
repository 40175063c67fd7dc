"""Generating a text about an image, token by token: search and sampling over filled [MASK]s (X2-VLM, captioning).

The model was not trained on next-token prediction but on filling [MASK]. So every step reads the newest token followed
by a [MASK], with causal attention, and caches keys and values of the tokens, never of the [MASK]. Those of the image
are projected once, and the rows of an image share them.
B images, K rows of an image (beams or samples), R = B x K rows, N new tokens, T cached or written tokens, H heads, E
head width, D text width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from x2vlm.config import FrozenConfig
from x2vlm.errors import InvalidSample
from x2vlm.models.fusion import FusionLayer
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM

KeysValues = tuple[Tensor, Tensor]


class GenerateConfig(FrozenConfig):
    """Settings of the search; lengths count tokens after the prompt.

    A finished text's sum of log probabilities is divided by ((5 + length) / 6) ** length_penalty, the end token
    included in the length. `no_repeat`: no n-gram of this size may occur twice in the text after the prompt (0: no
    limit); by default trigrams, as in the released evaluation. One beam is greedy search.
    """

    max_tokens: int = Field(default=50, ge=1)
    min_tokens: int = Field(default=0, ge=0)
    num_beams: int = Field(default=1, ge=1)
    length_penalty: float = Field(default=0.0, allow_inf_nan=False)
    no_repeat: int = Field(default=3, ge=0)

    def penalty(self, length: int) -> float:
        """What the score of a text of that length is divided by."""
        return float(((5 + length) / 6) ** self.length_penalty)


@dataclass(frozen=True)
class Written:
    """The best text of an image: tokens after the prompt without the end token, and its score."""

    tokens: list[int]
    score: float


@dataclass(frozen=True)
class Sampled:
    """Texts drawn from the model: tokens after the prompt, true in `written_RT` up to and with the end token."""

    tokens_RT: Tensor
    written_RT: Tensor


@torch.no_grad()
def generate(
    model: X2VLM, vision: VisionTokens, prompt_ids: Sequence[int], mask_id: int, end_id: int, config: GenerateConfig
) -> list[Written]:
    """A text for every row of `vision`, independent of the other rows of the batch.

    `prompt_ids` begins with the start token and has no end token. Of equal scores the text that ended first wins, then
    the better beam. ValueError if prompt and text are longer than the model has positions; InvalidSample("nan_score")
    if the model gives no numbers.
    """
    _check_length(model, len(prompt_ids) + config.max_tokens)
    num_images, num_beams, device = vision.num_rows, config.num_beams, vision.summary_BD.device
    texts = _Texts(model, vision, prompt_ids, mask_id, num_beams)
    scores_BK = torch.full((num_images, num_beams), -torch.inf, device=device)
    scores_BK[:, 0] = 0.0  # all beams are equal at first: only one counts
    finished: list[list[Written]] = [[] for _ in range(num_images)]
    for step in range(config.max_tokens):
        log_probs_RV = texts.next_log_probs()
        _forbid(log_probs_RV, texts.written_RT, step, end_id, config)
        scores_BK, from_R, words_R = _best(scores_BK, log_probs_RV)
        texts.append(words_R, from_R if num_beams > 1 else None)
        # One copy to the host a step; what is decided there is sent back with the next step's numbers.
        scores, rows = scores_BK.tolist(), texts.written_RT.tolist()
        is_last = step + 1 == config.max_tokens
        live = [
            _collect(finished[image], scores[image], rows[image * num_beams :][:num_beams], end_id, is_last, config)
            for image in range(num_images)
        ]
        if is_last or not any(any(beams) for beams in live):
            break
        scores_BK = scores_BK.masked_fill(~torch.tensor(live, device=device), -torch.inf)
    # Nothing is finished only if every continuation was forbidden.
    return [max(texts, key=lambda text: text.score, default=Written([], -torch.inf)) for texts in finished]


@torch.no_grad()
def sample(
    model: X2VLM,
    vision: VisionTokens,
    prompt_ids: Sequence[int],
    mask_id: int,
    end_id: int,
    max_tokens: int,
    num_samples: int,
    generator: torch.Generator,
) -> Sampled:
    """`num_samples` texts for every row of `vision`, those of a row adjacent, each token drawn as probable as it is.

    ValueError if prompt and text are longer than the model has positions.
    """
    _check_length(model, len(prompt_ids) + max_tokens)
    texts = _Texts(model, vision, prompt_ids, mask_id, num_samples)
    is_open_R = torch.ones(len(texts.texts_RT), dtype=torch.bool, device=texts.texts_RT.device)
    written = []
    for _ in range(max_tokens):
        words_R = torch.multinomial(texts.next_log_probs().exp(), 1, generator=generator)[:, 0]
        written.append(is_open_R)
        texts.append(words_R.where(is_open_R, end_id))
        is_open_R = is_open_R & (words_R != end_id)
        if not bool(is_open_R.any()):
            break
    return Sampled(texts.written_RT, torch.stack(written, dim=1))


class _Texts:
    """Texts being written, `rows_per_image` of each image, and the keys and values of all their tokens and images."""

    def __init__(
        self, model: X2VLM, vision: VisionTokens, prompt_ids: Sequence[int], mask_id: int, rows_per_image: int
    ) -> None:
        self._model, self._mask_id, self._num_images = model, mask_id, vision.num_rows
        memory = model.image_memory(vision)
        self._image_mask = memory.mask_B11N()
        self._image_layers = [
            (keys.expand(memory.image_of_B), values.expand(memory.image_of_B)) for keys, values in memory.layers
        ]
        rows = [list(prompt_ids)] * (vision.num_rows * rows_per_image)
        self._prompt_length = len(prompt_ids)
        self.texts_RT = torch.tensor(rows, device=vision.summary_BD.device).view(len(rows), len(prompt_ids))
        self._cache: list[KeysValues] | None = None

    @property
    def written_RT(self) -> Tensor:
        """The tokens after the prompt."""
        return self.texts_RT[:, self._prompt_length :]

    def append(self, words_R: Tensor, from_R: Tensor | None = None) -> None:
        """A new token for every row, which continues the row `from_R`; None: itself."""
        if from_R is not None:
            self.texts_RT = self.texts_RT[from_R]
            self._cache = [(keys[from_R], values[from_R]) for keys, values in self._cache or ()]
        self.texts_RT = torch.cat([self.texts_RT, words_R[:, None]], dim=1)

    def next_log_probs(self) -> Tensor:
        """Log probabilities (R, V) of the next token in float32: what the model puts at a [MASK] behind each text."""
        newest_RN = self.texts_RT if self._cache is None else self.texts_RT[:, -1:]
        tokens_RN = pad(newest_RN, (0, 1), value=self._mask_id)
        num_new, length, device = tokens_RN.shape[1], self.texts_RT.shape[1], tokens_RN.device
        positions = torch.arange(length + 1 - num_new, length + 1, device=device)
        encoder: Any = self._model.text.encoder
        hidden: Tensor = encoder.embeddings(input_ids=tokens_RN, position_ids=(positions + _offset(self._model))[None])
        mask_NX = torch.ones(num_new, length + 1, dtype=torch.bool, device=device).tril(length + 1 - num_new)
        cache, grown = iter(self._cache or ()), []
        for layer in encoder.encoder.layer:
            hidden, keys_values = _text_layer(layer, hidden, next(cache, None), mask_NX)
            grown.append(keys_values)
        for layer, image in zip(self._model.fusion.layers, self._image_layers, strict=True):
            assert isinstance(layer, FusionLayer)
            hidden, keys_values = self._fusion_layer(layer, hidden, next(cache, None), mask_NX, image)
            grown.append(keys_values)
        self._cache = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in grown]  # all but the [MASK]
        logits_R1V: Tensor = self._model.word_head(hidden[:, -1:], self._model.text.word_embeddings.weight)
        return logits_R1V[:, 0].float().log_softmax(dim=-1)

    def _fusion_layer(
        self, layer: FusionLayer, hidden_RND: Tensor, past: KeysValues | None, mask_NX: Tensor, image: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        attention = layer.self_attention
        keys, values = _after(
            past, *(attention.split_heads(part(hidden_RND)) for part in (attention.key, attention.value))
        )
        attended_RND = attention(hidden_RND, keys, values, mask_NX)
        # The rows of an image look at the same keys: as queries of one row, these need not be copied for each of them.
        queries_BXD = attended_RND.reshape(self._num_images, -1, attended_RND.shape[-1])
        crossed_BXD = layer.cross_attention(queries_BXD, *image, self._image_mask)
        fed_RND: Tensor = layer.feed_forward(crossed_BXD.view_as(attended_RND))
        return fed_RND, (keys, values)


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
    if not size or written_RT.shape[1] < size:
        return
    grams_RGS = written_RT.unfold(1, size, 1)
    last_R1S = written_RT[:, None, written_RT.shape[1] - size + 1 :]
    is_again_RG = (grams_RGS[:, :, :-1] == last_R1S).all(dim=-1)
    again_RV = torch.zeros_like(log_probs_RV).scatter_add_(1, grams_RGS[:, :, -1], is_again_RG.to(log_probs_RV.dtype))
    log_probs_RV.masked_fill_(again_RV > 0, -torch.inf)


def _collect(
    finished: list[Written],
    scores: Sequence[float],
    rows: Sequence[list[int]],
    end_id: int,
    is_last: bool,
    config: GenerateConfig,
) -> list[bool]:
    """Adds an image's texts that ended in this step, in the last step also those that were cut; which beams go on.

    None does if no text that is still being written can become better than the best finished one: a sum of log
    probabilities only falls, so the search ends at the same text much earlier.
    """
    live = []
    for score, tokens in zip(scores, rows, strict=True):
        if score != score:
            raise InvalidSample("nan_score", "the model's scores of words are NaN: its weights or pixels are broken")
        is_text = score != -torch.inf
        has_ended = tokens[-1] == end_id
        if is_text and (has_ended or is_last):
            finished.append(Written(tokens[:-1] if has_ended else tokens, score / config.penalty(len(tokens))))
        live.append(is_text and not has_ended)
    hopes = [score for score, is_live in zip(scores, live, strict=True) if is_live]
    if finished and hopes:
        # The penalty grows or falls steadily with the length, and scores are negative: the largest divides best.
        easiest = max(config.penalty(len(rows[0]) + 1), config.penalty(config.max_tokens))
        if max(hopes) / easiest <= max(text.score for text in finished):
            return [False] * len(live)
    return live


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


def _after(past: KeysValues | None, keys: Tensor, values: Tensor) -> KeysValues:
    if past is None:
        return keys, values
    return torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)


def _heads(states_RND: Tensor, num_heads: int) -> Tensor:
    return states_RND.reshape(*states_RND.shape[:-1], num_heads, -1).transpose(1, 2)


def _check_length(model: X2VLM, longest: int) -> None:
    if longest > _num_positions(model):
        raise ValueError(
            f"prompt and text have up to {longest} tokens, the model has {_num_positions(model)} positions"
        )


def _offset(model: X2VLM) -> int:
    """The first position: RoBERTa counts from one after its padding token."""
    text = model.config.text
    return text.pad_id + 1 if text.architecture == "xlm-roberta" else 0


def _num_positions(model: X2VLM) -> int:
    return model.config.text.max_positions - _offset(model)
