"""Ranking images by a text and texts by an image: a shortlist by cosine, ordered by the matching head.

B rows, C candidates, K of them on the shortlist, L tokens, D width, E width of the comparison space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x2vlm.inference.encoding import (
    Pretrained,
    as_list,
    batches,
    encode_all,
    encode_texts,
    encode_visuals,
    joined_rows,
    text_features,
)
from x2vlm.inference.visuals import Source
from x2vlm.models.tokens import VisionTokens


@dataclass(frozen=True)
class Ranked:
    """A candidate by its number; `match_logit` (class 1, as in the reference) is None behind the shortlist."""

    index: int
    similarity: float
    match_logit: float | None


@torch.inference_mode()
def rank_images(
    pretrained: Pretrained, text: str, sources: Sequence[Source], shortlist: int = 128, batch_size: int = 32
) -> list[Ranked]:
    """All `sources`, those that fit `text` best first (image retrieval, X2-VLM 4.3.1).

    The `shortlist` most similar ones are ordered by the matching head, the others follow by similarity. However many
    sources there are, the tokens of `shortlist` + `batch_size` of them are in memory at most; keys and values are
    projected once for each image of the shortlist, a batch at a time.
    """
    model = pretrained.model
    states_1LD, mask_1L = encode_texts(pretrained, [text])
    text_E = model.project_text(states_1LD)[0]
    best, cosines = _Best(max(shortlist, 0)), []
    for vision in encode_all(pretrained, sources, batch_size):
        cosine_B = model.project_vision(vision) @ text_E
        best.add(cosine_B, vision)
        cosines.append(cosine_B)
    if not cosines:
        return []

    def logits(places: Tensor) -> Tensor:
        some = (states_1LD.expand(len(places), -1, -1), mask_1L.expand(len(places), -1))
        assert best.vision is not None
        return model.match(model.fuse(*some, best.vision.only(places)))

    return _shortlisted(torch.cat(cosines), logits, shortlist, batch_size)


class _Best:
    """The tokens of the most similar of any number of images, best first; ties in the order they came in."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._cosine_K: Tensor | None = None
        self.vision: VisionTokens | None = None

    def add(self, cosine_B: Tensor, vision: VisionTokens) -> None:
        """Take the images of a batch into account, which come after all others."""
        if self._cosine_K is not None and self.vision is not None:
            cosine_B, joined = torch.cat([self._cosine_K, cosine_B]), joined_rows([self.vision, vision])
            assert joined is not None
            vision = joined
        kept = torch.argsort(-cosine_B.float(), stable=True)[: self._size]
        self._cosine_K, self.vision = cosine_B[kept], vision.only(kept)


@torch.inference_mode()
def rank_texts(
    pretrained: Pretrained, source: Source, texts: Sequence[str], shortlist: int = 128, batch_size: int = 32
) -> list[Ranked]:
    """All `texts`, those that fit the image or clip best first (text retrieval); as `rank_images`."""
    texts = as_list(texts)
    if not texts:
        return []
    vision = encode_visuals(pretrained, [pretrained.processor.read(source)])
    features_TE = torch.cat(list(text_features(pretrained, texts, batch_size)))
    cosine_T = features_TE @ pretrained.model.project_vision(vision)[0]

    memory = pretrained.model.image_memory(vision)
    best = torch.argsort(-cosine_T.float().cpu(), stable=True).tolist()

    def logits(places: Tensor) -> Tensor:
        states_BLD, mask_BL = encode_texts(pretrained, [texts[best[place]] for place in places.tolist()])
        shared = memory.select(torch.zeros_like(places))
        return pretrained.model.match(pretrained.model.fuse(states_BLD, mask_BL, shared))

    return _shortlisted(cosine_T, logits, shortlist, batch_size)


def _shortlisted(
    cosine_C: Tensor, logits_of: Callable[[Tensor], Tensor], shortlist: int, batch_size: int
) -> list[Ranked]:
    """All candidates in order: the shortlist by matching logit, the rest by cosine; ties keep the given order.

    `logits_of` gets places on the shortlist: 0 is the most similar candidate.
    """
    similarity = cosine_C.float().cpu()
    best = torch.argsort(-similarity, stable=True)
    chosen = best[: max(shortlist, 0)]
    places = [torch.tensor(batch, device=cosine_C.device) for batch in batches(range(len(chosen)), batch_size)]
    rows = [logits_of(batch)[:, 1] for batch in places]
    logits = torch.cat(rows).float().cpu() if rows else torch.zeros(0)
    order = torch.argsort(-logits, stable=True)
    ranked = [Ranked(int(chosen[i]), float(similarity[chosen[i]]), float(logits[i])) for i in order]
    return ranked + [Ranked(int(index), float(similarity[index]), None) for index in best[len(chosen) :]]
