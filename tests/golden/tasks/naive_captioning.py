"""Captioning of the reference once more, naively: every step reads the whole text again, every beam alone.

Written from the description of its search and losses, without any of the project's model code. V vocabulary.
"""

import math

import torch
from torch import Tensor

from tests.golden.naive import Naive, image_tokens, normed, text_layer, word_logits

FAR = -10000.0  # what the reference adds to forbid something


def read(m: Naive, tokens: Tensor, ids: Tensor, seen: Tensor, places: Tensor) -> Tensor:
    """States of texts (B, L) with any attention (B, L, L) and any places, each with the tokens of its image."""
    table = "text_encoder.bert.embeddings"
    x = m[f"{table}.word_embeddings.weight"][ids] + m[f"{table}.token_type_embeddings.weight"][0]
    x = normed(
        m, f"{table}.LayerNorm", x + m[f"{table}.position_embeddings.weight"][places], m.cfg["text_layernorm_eps"]
    )
    hidden = (1 - seen[:, None].to(x)) * FAR
    image = (tokens, torch.ones(tokens.shape[:2]))
    first = m.cfg["text_only_layers"]
    for number in range(first + m.cfg["fusion_layers"]):
        name = f"text_encoder.bert.encoder.layer.{number}"
        x = text_layer(m, name, x, hidden, image if number >= first else None)
    return x


def next_word(m: Naive, tokens: Tensor, text: list[int], mask: int) -> Tensor:
    """Log probabilities (V) at a [MASK] behind `text`, which begins with the prompt."""
    ids = torch.tensor([[*text, mask]])
    length = ids.shape[1]
    states = read(m, tokens, ids, torch.ones(1, length, length).tril(), torch.arange(length)[None])
    return word_logits(m, states, torch.tensor([[length - 1]]))[0, 0].log_softmax(0)


def forbidden(written: list[int], size: int) -> set[int]:
    """Words that would make a run of `size` words come twice."""
    runs = [tuple(written[start : start + size]) for start in range(len(written) - size + 1)]
    return {run[-1] for run in runs if run[:-1] == tuple(written[len(written) - size + 1 :])}


def search(
    m: Naive, pixels: Tensor, prompt: list[int], steps: int, mask: int, end: int,
    beams: int = 1, min_words: int = 0, penalty: float = 0.0, size: int = 3,
) -> list[int]:  # fmt: skip
    """The best text of one image: all frames are searched to the end, and the best of all ended texts is taken.

    Frames are the beams after each step. Texts that have not ended count in the last frame, or in the first whose beams
    have all ended, behind which nothing counts.
    """
    tokens = image_tokens(m, pixels[None])
    frames: list[list[tuple[float, list[int]]]] = [[(0.0, [])]]
    for step in range(steps):
        candidates = []
        for score, written in frames[-1]:
            log_probs = next_word(m, tokens, prompt + written, mask)
            for word in forbidden(written, size) if size else ():
                log_probs[word] += FAR
            if step < min_words:
                log_probs[end] = FAR
            if written[-1:] == [end]:
                log_probs = log_probs + FAR
            values, words = log_probs.topk(beams)
            candidates += [(score + v, [*written, w]) for v, w in zip(values.tolist(), words.tolist(), strict=True)]
        frames.append(sorted(candidates, key=lambda pair: -pair[0])[:beams])
    best, winner = -math.inf, [0]
    for number, frame in enumerate(frames[1:], start=1):
        is_last = number == steps or all(written[-1] == end for _, written in frame)
        for score, written in frame:
            if written[-1] == end or is_last:
                if penalty > 0:
                    score = score / ((5 + number) / 6) ** penalty
                if score > best:
                    best, winner = score, written
        if is_last:
            break
    return winner


def words_loss(m: Naive, pixels: Tensor, inputs: dict[str, Tensor], start: int, smoothing: float = 0.1) -> Tensor:
    """Divergence from smoothed targets, written out for every masked word."""
    states = read(m, image_tokens(m, pixels), inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"])
    log_probs = word_logits(m, states, inputs["masked_pos"]).log_softmax(-1)
    num_words, total = log_probs.shape[-1], torch.zeros(())
    for row in range(len(log_probs)):
        for slot in range(log_probs.shape[1]):
            if not inputs["masked_weight"][row, slot]:
                continue
            target = torch.full((num_words,), smoothing / (num_words - 2))
            target[start] = 0.0
            target[inputs["masked_ids"][row, slot]] = 1 - smoothing
            kept = target > 0
            total = total + (target[kept] * (target[kept].log() - log_probs[row, slot][kept])).sum()
    return total / (inputs["masked_weight"].sum() + 1e-5)
