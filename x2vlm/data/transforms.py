"""How a picture becomes numbers: crop, mirror, colour and geometry changes, resize, normalise.

What will be done is decided first (`plan_picture`, a value made of draws) and then done (`apply_plan`): so all frames
of a clip can share one plan, and boxes can go through the same crop and mirror.
C channels, H W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

from x2vlm.data.config import AugmentConfig
from x2vlm.data.randomness import Draws

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
GREY = (128, 128, 128)

# At strength 7 of 10 (the reference's only setting): enhancement, shear, shift in pixels, degrees.
ENHANCE_SPAN, ENHANCE_FLOOR, MAX_SHEAR, MAX_SHIFT_PIXELS, MAX_DEGREES = 1.8, 0.1, 0.3, 10.0, 30.0
COLOUR_OPS = ("identity", "autocontrast", "equalize", "brightness", "sharpness")
GEOMETRY_OPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")

Crop = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Operation:
    """One change of a picture: its name, and how much (pixels, degrees, factor), signed."""

    name: str
    amount: float = 0.0


@dataclass(frozen=True)
class PicturePlan:
    """What will be done to a picture, in this order: crop, mirror, resize to a square, operations."""

    crop: Crop
    flipped: bool
    operations: tuple[Operation, ...] = ()


def plan_picture(width: int, height: int, draws: Draws, config: AugmentConfig, may_flip: bool) -> PicturePlan:
    """A random plan for a picture of that size: crop of `min_area` or more, mirrored or not, a few operations."""
    crop = draw_crop(width, height, draws, config.min_area)
    flipped = draws.chance(config.flip_prob) and may_flip
    return PicturePlan(crop, flipped, draw_operations(draws, config, COLOUR_OPS + GEOMETRY_OPS))


def draw_crop(width: int, height: int, draws: Draws, min_area: float) -> Crop:
    """A crop of random area (share of the picture, at least `min_area`) and shape (3:4 to 4:3), like torchvision's.

    After ten shapes that do not fit: the largest central crop of an allowed shape.
    """
    for _ in range(10):
        area = width * height * draws.uniform(min_area, 1.0)
        ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = draws.integer(0, width - w), draws.integer(0, height - h)
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def draw_operations(draws: Draws, config: AugmentConfig, names: Sequence[str]) -> tuple[Operation, ...]:
    """`num_ops` names with replacement, each kept with `op_prob`; geometric ones go either way."""
    operations = []
    for _ in range(config.num_ops):
        name, kept, negative = draws.choice(names), draws.chance(config.op_prob), draws.chance(0.5)
        if kept:
            operations.append(operation_at(name, config.strength, negative))
    return tuple(operations)


def operation_at(name: str, strength: float, negative: bool = False) -> Operation:
    """The operation `name` at a strength of 0 to 10."""
    share = strength / 10
    if name in ("brightness", "sharpness"):
        return Operation(name, share * ENHANCE_SPAN + ENHANCE_FLOOR)
    largest = {"shear": MAX_SHEAR, "translate": MAX_SHIFT_PIXELS, "rotate": MAX_DEGREES}.get(name.split("_")[0], 0.0)
    return Operation(name, -share * largest if negative else share * largest)


def apply_plan(
    image: Image.Image, plan: PicturePlan, image_res: int, parity: Literal["reference"] | None = None
) -> Tensor:
    """`image` (RGB) as normalised float32 (C, H, W) with H = W = `image_res` after the steps of `plan`."""
    picture = cut_and_resize(image, plan.crop, plan.flipped, image_res)
    for operation in plan.operations:
        picture = apply_operation(picture, operation, parity)
    return normalised(picture)


def cut_and_resize(image: Image.Image, crop: Crop, flipped: bool, image_res: int) -> Image.Image:
    """The crop, mirrored if `flipped`, as a square of `image_res` (bicubic; the shape is not kept)."""
    picture = image.crop(crop)
    if flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture.resize((image_res, image_res), Image.Resampling.BICUBIC)


def evaluation_pixels(image: Image.Image, image_res: int) -> Tensor:
    """The whole of `image` (RGB) squashed to a square, normalised: (C, H, W)."""
    return normalised(image.resize((image_res, image_res), Image.Resampling.BICUBIC))


def normalised(image: Image.Image) -> Tensor:
    """RGB bytes as float32 (C, H, W), with CLIP's mean taken off and divided by its deviation."""
    pixels_CHW = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255.0
    return ((pixels_CHW - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).contiguous()


def apply_operation(
    image: Image.Image, operation: Operation, parity: Literal["reference"] | None = None
) -> Image.Image:
    """`image` (RGB) after one operation; what comes into view from outside is grey."""
    name, amount = operation.name, operation.amount
    if name == "sharpness" and parity == "reference":
        return _sharpen_wrapping(image, amount)
    if name in _GEOMETRY:
        return _affine(image, _GEOMETRY[name](amount, *image.size))
    return _COLOUR[name](image, amount)


_COLOUR: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, amount: image,
    "autocontrast": lambda image, amount: ImageOps.autocontrast(image),
    "equalize": lambda image, amount: ImageOps.equalize(image),
    "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(amount),
    "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(amount),
}

Affine = tuple[float, float, float, float, float, float]


def _rotation(degrees: float, width: int, height: int) -> Affine:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


# Amount, width and height to the six numbers that send a pixel of the result to its place in the original.
_GEOMETRY: dict[str, Callable[[float, int, int], Affine]] = {
    "shear_x": lambda amount, width, height: (1.0, -amount, 0.0, 0.0, 1.0, 0.0),
    "shear_y": lambda amount, width, height: (1.0, 0.0, 0.0, -amount, 1.0, 0.0),
    "translate_x": lambda amount, width, height: (1.0, 0.0, amount, 0.0, 1.0, 0.0),
    "translate_y": lambda amount, width, height: (1.0, 0.0, 0.0, 0.0, 1.0, amount),
    "rotate": _rotation,
}


def _affine(image: Image.Image, matrix: Affine) -> Image.Image:
    """Bilinear; the grey frame makes the edge fade into grey, as OpenCV's constant border does."""
    a, b, c, d, e, f = matrix
    frame = 2
    c, f = c + frame + 0.5 - 0.5 * (a + b), f + frame + 0.5 - 0.5 * (d + e)  # Pillow counts from pixel corners
    framed = ImageOps.expand(image, frame, GREY)
    return framed.transform(
        image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=GREY
    )


def _sharpen_wrapping(image: Image.Image, factor: float) -> Image.Image:
    """The reference's sharpening: what leaves 0..255 comes back at the other end (4 % of the golden bytes)."""
    smooth = np.asarray(image.filter(ImageFilter.SMOOTH), dtype=np.float64)
    original = np.asarray(image, dtype=np.float64)
    wrapped = np.trunc(smooth + factor * (original - smooth)).astype(np.int64) & 255
    return Image.fromarray(wrapped.astype(np.uint8))
