"""From a stored sample to what one row of a batch needs: chosen texts, their masks, boxes, and pixels.

`plan_*` decides everything that does not need pixels, `*_pixels` does the rest. All choices come from
`Draws(seed, epoch, sample key, purpose)`. C channels, H W pixels, F frames.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from x2vlm.data.captions import mentions_a_side, pre_caption
from x2vlm.data.config import ExampleConfig
from x2vlm.data.frames import choose_frames
from x2vlm.data.masking import MaskedText, mask_text
from x2vlm.data.media import open_image
from x2vlm.data.randomness import Draws
from x2vlm.data.regions import (
    RegionRow,
    draw_crop_around,
    place_boxes,
    whole_image_row,
    whole_pixel_box,
)
from x2vlm.data.texts import concept_text
from x2vlm.data.tokenizer import WordPieceTokenizer
from x2vlm.data.transforms import (
    COLOUR_OPS,
    PicturePlan,
    apply_plan,
    draw_operations,
    plan_picture,
)
from x2vlm.data.video import decode_frames
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box, Sample


@dataclass(frozen=True)
class Recipe:
    """What turns samples into rows: the configuration, the words, the size of pictures and the run's seed."""

    config: ExampleConfig
    tokenizer: WordPieceTokenizer
    image_res: int
    patch_size: int
    seed: int

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
class RegionPlan:
    """What will be done to a picture with boxes, and the texts and boxes of its rows."""

    picture: PicturePlan
    rows: tuple[RegionRow, ...]
    texts: tuple[str, ...]


def image_id(sample: Sample) -> int:
    """A number that rows share exactly if they show the same stored media: 60 bits of its sha256."""
    assert sample.media is not None
    return int(sample.media.sha256[:15], 16)


def choose_caption(sample: Sample, epoch: int, recipe: Recipe) -> str:
    """One of the sample's captions, cleaned; InvalidSample("empty_caption") if none says anything."""
    cleaned = _cleaned([caption.text for caption in sample.captions], recipe)
    if not cleaned:
        raise InvalidSample("empty_caption", f"{sample.key}: no caption is left after cleaning")
    return recipe.draws(epoch, sample.key, "caption").choice(cleaned)


def text_row(
    text: str, sample: Sample, epoch: int, recipe: Recipe, region: RegionRow | None = None, repeat: int = 0
) -> TextRow:
    """`text` as tokens with some masked. A repeated row (`repeat` > 0) is masked differently."""
    ids = recipe.tokenizer.encode(text, recipe.config.max_tokens)
    concept = "" if region is None else f"/{region.concept}"
    draws = recipe.draws(epoch, sample.key, f"mask{concept}/{repeat}")
    return TextRow(
        sample.key, image_id(sample), ids, mask_text(ids, recipe.tokenizer, draws, recipe.config.masking), region
    )


def picture_pixels(sample: Sample, payload: bytes, caption: str, epoch: int, recipe: Recipe) -> Tensor:
    """Augmented pixels (C, H, W) of an image, or (F, C, H, W) of a clip, for a row with this caption."""
    augment = recipe.config.augment
    parity = augment.parity
    may_flip = not (augment.careful_flip and mentions_a_side([caption], parity == "reference"))
    draws = recipe.draws(epoch, sample.key, "picture")
    if sample.kind == "image":
        image = open_image(payload)
        return apply_plan(image, plan_picture(*image.size, draws, augment, may_flip), recipe.image_res, parity)
    jpegs, _ = decode_frames(payload)
    chosen = choose_frames(len(jpegs), recipe.config.frames_per_clip, recipe.draws(epoch, sample.key, "frames"))
    frames = [open_image(jpegs[number]) for number in chosen]
    plan = plan_picture(*frames[0].size, draws, augment, may_flip)
    pixels = []
    for number, frame in enumerate(frames):
        if not augment.same_for_all_frames and number:
            plan = plan_picture(*frame.size, draws, augment, may_flip)
        pixels.append(apply_plan(frame, plan, recipe.image_res, parity))
    return torch.stack(pixels)


def plan_regions(sample: Sample, epoch: int, recipe: Recipe) -> RegionPlan:
    """Crop, mirror and rows of a picture with boxes, from its metadata alone.

    A caption of the whole picture, if there is one, takes the first of `max_regions` rows. InvalidSample
    ("no_usable_box") if no box with a text lies inside the picture.
    """
    assert sample.media is not None
    config, width, height = recipe.config.regions, sample.media.width, sample.media.height
    texts = _concept_texts(sample, recipe)
    boxes = [whole_pixel_box(item.box) if config.whole_pixels else item.box for item in sample.concepts]
    anchors = [number for number in texts if _is_inside(boxes[number], width, height)]
    if not anchors:
        raise InvalidSample("no_usable_box", f"{sample.key}: no box with a text lies inside the picture")
    draws = recipe.draws(epoch, sample.key, "regions")
    crop = draw_crop_around(boxes[draws.choice(anchors)], width, height, draws)
    order = draws.shuffled(list(texts))
    rows, row_texts = [], []
    captions = _cleaned([caption.text for caption in sample.captions], recipe)
    if captions:
        rows.append(whole_image_row(recipe.image_res, recipe.patch_size))
        row_texts.append(draws.choice(captions))

    def placed(flipped: bool) -> list[RegionRow]:
        num_wanted = config.max_regions - len(captions[:1])
        return place_boxes(boxes, order, crop, flipped, recipe.image_res, recipe.patch_size, num_wanted, config)

    row_texts += [texts[row.concept] for row in placed(False)]
    flipped = _draw_flip(sample, row_texts, draws, recipe)
    picture = PicturePlan(crop, flipped, draw_operations(draws, recipe.config.augment, COLOUR_OPS))
    return RegionPlan(picture, (*rows, *placed(flipped)), tuple(row_texts))


def region_pixels(sample: Sample, payload: bytes, plan: RegionPlan, recipe: Recipe) -> Tensor:
    """The picture (C, H, W) after `plan`; InvalidSample("size_changed") if it is not as large as its record says."""
    image = open_image(payload)
    assert sample.media is not None
    if image.size != (sample.media.width, sample.media.height):
        recorded = f"{sample.media.width}x{sample.media.height}"
        raise InvalidSample("size_changed", f"{sample.key}: {image.width}x{image.height}, boxes are for {recorded}")
    return apply_plan(image, plan.picture, recipe.image_res, recipe.config.augment.parity)


def _draw_flip(sample: Sample, row_texts: list[str], draws: Draws, recipe: Recipe) -> bool:
    """Whether to mirror: never if a text that is used says left or right (reference: if any label or caption does)."""
    augment = recipe.config.augment
    parity: Literal["reference"] | None = augment.parity
    if parity == "reference":
        row_texts = [*(item.text for item in sample.concepts), *(item.text for item in sample.captions)]
    may_flip = not (augment.careful_flip and mentions_a_side(row_texts, parity == "reference"))
    return draws.chance(augment.flip_prob) and may_flip


def _concept_texts(sample: Sample, recipe: Recipe) -> dict[int, str]:
    """Cleaned texts of the concepts that have one, by number."""
    texts = {}
    for number, concept in enumerate(sample.concepts):
        if cleaned := _cleaned([concept_text(concept)], recipe):
            texts[number] = cleaned[0]
    return texts


def _cleaned(texts: list[str], recipe: Recipe) -> list[str]:
    """The texts after cleaning, without those of which nothing is left."""
    cleaned = []
    for text in texts:
        try:
            cleaned.append(pre_caption(text, recipe.config.max_tokens))
        except InvalidSample:
            continue  # counted by the caller if none is left
    return cleaned


def _is_inside(box: Box, width: int, height: int) -> bool:
    return box.x >= 0 and box.y >= 0 and box.w > 0 and box.h > 0 and box.x + box.w <= width and box.y + box.h <= height
