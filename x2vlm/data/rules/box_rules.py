"""Rules about boxes (X2-VLM A.1), each over all boxes of a table at once.

Boxes are `xywh` in pixels of the oriented original, and every box knows the size of its image. Products are compared
instead of quotients, so that equality is exact for whole numbers as long as the products stay below 2^53.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from x2vlm.data.columns import numbers

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
SmallBoxRule = Literal["area", "any_side"]


@dataclass(frozen=True)
class Boxes:
    """Boxes with the sizes of their images, float64 arrays of equal length; NaN where unknown."""

    x: Floats
    y: Floats
    w: Floats
    h: Floats
    width: Floats
    height: Floats

    @property
    def area(self) -> Floats:
        return self.w * self.h


def boxes_of(values: pa.StructArray, width: Floats, height: Floats) -> Boxes:
    """The boxes in a struct column of x, y, w and h; a null box is NaN throughout."""
    x, y, w, h = (np.array(numbers(field)) for field in values.flatten())
    return Boxes(x, y, w, h, width, height)


def box_column(boxes: Boxes, kind: pa.StructType) -> pa.StructArray:
    """The boxes as a struct column of type `kind`."""
    sides = {"x": boxes.x, "y": boxes.y, "w": boxes.w, "h": boxes.h}
    return pa.StructArray.from_arrays([pa.array(sides[field.name]) for field in kind], fields=list(kind))


def size_unknown(boxes: Boxes) -> Bools:
    """True where the image's size is not known, so that the box cannot be judged."""
    return ~((boxes.width > 0) & (boxes.height > 0))


def pixels_outside(boxes: Boxes) -> Floats:
    """By how many pixels each box reaches over the image's border at its worst side; 0 inside, infinite for NaN."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, which counts as outside
        right, bottom = boxes.x + boxes.w - boxes.width, boxes.y + boxes.h - boxes.height
    over = np.maximum.reduce([-boxes.x, -boxes.y, right, bottom, np.zeros(len(boxes.x))])
    return np.where(np.isnan(over), np.inf, over)


def box_invalid(boxes: Boxes, tolerance_pixels: float = 0.5) -> Bools:
    """True for boxes without extent, or that reach over the border by more than the tolerance (equality keeps).

    The paper removes such boxes, so we never clip them.
    """
    return ~((boxes.w > 0) & (boxes.h > 0) & (pixels_outside(boxes) <= tolerance_pixels))


def snap_to_border(boxes: Boxes) -> Boxes:
    """Boxes that are valid within the tolerance, moved inside the image; boxes inside come back unchanged.

    Upstream floats pass the border by rounding (COCO boxes that touch it), and later stages rely on boxes being inside.
    A box that was only in the margin comes back without extent.
    """
    over = pixels_outside(boxes) > 0
    x, y = np.maximum(0.0, boxes.x), np.maximum(0.0, boxes.y)
    # x + (width - x) rounds to width exactly, as width is whole: the sums stay inside in floating point too.
    with np.errstate(invalid="ignore"):
        w = np.minimum(boxes.x + boxes.w, boxes.width) - x
        h = np.minimum(boxes.y + boxes.h, boxes.height) - y
    return Boxes(
        np.where(over, x, boxes.x),
        np.where(over, y, boxes.y),
        np.where(over, w, boxes.w),
        np.where(over, h, boxes.h),
        boxes.width,
        boxes.height,
    )


def resized_area(boxes: Boxes, image_res: int) -> Floats:
    """Each box's area in pixels after its image was resized to a square of side `image_res`."""
    return boxes.w * boxes.h * image_res * image_res / (boxes.width * boxes.height)


def box_too_small(boxes: Boxes, image_res: int = 224, patch_size: int = 16, rule: SmallBoxRule = "area") -> Bools:
    """True where the box is smaller than a patch once the image is resized to `image_res` (equality keeps).

    `area` is our reading of the paper: the box covers less area than a patch; `any_side`: some side is shorter than
    one.
    """
    if rule == "any_side":
        across, down = boxes.w * image_res < patch_size * boxes.width, boxes.h * image_res < patch_size * boxes.height
        return across | down
    return boxes.w * boxes.h * image_res * image_res < patch_size * patch_size * boxes.width * boxes.height
