"""Which tokens of a text are masked for masked language modelling (X2-VLM 3.2; released: half of them, at most 12)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from x2vlm.config import FrozenConfig
from x2vlm.data.randomness import Draws
from x2vlm.data.text.tokenizer import TextTokenizer


class MaskingConfig(FrozenConfig):
    """How many tokens are masked, and in what groups (whole words, n-grams).

    `parity="reference"` also masks [SEP], includes both special tokens in the masked fraction, cuts a surplus at random
    (which splits words) and replaces by any entry of the vocabulary, special ones too. By default none of that happens.
    """

    prob: float = Field(default=0.5, gt=0, le=1)
    max_masks: int = Field(default=12, ge=1)
    skipgram_prob: float = Field(default=0.2, ge=0, le=1)
    skipgram_size: int = Field(default=3, ge=1)
    whole_word: bool = True
    parity: Literal["reference"] | None = None


@dataclass(frozen=True)
class MaskedText:
    """Token ids with some replaced; `positions` ascend, `labels` are the original ids there."""

    ids: list[int]
    positions: list[int]
    labels: list[int]


def mask_text(
    ids: Sequence[int],
    tokenizer: TextTokenizer,
    draws: Draws,
    config: MaskingConfig,
    num_source_tokens: int = 0,
    mask_last: bool = False,
) -> MaskedText:
    """`ids` ([CLS] ... [SEP]) with tokens masked: 80 % become [MASK], 10 % a random entry, 10 % stay as they are.

    The first `num_source_tokens` after [CLS] are never masked. With `mask_last` the last token is one like the others:
    captioning has to predict where a text ends.
    """
    continues = [tokenizer.continues_word[number] for number in ids]
    if mask_last and config.parity is None:
        continues.append(False)  # nothing that is masked: the choice leaves out the last of what it is given
    positions = sorted(choose_positions(continues, draws, config, num_source_tokens))
    masked = list(ids)
    for position in positions:
        masked[position] = _replacement(ids[position], tokenizer, draws, config)
    return MaskedText(masked, positions, [ids[position] for position in positions])


def _replacement(original: int, tokenizer: TextTokenizer, draws: Draws, config: MaskingConfig) -> int:
    if draws.chance(0.8):
        return tokenizer.mask_id
    if draws.chance(0.5):
        return original
    while True:
        number = draws.integer(0, len(tokenizer) - 1)
        if config.parity == "reference" or number not in tokenizer.special_ids:
            return number


def choose_positions(
    continues_word: Sequence[bool], draws: Draws, config: MaskingConfig, num_source_tokens: int = 0
) -> set[int]:
    """Positions to mask in [CLS] ... [SEP], where `continues_word` marks the pieces that continue a word.

    The first `num_source_tokens` after [CLS] are never masked. Empty only if there is nothing to mask.
    """
    if config.parity == "reference":
        return _choose_like_reference(continues_word, draws, config, num_source_tokens)
    words = _words(continues_word, 1 + num_source_tokens, len(continues_word) - 1, config.whole_word)
    wanted = min(config.max_masks, max(1, round(sum(len(word) for word in words) * config.prob)))
    chosen: set[int] = set()
    for start in draws.shuffled(range(len(words))):
        for number in range(start, min(start + _gram_size(draws, config), len(words))):
            fresh = set(words[number]) - chosen
            if len(chosen) + len(fresh) <= wanted:
                chosen |= fresh
    if not chosen and words:  # every word is longer than the budget: mask the shortest, up to `max_masks`
        chosen = set(min(words, key=len)[: config.max_masks])
    return chosen


def _gram_size(draws: Draws, config: MaskingConfig) -> int:
    if config.skipgram_size >= 2 and draws.chance(config.skipgram_prob):
        return draws.integer(2, config.skipgram_size)
    return 1


def _words(continues_word: Sequence[bool], start: int, end: int, whole_word: bool) -> list[list[int]]:
    """Positions start..end-1 grouped into words."""
    words: list[list[int]] = []
    for position in range(start, end):
        if words and whole_word and continues_word[position]:
            words[-1].append(position)
        else:
            words.append([position])
    return words


def _choose_like_reference(
    continues_word: Sequence[bool], draws: Draws, config: MaskingConfig, num_source_tokens: int
) -> set[int]:
    length = len(continues_word)
    wanted = min(config.max_masks, max(1, round((length - num_source_tokens) * config.prob)))
    first = num_source_tokens + 1
    chosen: set[int] = set()
    for position in draws.shuffled(range(first, length)):
        if len(chosen) >= wanted:
            break
        if position in chosen:
            continue
        start, end = position, position + _gram_size(draws, config)
        if config.whole_word:
            while start > 0 and continues_word[start]:
                start -= 1
            while end < length and continues_word[end]:
                end += 1
        chosen |= set(range(max(start, first), min(end, length)))
    return set(draws.shuffled(sorted(chosen))[:wanted])
