"""Batches of real shapes for measuring a training step, for our losses and for the reference's graph.

Lengths of texts are fixed numbers with a given mean, not draws: every run, and both sides of a comparison, use the
same texts. The means of 14 (captions) and 6 (regions and objects) tokens with [CLS] and [SEP] are assumptions about
the staged 4M data, so every table prints the histogram, and the case of 40 tokens everywhere is measured beside it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.benchmarks.reference_graph import GraphSizes
from tests.benchmarks.reference_graph_losses import GraphInputs
from x2vlm.cost.flops import BatchShape
from x2vlm.data.loading.batch import Batch
from x2vlm.data.loading.batching import region_batch, visual_batch
from x2vlm.data.loading.examples import TextRow, VisualInput
from x2vlm.data.loading.masking import MaskedText
from x2vlm.data.loading.regions import RegionRow, whole_image_row
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig

MAX_TOKENS, MAX_MASKS, SHORTEST = 40, 12, 3  # [CLS], a word, [SEP]
CLS, SEP, MASK, FIRST_WORD = 101, 102, 103, 999


@dataclass(frozen=True)
class StreamShape:
    """One stream of a step: text rows, their images, frames of each, and lengths of texts."""

    kind: Literal["image", "region", "video"]
    rows: int
    images: int
    mean_length: float
    deviation: float
    frames: int = 1

    @property
    def lengths(self) -> list[int]:
        """Quantiles of a normal distribution, rounded and clipped to valid lengths, in a fixed mixed order."""
        quantiles = [(index + 0.5) / self.rows for index in range(self.rows)]
        drawn = [self.mean_length + self.deviation * NormalDist().inv_cdf(quantile) for quantile in quantiles]
        clipped = [min(MAX_TOKENS, max(SHORTEST, round(value))) for value in drawn]
        return [clipped[index] for index in np.random.RandomState(0).permutation(self.rows)]


def images(rows: int) -> StreamShape:
    return StreamShape("image", rows, rows, mean_length=14, deviation=4)


def regions(rows: int, region_images: int) -> StreamShape:
    return StreamShape("region", rows, region_images, mean_length=6, deviation=1.2)


def videos(rows: int) -> StreamShape:
    return StreamShape("video", rows, rows, mean_length=14, deviation=4, frames=3)


def all_longest(streams: Sequence[StreamShape]) -> tuple[StreamShape, ...]:
    """The same streams with every text of maximal length."""
    return tuple(
        StreamShape(s.kind, s.rows, s.images, mean_length=MAX_TOKENS, deviation=0, frames=s.frames) for s in streams
    )


# Of one GPU and step: base on 8, large on 16, stage 2 of the 1B recipe.
BASE_4M = (images(128), regions(128, 50))
LARGE_4M = (images(64), regions(64, 25))
BASE_STAGE_2 = (images(64), regions(64, 26), videos(40))
SMALL = (images(16), regions(16, 6))  # for CPUs
TINY = (  # for tests: lengths from 3 to 40
    StreamShape("image", 6, 6, mean_length=20, deviation=15),
    StreamShape("region", 8, 3, mean_length=6, deviation=2),
    StreamShape("video", 4, 4, mean_length=14, deviation=4, frames=3),
)

BASE_MODEL = ModelConfig()
LARGE_MODEL = ModelConfig(
    vision=VisionConfig(width=1024, depth=24, num_heads=16),
    text=TextConfig(width=1024, num_heads=16, intermediate=4096),
    fusion=FusionConfig(num_heads=16, intermediate=4096),
)
SMALL_MODEL = ModelConfig(
    vision=VisionConfig(width=256, depth=4, num_heads=4),
    text=TextConfig(width=256, num_layers=4, num_heads=4, intermediate=1024),
    fusion=FusionConfig(num_layers=2, num_heads=4, intermediate=1024),
)

TINY_MODEL = ModelConfig(
    vision=VisionConfig(image_res=64, width=48, depth=2, num_heads=3),
    text=TextConfig(width=32, num_layers=2, num_heads=4, intermediate=64, vocab_size=1100, max_positions=48),
    fusion=FusionConfig(num_layers=2, num_heads=4, intermediate=64),
    embed_dim=16,
    num_frames=3,
)


def without_dropout(config: ModelConfig) -> ModelConfig:
    """The same model without dropout and stochastic depth."""
    still = {"dropout": 0.0, "attention_dropout": 0.0}
    return config.model_copy(
        update={
            "vision": config.vision.model_copy(update={"drop_path": 0.0}),
            "text": config.text.model_copy(update=still),
            "fusion": config.fusion.model_copy(update=still),
        }
    )


def histogram(streams: Sequence[StreamShape]) -> str:
    """The lengths of all texts of the step: mean per stream, then `length x count` of all."""
    means = ", ".join(f"{s.kind} mean {np.mean(s.lengths):.2f}" for s in streams)
    counts = Counter(length for stream in streams for length in stream.lengths)
    return f"{means}; " + " ".join(f"{length}x{counts[length]}" for length in sorted(counts))


def make_batches(
    streams: Sequence[StreamShape], model: ModelConfig, device: str = "cpu", seed: int = 0
) -> dict[str, Batch]:
    """Random pixels and texts of those shapes, by stream kind; on "meta" the pixels have no values."""
    return {stream.kind: _make_batch(stream, model, device, seed + number) for number, stream in enumerate(streams)}


def _make_batch(stream: StreamShape, model: ModelConfig, device: str, seed: int) -> Batch:
    random = np.random.RandomState(seed)
    side = model.vision.image_res
    shape = (stream.images, *([stream.frames] if stream.kind == "video" else []), 3, side, side)
    if device == "meta":
        pixels = torch.empty(shape, device="meta")
    else:
        pixels = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    owner = [row * stream.images // stream.rows for row in range(stream.rows)]
    rows = [_text_row(random, length, owner[row], model, stream) for row, length in enumerate(stream.lengths)]
    region_images = [VisualInput(torch.zeros(shape[1:], dtype=torch.uint8), ((),) * stream.frames)] * stream.images
    if stream.kind == "region":
        batch = region_batch(rows, owner, region_images, MAX_MASKS)
    else:
        batch = visual_batch(stream.kind, rows, region_images, MAX_MASKS)
    return replace(batch, pixels=pixels, operations=None).to(device)  # normalised already: not measured


def num_masked(length: int) -> int:
    """Masked tokens of a text: half of its tokens, at least one, at most MAX_MASKS (released recipe)."""
    return min(MAX_MASKS, max(1, round(length * 0.5)), length - 1)


def batch_shapes(streams: Sequence[StreamShape]) -> list[BatchShape]:
    """The same streams as inputs of the closed-form FLOPs."""
    return [
        BatchShape(
            kind=stream.kind,
            num_images=stream.images * stream.frames,
            text_lengths=tuple(stream.lengths),
            num_masked=tuple(map(num_masked, stream.lengths)),
        )
        for stream in streams
    ]


def _text_row(
    random: np.random.RandomState, length: int, owner: int, model: ModelConfig, stream: StreamShape
) -> TextRow:
    """[CLS] words [SEP] with half of the tokens masked, at most MAX_MASKS, as the released recipe does."""
    ids = [CLS, *random.randint(FIRST_WORD, model.text.vocab_size, length - 2).tolist(), SEP]
    count = num_masked(length)
    positions = sorted((1 + random.permutation(length - 1)[:count]).tolist())
    masked = [MASK if place in positions else number for place, number in enumerate(ids)]
    masked_text = MaskedText(masked, positions, [ids[place] for place in positions])
    region = _region(random, model.vision) if stream.kind == "region" else None
    return TextRow(f"{stream.kind}-{owner}", owner, ids, masked_text, region)


def _region(random: np.random.RandomState, vision: VisionConfig) -> RegionRow:
    """A box of whole patches; one row in sixteen is the caption of its whole image, which has no box loss."""
    if random.randint(16) == 0:
        return whole_image_row(vision.image_res, vision.patch_size)
    grid = vision.grid
    (left, right), (top, bottom) = (np.sort(random.choice(grid + 1, 2, replace=False)) for _ in range(2))
    mask = np.zeros((grid, grid), dtype=bool)
    mask[top:bottom, left:right] = True
    box = ((left + right) / 2 / grid, (top + bottom) / 2 / grid, (right - left) / grid, (bottom - top) / grid)
    return RegionRow(0, box, mask.flatten())


def pinned_negatives(batches: Mapping[str, Batch]) -> dict[str, tuple[Tensor, Tensor]]:
    """For every stream a negative image per text and a negative text per image, neither from the row's own image."""
    chosen = {}
    for name, batch in batches.items():
        rows = torch.arange(batch.num_rows)
        chosen[name] = (rows + batch.num_rows // 2) % batch.num_rows, (rows + batch.num_rows // 3) % batch.num_rows
    return chosen


def graph_sizes(model: ModelConfig, attention: Literal["eager", "sdpa"] = "eager") -> GraphSizes:
    """The reference's graph of the same sizes and dropout probabilities."""
    vision, text, fusion = model.vision, model.text, model.fusion
    same = ("num_heads", "intermediate", "layer_norm_eps", "dropout", "attention_dropout")
    if any(getattr(text, name) != getattr(fusion, name) for name in same):
        raise ValueError(f"the reference has one stack of text layers: {', '.join(same)} cannot differ in fusion")
    return GraphSizes(
        image_res=vision.image_res, patch=vision.patch_size, vision_width=vision.width, vision_depth=vision.depth,
        vision_heads=vision.num_heads, vision_inner=round(vision.mlp_ratio * vision.width),
        vision_eps=vision.layer_norm_eps, text_width=text.width, text_layers=text.num_layers,
        fusion_layers=fusion.num_layers, text_heads=text.num_heads, text_inner=text.intermediate,
        text_eps=text.layer_norm_eps, vocab=text.vocab_size, positions=text.max_positions, types=text.type_vocab_size,
        embed=model.embed_dim, frames=model.num_frames, drop_path=vision.drop_path, dropout=text.dropout,
        attention_dropout=text.attention_dropout, attention=attention,
    )  # fmt: skip


def graph_inputs(batch: Batch) -> GraphInputs:
    """The same batch as the reference reads it: texts padded to MAX_TOKENS, a mask column for token 0."""

    def padded(rows_BL: Tensor) -> Tensor:
        return pad(rows_BL.long(), (0, MAX_TOKENS - rows_BL.shape[1]))

    is_region = batch.kind == "region"
    return GraphInputs(
        text_ids=padded(batch.text_ids_BL),
        text_atts=padded(batch.text_mask_BL),
        text_ids_masked=padded(batch.masked_ids_BL),
        masked_pos=batch.masked_positions_BK,
        masked_ids=batch.masked_labels_BK,
        image=None if batch.kind == "text" else batch.float_pixels(),
        image_atts=pad(batch.patch_mask_RP.long(), (1, 0), value=1) if is_region else None,
        idx_to_group_img=batch.image_of_R if is_region else None,
        target_bbox=batch.box_cxcywh_R4 if is_region else None,
        is_image=batch.is_whole_image_R.long() if is_region else None,
    )
