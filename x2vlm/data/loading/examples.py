"""From a stored row to one row of a batch: chosen texts, their masks, boxes, and pixels.

`plan_*` decides everything that does not need pixels, `*_pixels` does the rest. All random choices come from
`Draws(seed, epoch, sample key, purpose)`. C channels, H W pixels, F frames.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from x2vlm.data.loading.config import ExampleConfig
from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.loading.masking import MaskedText, mask_text
from x2vlm.data.loading.operations import COLOUR_OPS, Operation
from x2vlm.data.loading.regions import (
    RegionRow,
    draw_crop_around,
    place_boxes,
    whole_image_row,
    whole_pixel_box,
)
from x2vlm.data.loading.transforms import (
    ImagePlan,
    cut_plan,
    draw_operations,
    least_size_of,
    plan_image,
    size_of,
)
from x2vlm.data.media.decode import decode_image
from x2vlm.data.media.images import probe, shrunk_size
from x2vlm.data.media.video import decode_frames
from x2vlm.data.randomness import Draws
from x2vlm.data.shards.rows import Row
from x2vlm.data.text.captions import mentions_a_side
from x2vlm.data.text.encoding import TextEncoder
from x2vlm.data.text.tokenizer import TextTokenizer
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box


@dataclass(frozen=True)
class Recipe:
    """Everything that determines rows of samples: configuration, tokenizer, image resolution and the run's seed."""

    config: ExampleConfig
    tokenizer: TextTokenizer
    image_res: int
    patch_size: int
    seed: int

    @functools.cached_property
    def texts(self) -> TextEncoder:
        """How the texts of this recipe are cleaned and cut."""
        return TextEncoder(self.tokenizer, self.config.max_tokens)

    def draws(self, epoch: int, key: str, purpose: str) -> Draws:
        return Draws(self.seed, epoch, key, purpose)


@dataclass(frozen=True)
class TextRow:
    """One text of a batch, before and after masking; `region` says where it applies in region batches."""

    key: str
    image_id: int
    ids: list[int]
    masked: MaskedText
    region: RegionRow | None = None


@dataclass(frozen=True)
class VisualInput:
    """Bytes (C, H, W) of an image, or (F, C, H, W) of a clip, and the pending operations on each image or frame."""

    pixels: Tensor
    operations: tuple[tuple[Operation, ...], ...]


@dataclass(frozen=True)
class RegionPlan:
    """The planned cut of an image with boxes, and the texts and boxes of its rows."""

    image: ImagePlan
    rows: tuple[RegionRow, ...]
    texts: tuple[str, ...]


def image_id(row: Row) -> int:
    """An id that is equal for rows with the same stored media: 60 bits of its sha256."""
    return int(row.media_sha256[:15], 16)


def choose_caption(row: Row, epoch: int, recipe: Recipe) -> str:
    """One of the row's captions, cleaned; InvalidSample("empty_caption") if none is left after cleaning."""
    cleaned = recipe.texts.clean(row.captions)
    if not cleaned:
        raise InvalidSample("empty_caption", f"{row.key}: no caption is left after cleaning")
    return recipe.draws(epoch, row.key, f"caption{row.variant}").choice(cleaned)


def text_row(
    text: str, row: Row, epoch: int, recipe: Recipe, region: RegionRow | None = None, repeat: int = 0
) -> TextRow:
    """`text`, which is clean, as tokens with some masked. A repeated row (`repeat` > 0) is masked differently."""
    ids = recipe.texts.encode_clean(text)
    concept = "" if region is None else f"/{region.concept}"
    draws = recipe.draws(epoch, row.key, f"mask{concept}/{repeat}{row.variant}")
    return TextRow(row.key, image_id(row), ids, mask_text(ids, recipe.tokenizer, draws, recipe.config.masking), region)


def visual_pixels(row: Row, payload: bytes, caption: str, epoch: int, recipe: Recipe) -> VisualInput:
    """The cropped and resized image or clip of a row with this caption."""
    augment = recipe.config.augment
    parity = augment.parity
    may_flip = not (augment.careful_flip and mentions_a_side([caption], parity == "reference"))
    draws = recipe.draws(epoch, row.key, f"picture{row.variant}")
    if row.kind == "image":
        return _cut(payload, lambda size: plan_image(*size, draws, augment, may_flip), recipe)
    jpegs, _ = decode_frames(payload)
    chosen = choose_frames(
        len(jpegs), recipe.config.frames_per_clip, recipe.draws(epoch, row.key, f"frames{row.variant}")
    )
    plans: list[ImagePlan] = []

    def plan_frame(size: tuple[int, int]) -> ImagePlan:
        if not plans or not augment.same_for_all_frames:
            plans.append(plan_image(*size, draws, augment, may_flip))
        return plans[-1]

    frames = [_cut(jpegs[number], plan_frame, recipe) for number in chosen]
    return VisualInput(torch.stack([frame.pixels for frame in frames]), tuple(frame.operations[0] for frame in frames))


def _cut(payload: bytes, plan_for: Callable[[tuple[int, int]], ImagePlan], recipe: Recipe) -> VisualInput:
    """One image cut by the plan for its size; decoded at reduced size where that is allowed and suffices."""
    augment, image_res = recipe.config.augment, recipe.image_res
    if augment.scaled_decode:
        header = probe(payload)
        size = (header.width, header.height)
        plan = plan_for(size)
        pixels_HWC = decode_image(payload, least_size_of(size, plan.crop, image_res))
    else:
        pixels_HWC = decode_image(payload)
        size = size_of(pixels_HWC)
        plan = plan_for(size)
    return VisualInput(cut_plan(pixels_HWC, plan, image_res, augment.parity, size), (plan.operations,))


def plan_regions(row: Row, epoch: int, recipe: Recipe) -> RegionPlan:
    """Crop, mirror and rows of an image with boxes, from its metadata alone.

    A caption of the whole image, if there is one, takes the first of `max_regions` rows. InvalidSample
    ("no_usable_box") if no box with a text lies inside the image.
    """
    config, width, height = recipe.config.regions, row.width, row.height
    texts = _concept_texts(row, recipe)
    boxes = [whole_pixel_box(box) if config.whole_pixels else box for box in row.boxes]
    anchors = [number for number in texts if _is_inside(boxes[number], width, height)]
    if not anchors:
        raise InvalidSample("no_usable_box", f"{row.key}: no box with a text lies inside the image")
    draws = recipe.draws(epoch, row.key, "regions")
    crop = draw_crop_around(boxes[draws.choice(anchors)], width, height, draws)
    order = draws.shuffled(list(texts))
    rows, row_texts = [], []
    captions = recipe.texts.clean(row.captions)
    if captions:
        rows.append(whole_image_row(recipe.image_res, recipe.patch_size))
        row_texts.append(draws.choice(captions))

    def placed(flipped: bool) -> list[RegionRow]:
        num_wanted = config.max_regions - len(captions[:1])
        return place_boxes(boxes, order, crop, flipped, recipe.image_res, recipe.patch_size, num_wanted, config)

    row_texts += [texts[region.concept] for region in placed(False)]
    flipped = _draw_flip(row, row_texts, draws, recipe)
    image = ImagePlan(crop, flipped, draw_operations(draws, recipe.config.augment, COLOUR_OPS))
    return RegionPlan(image, (*rows, *placed(flipped)), tuple(row_texts))


def region_pixels(row: Row, payload: bytes, plan: RegionPlan, recipe: Recipe) -> VisualInput:
    """The image cut by `plan`, out of the original or of a smaller copy of it that was stored instead.

    InvalidSample("size_changed") if it has neither the recorded size nor a smaller one of the same shape.
    """
    pixels_HWC = decode_image(payload)
    recorded, (width, height) = (row.width, row.height), size_of(pixels_HWC)
    if (width, height) != shrunk_size(*recorded, min(width, height)):
        raise InvalidSample("size_changed", f"{row.key}: {width}x{height}, boxes are for {recorded[0]}x{recorded[1]}")
    pixels = cut_plan(pixels_HWC, plan.image, recipe.image_res, recipe.config.augment.parity, recorded)
    return VisualInput(pixels, (plan.image.operations,))


def _draw_flip(row: Row, row_texts: list[str], draws: Draws, recipe: Recipe) -> bool:
    """Whether to mirror: never if a text that is used contains left or right (reference: any label or caption)."""
    augment = recipe.config.augment
    parity: Literal["reference"] | None = augment.parity
    if parity == "reference":
        row_texts = [*row.labels, *row.captions]
    may_flip = not (augment.careful_flip and mentions_a_side(row_texts, parity == "reference"))
    return draws.chance(augment.flip_prob) and may_flip


def _concept_texts(row: Row, recipe: Recipe) -> dict[int, str]:
    """Cleaned texts of the concepts that have one, by number."""
    texts = {}
    for number, text in enumerate(row.texts):
        if cleaned := recipe.texts.clean([text]):
            texts[number] = cleaned[0]
    return texts


def _is_inside(box: Box, width: int, height: int) -> bool:
    return box.x >= 0 and box.y >= 0 and box.w > 0 and box.h > 0 and box.x + box.w <= width and box.y + box.h <= height
