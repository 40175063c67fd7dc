"""Overlap of boxes, in the two conventions that published numbers use."""

from typing import Literal

from x2vlm.samples import Box

IouConvention = Literal["plain", "inclusive"]
IOU_THRESHOLD = 0.5  # `>=`: the reference's and lmms-eval's reading of "IoU > 0.5"


def box_iou(a: Box, b: Box, convention: IouConvention = "plain") -> float:
    """Intersection over union of two xywh boxes in pixels.

    "inclusive" is the reference's: the far edges are the last pixels inside, and boxes up to one pixel wide never meet.
    """
    if convention == "plain":
        width = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
        height = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
        if width <= 0 or height <= 0:
            return 0.0
        inside = width * height
    else:
        left, right = max(a.x, b.x), min(a.x + a.w - 1, b.x + b.w - 1)
        top, bottom = max(a.y, b.y), min(a.y + a.h - 1, b.y + b.h - 1)
        inside = (right - left + 1) * (bottom - top + 1) if left < right and top < bottom else 0.0
    return float(inside / (a.area + b.area - inside))
