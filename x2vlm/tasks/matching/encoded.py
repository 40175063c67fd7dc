"""Encoded images and texts of a retrieval: features of all on every process, tokens of images where they are needed.

Whole batches are shared out among processes, so that a batch is the same whoever computes it. Patches are the bulk of
what is kept (8.9 GB for COCO 5K at 384 pixels in float32): each process keeps those of its own batches alone, since it
scores the pairs of just these images, and on disk where they are large.
I images, T texts, U distinct texts, X tokens of all distinct texts, E width of the comparison space, L text tokens,
D width.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from x2vlm.models.blocks.fusion_plan import TextTable
from x2vlm.models.tokens import VisionTokens
from x2vlm.tasks.classification import encode_media
from x2vlm.tasks.sharing import batches_of, sum_over_ranks

if TYPE_CHECKING:
    from x2vlm.inference.visuals import Visual
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.tasks.task import TaskContext

Numbers = NDArray[np.int64]


def room_for(shape: Sequence[int], like: Tensor, spool_above_bytes: int) -> Tensor:
    """An array of zeros of the type of `like`: on its device, or in a temporary file if it takes more than that.

    The file has no name any more when this returns: its room is free again when the tensor is, also after a crash. It
    lies where TMPDIR says; a folder in memory saves nothing.
    """
    numbers = int(np.prod(shape, dtype=np.int64))
    if numbers * like.element_size() <= spool_above_bytes:
        return like.new_zeros(*shape)
    with tempfile.NamedTemporaryFile(prefix="x2vlm-features-") as file:
        file.truncate(numbers * like.element_size())
        return torch.from_file(file.name, shared=True, size=numbers, dtype=like.dtype).view(*shape)


@dataclass(frozen=True)
class EncodedImages:
    """Features (I, E) of all images; tokens of those in `batches`, which this process encoded.

    Image i has row `row_of_I[i]` of `tokens`, or -1.
    """

    features_IE: Tensor
    tokens: VisionTokens
    row_of_I: Numbers
    batches: tuple[range, ...]

    def of(self, images: Numbers, device: torch.device) -> VisionTokens:
        """The tokens of these images on `device`, one row each; they must be of this process."""
        rows = torch.from_numpy(self.row_of_I[images])
        chosen = self.tokens.only(rows.to(self.tokens.summary_BD.device))
        return VisionTokens(chosen.summary_BD.to(device), chosen.patches_MPD.to(device))


def encode_images(model: TaskModel, ctx: TaskContext, media: Sequence[str], spool_above_bytes: int) -> EncodedImages:
    """The images or clips of these names."""
    batches = batches_of(len(media), ctx.batch_size)
    own = tuple(rows for number, rows in enumerate(batches) if number % ctx.ranks.world_size == ctx.ranks.rank)
    row_of_I = np.full(len(media), -1, dtype=np.int64)
    row_of_I[[image for rows in own for image in rows]] = np.arange(sum(map(len, own)))
    features: Tensor | None = None
    kept = VisionTokens(torch.zeros(0, 1), torch.zeros(0, 1, 1))
    for rows in own:
        vision = encode_media(model, pixels_of([ctx.load(media[image]) for image in rows], ctx).to(ctx.device))
        if features is None:  # allocated once: joining the batches at the end would hold every token twice
            summary, patches = vision.summary_BD, vision.patches_MPD
            shape = ((row_of_I >= 0).sum(), *patches.shape[1:])
            kept = VisionTokens(
                room_for((shape[0], shape[2]), summary, spool_above_bytes), room_for(shape, patches, spool_above_bytes)
            )
            features = torch.zeros(len(media), model.config.embed_dim, device=ctx.device)
        some = slice(int(row_of_I[rows.start]), int(row_of_I[rows.start]) + len(rows))
        kept.summary_BD[some], kept.patches_MPD[some] = vision.summary_BD, vision.patches_MPD
        features[rows.start : rows.stop] = model.base.project_vision(vision)
    if features is None:  # fewer batches than processes
        features = torch.zeros(len(media), model.config.embed_dim, device=ctx.device)
    return EncodedImages(sum_over_ranks(features, ctx.ranks), kept, row_of_I, own)


def pixels_of(visuals: Sequence[Visual], ctx: TaskContext) -> Tensor:
    """(B, C, H, W) of images or (B, F, C, H, W) of clips."""
    if visuals[0].is_clip:
        return ctx.processor.clips(visuals)
    return ctx.processor.images([visual.frames[0] for visual in visuals])


@dataclass(frozen=True)
class EncodedTexts:
    """States of the real tokens of the distinct texts, their features (U, E), and the distinct one of each text."""

    table: TextTable
    features_UE: Tensor
    distinct_of_T: Numbers


def encode_texts(model: TaskModel, ctx: TaskContext, texts: Sequence[str], spool_above_bytes: int) -> EncodedTexts:
    """Texts of equal tokens are encoded once: their scores are then equal, not only up to rounding."""
    all_ids_TL, all_mask_TL = ctx.processor.texts(texts)
    _, first, distinct_of_T = np.unique(all_ids_TL.numpy(), axis=0, return_index=True, return_inverse=True)
    ids_UL, mask_UL = all_ids_TL[first], all_mask_TL[first]
    lengths = mask_UL.sum(dim=1).numpy()
    starts = np.cumsum(lengths) - lengths
    like = model.base.text_proj.weight
    states_XD = room_for((int(lengths.sum()), model.config.text.width), like.new_empty(0), spool_above_bytes)
    features_UE = torch.zeros(len(lengths), model.config.embed_dim, device=ctx.device)
    for number, rows in enumerate(batches_of(len(lengths), ctx.batch_size)):
        if number % ctx.ranks.world_size != ctx.ranks.rank:
            continue
        some = slice(rows.start, rows.stop)
        longest = int(lengths[some].max())
        mask_BL = mask_UL[some, :longest].to(ctx.device)
        states_BLD = model.base.encode_text(ids_UL[some, :longest].to(ctx.device), mask_BL)
        states_XD[int(starts[rows.start]) :][: int(lengths[some].sum())] = states_BLD[mask_BL].to(states_XD.device)
        features_UE[some] = model.base.project_text(states_BLD)
    states_XD, features_UE = (sum_over_ranks(tensor, ctx.ranks) for tensor in (states_XD, features_UE))
    return EncodedTexts(TextTable(states_XD, starts, lengths, lengths), features_UE, distinct_of_T.ravel())
