"""The towers, once for all streams of a step: every image in one call, every text in one call.

B rows, M images, R regions, P patches, L tokens, X states of a table, D width, C H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.models.blocks.fusion_plan import TextTable, ranges
from x2vlm.models.blocks.packing import HostToDeviceBatch, Numbers, add_sequences
from x2vlm.models.blocks.rows import take_rows
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.host import HostView

if TYPE_CHECKING:
    from x2vlm.models.x2vlm import X2VLM


@dataclass(frozen=True)
class ImageTokens:
    """Image tokens of every text row of a stream and, for regions, of the images they lie in."""

    rows: VisionTokens
    whole: VisionTokens | None


def encode_images(model: X2VLM, batches: Sequence[Batch], execution: ExecutionConfig) -> list[ImageTokens | None]:
    """For every batch its image tokens, None for texts alone; images of equal size share one call, frames too.

    With temporal attention the frames of clips are encoded separately, one call per clip length.
    """
    pixels = {number: batch.float_pixels() for number, batch in enumerate(batches) if batch.kind != "text"}
    for number, values in pixels.items():
        if batches[number].kind == "video":
            model.require_frames(values.shape[1])
    has_temporal_attention = model.config.vision.temporal == "attention"
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, values in pixels.items():
        num_frames = values.shape[1] if has_temporal_attention and batches[number].kind == "video" else 1
        by_shape.setdefault((num_frames, *values.shape[-3:]), []).append(number)
    found: list[ImageTokens | None] = [None] * len(batches)
    for (num_frames, *_), numbers in by_shape.items():
        flat = [pixels[number].flatten(0, -4) for number in numbers]
        tokens: VisionTokens = model.vision(flat[0] if len(flat) == 1 else torch.cat(flat), execution, num_frames)
        sizes = [len(values) for values in flat]
        pieces = zip(tokens.summary_BD.split_with_sizes(sizes), tokens.patches_MPD.split_with_sizes(sizes), strict=True)
        for number, (summary, patches) in zip(numbers, pieces, strict=True):
            vision = VisionTokens(summary, patches)
            if batches[number].kind == "video":
                vision = model.join_frames(vision, pixels[number].shape[1])
            found[number] = image_tokens(model, batches[number], vision)
    return found


def image_tokens(model: X2VLM, batch: Batch, images: VisionTokens) -> ImageTokens:
    """The tokens of a batch's text rows from those of its images (or joined clips), of which regions take parts."""
    if batch.kind != "region":
        return ImageTokens(images, None)
    assert batch.image_of_R is not None
    assert batch.patch_mask_RP is not None
    return ImageTokens(model.pool_regions(images, batch.image_of_R, batch.patch_mask_RP), images)


@dataclass(frozen=True)
class Texts:
    """All texts of a step in one table; `clean` and `masked` are the first texts of each stream (None: not encoded)."""

    table: TextTable
    clean: list[int | None]
    masked: list[int]


def encode_texts(
    model: X2VLM, batches: Sequence[Batch], views: Sequence[HostView], execution: ExecutionConfig
) -> Texts:
    """States of the clean and the masked texts of all batches; of a text batch the masked ones only."""
    ids: list[Tensor] = []
    lengths: list[Numbers] = []
    clean: list[int | None] = []
    masked: list[int] = []
    num_texts = 0
    for batch, view in zip(batches, views, strict=True):
        clean.append(None if batch.kind == "text" else num_texts)
        if batch.kind != "text":
            ids.append(batch.text_ids_BL)
            lengths.append(view.lengths)
            num_texts += batch.num_rows
        masked.append(num_texts)
        ids.append(batch.masked_ids_BL)
        lengths.append(view.lengths)
        num_texts += batch.num_rows
    if execution.pack_texts and model.text.can_pack:
        table = _packed(model, ids, lengths)
    else:
        table = _padded(model, ids, lengths, hold_padding=not execution.pack_texts)
    return Texts(table, clean, masked)


def _packed(model: X2VLM, ids: Sequence[Tensor], lengths: Sequence[Numbers]) -> TextTable:
    counts = np.concatenate(lengths)
    widths = np.concatenate([np.full(len(each), each.shape[1]) for each in ids])
    transfer = HostToDeviceBatch(ids[0].device)
    tokens = transfer.add(ranges(np.cumsum(widths) - widths, counts))
    offsets = transfer.add(ranges(np.zeros_like(counts), counts))
    sequences = add_sequences(transfer, counts, counts)
    transfer.send()
    ids_T = torch.cat([each.flatten() for each in ids]).index_select(0, transfer.get(tokens))
    states_TD = model.text.forward_packed(ids_T, transfer.get(offsets), sequences.resolve(transfer))
    return TextTable(states_TD, np.cumsum(counts) - counts, counts, counts)


def _padded(model: X2VLM, ids: Sequence[Tensor], lengths: Sequence[Numbers], hold_padding: bool) -> TextTable:
    states, starts, held, base = [], [], [], 0
    for ids_BL, counts in zip(ids, lengths, strict=True):
        length = ids_BL.shape[1]
        real = torch.arange(length, device=ids_BL.device) < HostToDeviceBatch.to_device(counts, ids_BL.device)[:, None]
        states.append(model.encode_text(ids_BL, real).flatten(0, 1))
        starts.append(base + length * np.arange(len(counts)))
        held.append(np.full_like(counts, length) if hold_padding else counts)
        base += length * len(counts)
    table = states[0] if len(states) == 1 else torch.cat(states)
    return TextTable(table, np.concatenate(starts), np.concatenate(held), np.concatenate(lengths))


def padded_texts(table: TextTable, texts: Numbers, length: int) -> Tensor:
    """States (B, length, D) of the given texts; what follows the end of a text is arbitrary but finite."""
    offsets = np.minimum(np.arange(length), table.visible[texts][:, None] - 1)
    index_BL = HostToDeviceBatch.to_device(table.starts[texts][:, None] + offsets, table.states_XD.device)
    return take_rows(table.states_XD, index_BL.flatten()).reshape(-1, length, table.states_XD.shape[1])
