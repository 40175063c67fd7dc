"""Which boxes of an image become training rows, where they lie after crop and mirror, and which patches they cover.

Everything here needs only sizes and boxes, never pixels, so every process can compute the rows of the whole step.
Boxes are `xywh` in pixels of the oriented original unless the name says otherwise; P patches, row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from x2vlm.data.loading.config import RegionConfig
from x2vlm.data.loading.transforms import Crop
from x2vlm.data.randomness import Draws
from x2vlm.samples import Box

WHOLE_IMAGE = -1


@dataclass(frozen=True)
class RegionRow:
    """One text-and-box row. `concept` is the number of the box in its sample, WHOLE_IMAGE for the caption's row."""

    concept: int
    box_cxcywh: tuple[float, float, float, float]  # fractions of the crop's sides
    patch_mask_P: np.ndarray

    @property
    def is_whole_image(self) -> bool:
        return self.concept == WHOLE_IMAGE


def draw_crop_around(box: Box, width: int, height: int, draws: Draws) -> Crop:
    """A random crop of a `width` x `height` image that contains all of `box`."""
    left, top = draws.integer(0, int(box.x)), draws.integer(0, int(box.y))
    right = draws.integer(min(math.ceil(box.x + box.w), width), width)
    bottom = draws.integer(min(math.ceil(box.y + box.h), height), height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def whole_image_row(image_res: int, patch_size: int) -> RegionRow:
    """The row of a caption of the whole image: all patches, and the box of the whole image."""
    return RegionRow(WHOLE_IMAGE, (0.5, 0.5, 1.0, 1.0), np.ones((image_res // patch_size) ** 2, dtype=bool))


def place_boxes(
    boxes: Sequence[Box],
    order: Sequence[int],
    crop: Crop,
    flipped: bool,
    image_res: int,
    patch_size: int,
    num_wanted: int,
    config: RegionConfig,
) -> list[RegionRow]:
    """The first `num_wanted` boxes in `order` of which more than `min_share_in_crop` lies in `crop`, as rows.

    A kept box is clipped to the crop, moved and mirrored with it, and scaled to `image_res`.
    """
    rows: list[RegionRow] = []
    for number in order:
        if len(rows) == num_wanted:
            break
        box = whole_pixel_box(boxes[number]) if config.whole_pixels else boxes[number]
        if (placed := _place(box, crop, flipped, config.min_share_in_crop)) is None:
            continue
        x, y, w, h = (side * image_res for side in placed)
        target = ((x + w / 2) / image_res, (y + h / 2) / image_res, w / image_res, h / image_res)
        rows.append(RegionRow(number, target, patch_mask((x, y, w, h), image_res, patch_size)))
    return rows


def whole_pixel_box(box: Box) -> Box:
    """`box` with its coordinates truncated to whole pixels, as the reference reads them."""
    return Box(int(box.x), int(box.y), int(box.w), int(box.h))


def _place(box: Box, crop: Crop, flipped: bool, min_fraction: float) -> tuple[float, float, float, float] | None:
    """xywh of the box's part inside the crop, in fractions of the crop's sides; None if that part is too small."""
    left, top, right, bottom = crop
    x0, y0 = max(box.x, left), max(box.y, top)
    x1, y1 = min(box.x + box.w, right), min(box.y + box.h, bottom)
    if box.area <= 0 or x1 <= x0 or y1 <= y0 or (x1 - x0) * (y1 - y0) <= min_fraction * box.area:
        return None
    x, y, w, h = x0 - left, y0 - top, x1 - x0, y1 - y0
    if flipped:
        x = (right - left) - x - w
    return x / (right - left), y / (bottom - top), w / (right - left), h / (bottom - top)


def patch_mask(box_xywh: Sequence[float], image_res: int, patch_size: int) -> np.ndarray:
    """(P,) true where a box in pixels of the resized image touches a patch; at least one patch always is."""
    grid = image_res // patch_size
    x, y, w, h = box_xywh
    columns, rows = _span(x, w, grid, patch_size), _span(y, h, grid, patch_size)
    mask = np.zeros((grid, grid), dtype=bool)
    mask[rows, columns] = True
    return mask.reshape(-1)


def _span(start: float, length: float, grid: int, patch_size: int) -> slice:
    first = min(math.floor(start / patch_size), grid - 1)
    end = max(first + 1, min(math.ceil((start + length) / patch_size), grid))
    return slice(first, end)


def choose_rows(num_rows: int, num_wanted: int, draws: Draws) -> list[int]:
    """Ascending numbers of exactly `num_wanted` rows out of `num_rows`: a random subset, or all and random repeats."""
    repeats, rest = divmod(num_wanted, num_rows)
    return sorted([*range(num_rows)] * repeats + draws.shuffled(range(num_rows))[:rest])
