"""Words that describe a box, computed from pixels: the colour of its object, its size and its position."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

NO_COLOUR = {"person", "wine glass", "bottle", "vase", "fork", "knife", "spoon", "sink", "tv"}
"""For `person` a colour word would not mean clothes; the others are transparent or reflective."""

MIN_COLOUR_FRACTION = 0.55
"""Of the object's pixels; below it no single word is true."""

MIN_COLOUR_PIXELS = 400
MONOCHROME_SATURATION = 12.0
"""Mean HSV saturation (0-255) below which a photo counts as black and white and gets no colour words."""

HUES = [(14, "red"), (45, "orange"), (70, "yellow"), (165, "green"), (260, "blue"), (300, "purple"), (340, "pink")]
"""Upper hue in degrees of each name; the rest is red again."""


def object_colour(photo: Image.Image, annotation: dict[str, Any], category: str) -> str | None:
    """The colour of most pixels inside the COCO segmentation, or None without a clear majority."""
    if category in NO_COLOUR or annotation["iscrowd"]:
        return None
    hsv = np.asarray(photo.convert("RGB").convert("HSV"))
    if hsv[..., 1].mean() < MONOCHROME_SATURATION:
        return None
    pixels = hsv[_inside(annotation["segmentation"], photo.size)]
    if len(pixels) < MIN_COLOUR_PIXELS:
        return None
    names, counts = np.unique(_colour_names(pixels), return_counts=True)
    best = int(counts.argmax())
    return str(names[best]) if counts[best] >= MIN_COLOUR_FRACTION * len(pixels) else None


def _inside(polygons: list[list[float]], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    mask = Image.new("1", size)
    for polygon in polygons:
        ImageDraw.Draw(mask).polygon(polygon, fill=1)
    return np.asarray(mask)


def _colour_names(pixels_N3: npt.NDArray[np.uint8]) -> npt.NDArray[np.str_]:
    hue = pixels_N3[:, 0].astype(np.float64) * 360 / 256
    saturation, value = pixels_N3[:, 1], pixels_N3[:, 2]
    limits = np.array([limit for limit, _ in HUES])
    named = np.array([*[name for _, name in HUES], "red"])[np.searchsorted(limits, hue, side="right")]
    named = np.where((named == "orange") & (value < 170), "brown", named)
    named = np.where(saturation < 50, np.where(value > 190, "white", "gray"), named)
    return np.where(value < 55, "black", named)


def place(box_xywh: list[float], width: int, height: int) -> str:
    """The position of the box centre in the photo, in thirds: `on the left`, `in the top right corner`, ..."""
    x, y, w, h = box_xywh
    column = ("left", "", "right")[min(2, int(3 * (x + w / 2) / width))]
    row = ("top", "", "bottom")[min(2, int(3 * (y + h / 2) / height))]
    if row and column:
        return f"in the {row} {column} corner"
    if column:
        return f"on the {column}"
    return f"at the {row}" if row else "in the middle"


def size_word(box_xywh: list[float], width: int, height: int) -> str | None:
    """`large` above a quarter of the photo, `small` below 2 %, else None."""
    area_fraction = box_xywh[2] * box_xywh[3] / (width * height)
    return "large" if area_fraction > 0.25 else "small" if area_fraction < 0.02 else None


def region_phrase(category: str, colour: str | None, box_xywh: list[float], width: int, height: int) -> str:
    """For example `large brown dog on the left`."""
    words = [size_word(box_xywh, width, height), colour, category, place(box_xywh, width, height)]
    return " ".join(word for word in words if word)


def token_overlap(first: str, second: str) -> float:
    """Shared tokens over the tokens of the shorter text, as multisets (1.0 = one text contains the other)."""
    a, b = sorted(first.lower().split()), sorted(second.lower().split())
    shared = sum(min(len(list(group)), b.count(token)) for token, group in itertools.groupby(a))
    return shared / min(len(a), len(b))
