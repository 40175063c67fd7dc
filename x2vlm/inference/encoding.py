"""Sources and texts to the tokens of a loaded model, batch by batch.

B rows, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from x2vlm.errors import InvalidSample
from x2vlm.inference.processor import Processor
from x2vlm.inference.visuals import Source, Visual, is_source
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM

Item = TypeVar("Item")


@dataclass(frozen=True)
class Pretrained:
    """A model with its processor, in evaluation mode, where and in which precision it runs."""

    model: X2VLM
    processor: Processor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32


def as_list(items: Iterable[Item]) -> list[Item]:
    """`items`, unless it is one text or one source that somebody forgot to put into a list.

    An array or tensor of four dimensions is a list of images.
    """
    is_single = isinstance(items, str | Visual) or (is_source(items) and getattr(items, "ndim", 0) != 4)
    if is_single or not isinstance(items, Iterable):
        raise InvalidSample("not_a_list", f"{str(items)[:80]!r} is a single value; put it into a list")
    return list(items)


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    check_batch_size(size)
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def check_batch_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"batch_size {size}: at least 1")


def encode_all(pretrained: Pretrained, sources: Sequence[Source], batch_size: int) -> Iterator[VisionTokens]:
    """Tokens batch by batch; sources are read when their batch is due."""
    for batch in batches(as_list(sources), batch_size):
        yield encode_visuals(pretrained, [pretrained.processor.read(source) for source in batch])


def encode_visuals(pretrained: Pretrained, visuals: Sequence[Visual]) -> VisionTokens:
    """One row per visual, in their order, images and clips mixed."""
    model, processor = pretrained.model, pretrained.processor
    images = [number for number, visual in enumerate(visuals) if not visual.is_clip]
    clips = [number for number, visual in enumerate(visuals) if visual.is_clip]
    parts = []
    if images:
        pixels_BCHW = processor.images([visuals[number].frames[0] for number in images])
        parts.append(model.encode_image(pixels_BCHW.to(pretrained.device, pretrained.dtype)))
    if clips:
        pixels_BFCHW = processor.clips([visuals[number] for number in clips])
        parts.append(model.encode_video(pixels_BFCHW.to(pretrained.device, pretrained.dtype)))
    joined = joined_rows(parts)
    assert joined is not None
    if not (images and clips):
        return joined
    order = torch.tensor([*images, *clips], device=pretrained.device).argsort()
    return VisionTokens(joined.summary_BD[order], joined.patches_MPD[order])


def joined_rows(parts: Sequence[VisionTokens]) -> VisionTokens | None:
    """All rows of `parts` in one; None if there are none."""
    if not parts:
        return None
    return VisionTokens(torch.cat([part.summary_BD for part in parts]), torch.cat([part.patches_MPD for part in parts]))


def encode_texts(pretrained: Pretrained, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """States (B, L, D) after the text layers, and the mask (B, L)."""
    ids_BL, mask_BL = (tensor.to(pretrained.device) for tensor in pretrained.processor.texts(texts))
    return pretrained.model.encode_text(ids_BL, mask_BL), mask_BL


def text_features(pretrained: Pretrained, texts: Sequence[str], batch_size: int) -> Iterator[Tensor]:
    """Features (B, E) of length 1 batch by batch, on the model's device."""
    for batch in batches(texts, batch_size):
        yield pretrained.model.project_text(encode_texts(pretrained, batch)[0])
