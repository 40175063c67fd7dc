"""Arithmetic on single boxes for readers and the download stage; the rules about boxes are in `box_rules`.

All boxes are `xywh` in pixels of the oriented original unless a name says `normalised`.
"""

import dataclasses
from collections.abc import Sequence

from x2vlm.samples import Box, Sample

NORMALISED = "norm:"  # annotation ids of concepts whose box is still in fractions of the image's width and height


def union(first: Box, second: Box) -> Box:
    """The smallest box around both."""
    x, y = min(first.x, second.x), min(first.y, second.y)
    right, bottom = max(first.x + first.w, second.x + second.w), max(first.y + first.h, second.y + second.h)
    return Box(x, y, right - x, bottom - y)


def pixel_box(box_cxcywh: Sequence[float], width: int, height: int, clip: bool = True) -> Box:
    """A predicted box in fractions of the sides as pixels of a `width` x `height` image, clipped to it if `clip`."""
    cx, cy, w, h = box_cxcywh
    left, top, right, bottom = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
    if clip:
        left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0)
    return Box(left * width, top * height, (right - left) * width, (bottom - top) * height)


def denormalise_boxes(sample: Sample, width: int, height: int) -> Sample:
    """`sample` with every normalised box in pixels of an image of `width` x `height`, its annotation id without prefix.

    Concepts whose box is in pixels already are unchanged.
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
