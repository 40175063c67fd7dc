"""Rules about boxes and the texts they carry (X2-VLM A.1), as pure functions of plain numbers and strings.

All boxes are `xywh` in pixels of the oriented original unless a name says `normalised`.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from x2vlm.data.texts import token_counts
from x2vlm.samples import Box, Sample

NORMALISED = "norm:"  # annotation ids of concepts whose box is still in fractions of the image's width and height

SmallBoxRule = Literal["area", "any_side"]
OverlapMeasure = Literal["smaller", "jaccard"]


def union(first: Box, second: Box) -> Box:
    """The smallest box around both."""
    x, y = min(first.x, second.x), min(first.y, second.y)
    right, bottom = max(first.x + first.w, second.x + second.w), max(first.y + first.h, second.y + second.h)
    return Box(x, y, right - x, bottom - y)


def denormalise_boxes(sample: Sample, width: int, height: int) -> Sample:
    """`sample` with every normalised box in pixels of an image of `width` x `height`, its annotation id without prefix.

    Concepts whose box is in pixels already stay as they are.
    """
    concepts = []
    for concept in sample.concepts:
        if concept.annotation_id.startswith(NORMALISED):
            box = concept.box
            pixels = Box(box.x * width, box.y * height, box.w * width, box.h * height)
            annotation_id = concept.annotation_id.removeprefix(NORMALISED)
            concept = dataclasses.replace(concept, box=pixels, annotation_id=annotation_id)
        concepts.append(concept)
    return dataclasses.replace(sample, concepts=tuple(concepts))


def pixels_outside(box: Box, width: int, height: int) -> float:
    """By how many pixels the box reaches over the image's border at its worst side; 0 inside, infinite for NaN."""
    over = max(-box.x, -box.y, box.x + box.w - width, box.y + box.h - height)
    return math.inf if any(map(math.isnan, (box.x, box.y, box.w, box.h))) else max(0.0, over)


def box_invalid(box: Box, width: int, height: int, tolerance_pixels: float = 0.5) -> bool:
    """True for a box without extent, or that reaches over the border by more than the tolerance (equality keeps).

    The paper removes such boxes, so we never clip them.
    """
    return not (box.w > 0 and box.h > 0 and pixels_outside(box, width, height) <= tolerance_pixels)


def snap_to_border(box: Box, width: int, height: int) -> Box:
    """A box that is valid within the tolerance, moved inside the image; boxes inside come back unchanged.

    Upstream floats pass the border by rounding (COCO boxes that touch it), and later stages rely on boxes being inside.
    """
    if pixels_outside(box, width, height) == 0:
        return box
    x, y = max(0.0, box.x), max(0.0, box.y)
    return Box(x, y, _extent(x, box.x + box.w, width), _extent(y, box.y + box.h, height))


def _extent(start: float, end: float, limit: int) -> float:
    """The length from `start` to `end`, cut so that start + length <= limit also holds in floating point."""
    length = min(end, limit) - start
    while start + length > limit:
        length = math.nextafter(length, -math.inf)
    return length


def resized_area(box: Box, width: int, height: int, image_res: int) -> float:
    """The box's area in pixels after the image was resized to a square of side `image_res`."""
    return box.w * box.h * image_res * image_res / (width * height)


def box_too_small(
    box: Box, width: int, height: int, image_res: int = 224, patch_size: int = 16, rule: SmallBoxRule = "area"
) -> bool:
    """True where the box is smaller than a patch once the image is resized to `image_res` (equality keeps).

    `area` is our reading of the paper: the box covers less area than a patch; `any_side`: some side is shorter than
    one. Products instead of quotients, so that equality is exact.
    """
    if rule == "any_side":
        return box.w * image_res < patch_size * width or box.h * image_res < patch_size * height
    return box.w * box.h * image_res * image_res < patch_size * patch_size * width * height


def text_overlap(first: Counter[str], second: Counter[str], measure: OverlapMeasure = "smaller") -> float:
    """How much two texts share, in [0, 1]: common words over the words of the smaller text, or over all (`jaccard`).

    Words count as often as they occur. A text without words shares nothing.
    """
    common = (first & second).total()
    whole = min(first.total(), second.total()) if measure == "smaller" else (first | second).total()
    return common / whole if whole else 0.0


def overlapping_texts(
    texts: Sequence[str], areas: Sequence[float], threshold: float = 0.75, measure: OverlapMeasure = "smaller"
) -> dict[int, float]:
    """The positions to drop, each with its overlap: texts that share more than `threshold` with one kept before.

    Larger areas are kept first; equal areas in the order given. Equality with the threshold keeps. A text is compared
    with kept ones only, so a dropped text never takes another with it.
    """
    dropped: dict[int, float] = {}
    kept: list[Counter[str]] = []
    for position in sorted(range(len(texts)), key=lambda index: -areas[index]):
        words = token_counts(texts[position])
        overlap = max((text_overlap(words, other, measure) for other in kept), default=0.0)
        if overlap > threshold:
            dropped[position] = overlap
        else:
            kept.append(words)
    return dropped
