"""Boxes that a filter must drop: too small, or not inside the image."""

from dataclasses import dataclass

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.scene import PixelBox
from pipelines.corpora.world.drawing.shots import Shot
from x2vlm.data.randomness import Draws


@dataclass(frozen=True)
class BadBox:
    """A planted box. `number` distinguishes several of one image."""

    number: int
    box: PixelBox
    planted: str
    detail: str
    expected: tuple[str, str]


def bad_boxes(config: WorldConfig, shot: Shot, purpose: str) -> list[BadBox]:
    """The bad boxes of an image, usually none."""
    draws = Draws(config.seed, shot.index, purpose)
    width, height = shot.width, shot.height
    found = []
    if draws.chance(config.noise.tiny_box):
        # Less than 10 x 10 of 224 x 224 pixels: a patch has 16 x 16.
        w, h = max(1, width * 9 // 224), max(1, height * 9 // 224)
        box = (draws.integer(0, width - w - 1), draws.integer(0, height - h - 1), w, h)
        found.append(BadBox(0, box, "tiny_box", f"{w} x {h} pixels", ("filter", "box_too_small")))
    if draws.chance(config.noise.invalid_box):
        x, y, w, h = width // 4, height // 4, width // 3, height // 3
        boxes = {
            "negative left side": (-5 - draws.integer(0, 20), y, w, h),
            "negative top": (x, -5 - draws.integer(0, 900), w, h),
            "zero width": (x, y, 0, h),
            "past the right border": (width - w + 5 + draws.integer(0, 20), y, w, h),
            "past the bottom border": (x, height - h + 5 + draws.integer(0, 20), w, h),
        }
        detail = draws.choice(tuple(boxes))
        found.append(BadBox(1, boxes[detail], "invalid_box", detail, ("filter", "box_invalid")))
    return found
