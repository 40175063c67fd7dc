"""Scenes: positions of things and their relations. A function of (seed, scene number, size) without any floats.

Objects are listed from back to front. Boxes are whole pixels, exactly around the visible part of an object.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.shapes import Patch, Ring, covered_pixels, placed_outline
from pipelines.corpora.world.drawing.words import BACKGROUNDS, COLOURS, INVERSE, RELATIONS, SHAPES, SIZES, TEXTURES
from x2vlm.data.randomness import Draws

PixelBox = tuple[int, int, int, int]  # x, y, w, h
FORMATS = ((1, 1), (5, 4), (4, 5), (3, 2), (2, 3))  # width to height
MAX_OBJECTS = 8
ATTEMPTS = 30
LEAST_AREA = 384  # pixels of an object's box in a 224 x 224 image: one and a half patches, well above the filter limit


@dataclass(frozen=True)
class Thing:
    """One object: its look, its position and its visible part."""

    shape: str
    colour: str
    texture: str
    size: str
    x: int  # centre, pixels
    y: int
    radius: int
    degrees: int
    box: PixelBox = (0, 0, 0, 0)  # of the visible part
    full_box: PixelBox = (0, 0, 0, 0)  # of the whole shape
    visible: int = 0  # pixels
    pixels: int = 0  # of the whole shape

    @property
    def outline(self) -> tuple[Ring, ...]:
        return placed_outline(self.shape, self.x, self.y, self.radius, self.degrees)

    @property
    def patch(self) -> Patch:
        """The pixels of the whole shape."""
        return covered_pixels(self.shape, self.x, self.y, self.radius, self.degrees)

    @property
    def look(self) -> tuple[str, str, str]:
        return self.colour, self.texture, self.shape


@dataclass(frozen=True)
class Relation:
    """`subject` has relation `name` to `target`; both are positions in the scene's list of things."""

    name: str
    subject: int
    target: int


@dataclass(frozen=True)
class Scene:
    """An image before it is drawn."""

    index: int
    width: int
    height: int
    background: str
    things: tuple[Thing, ...]
    relations: tuple[Relation, ...]


@lru_cache(maxsize=64)
def make_scene(config: WorldConfig, index: int, size: tuple[int, int] | None = None) -> Scene:
    """Scene number `index` with 1 to 8 things; `size` (width, height) is drawn where it is not given."""
    draws = Draws(config.seed, index, "scene")
    width, height = size or draw_size(config, index)
    background = draws.choice(tuple(BACKGROUNDS))
    canvas = Canvas(width, height, config.min_visible_share)
    wanted = draws.integer(1, MAX_OBJECTS)
    for _ in range(wanted * ATTEMPTS):
        canvas.try_to_add(_draw_thing(draws, canvas))
        if len(canvas.things) == wanted:
            break
    things = canvas.measured()
    return Scene(index, width, height, background, things, find_relations(things, canvas.covered, min(width, height)))


def draw_size(config: WorldConfig, index: int) -> tuple[int, int]:
    """Width and height of an ordinary image; its short side is the configured one."""
    wide, high = Draws(config.seed, index, "size").choice(FORMATS)
    short = min(wide, high)
    return config.image_size * wide // short, config.image_size * high // short


def compose(
    index: int, size: tuple[int, int], background: str, things: Sequence[Thing], min_visible_fraction: float
) -> Scene | None:
    """A scene of given things, back to front, or None where one would be outside or hidden."""
    canvas = Canvas(*size, min_visible_fraction)
    for thing in things:
        if not canvas.try_to_add(thing):
            return None
    measured = canvas.measured()
    return Scene(index, *size, background, measured, find_relations(measured, canvas.covered, min(size)))


def _draw_thing(draws: Draws, canvas: "Canvas") -> Thing:
    """A thing at a random place; often on or near another one, so that things overlap."""
    short = min(canvas.width, canvas.height)
    size = draws.choice(tuple(SIZES))
    where = draws.integer(0, 99)
    host = draws.choice(canvas.things) if canvas.things else None
    if host and where < 12 and host.size in ("large", "huge"):
        size = "tiny"
        x, y = host.x + draws.integer(-4, 4), host.y + draws.integer(-4, 4)
    elif host and where < 45:
        x = host.x + draws.integer(-3 * host.radius // 2, 3 * host.radius // 2)
        y = host.y + draws.integer(-3 * host.radius // 2, 3 * host.radius // 2)
    else:
        x, y = draws.integer(0, canvas.width - 1), draws.integer(0, canvas.height - 1)
    return Thing(
        shape=draws.choice(SHAPES),
        colour=draws.choice(tuple(COLOURS)),
        texture=draws.choice(TEXTURES),
        size=size,
        x=x,
        y=y,
        radius=max(4, short * SIZES[size] // 100),
        degrees=5 * draws.integer(-3, 3),
    )


class Canvas:
    """The things placed so far: `owner` is the topmost thing of each pixel, -1 for none."""

    def __init__(self, width: int, height: int, min_visible_share: float) -> None:
        self.width, self.height = width, height
        self.things: list[Thing] = []
        self.owner: NDArray[np.int16] = np.full((height, width), -1, dtype=np.int16)
        self.covered: dict[tuple[int, int], int] = {}  # (above, below) -> common pixels of the whole shapes
        self._patches: list[Patch] = []
        self._visible: list[int] = []
        # Parts per million, so that no float decides what is placed.
        self._min_visible_ppm = round(min_visible_share * 1_000_000)

    def try_to_add(self, thing: Thing) -> bool:
        """Put a thing on top; False (without effect) if it leaves the canvas or covers too much of another."""
        if not (thing.radius // 2 < thing.x < self.width - thing.radius // 2):
            return False  # no shape is that narrow: saves drawing it
        if not (thing.radius // 2 < thing.y < self.height - thing.radius // 2):
            return False
        patch = thing.patch
        height, width = patch.mask.shape
        if patch.x < 1 or patch.y < 1 or patch.x + width >= self.width or patch.y + height >= self.height:
            return False
        if not self._large_enough(bounds(patch.mask, patch.x, patch.y)):
            return False
        below = self.owner[patch.y : patch.y + height, patch.x : patch.x + width]
        newly_covered = np.bincount(below[patch.mask] + 1, minlength=len(self.things) + 1)[1:]
        for number, lost in enumerate(newly_covered.tolist()):
            if not lost:
                continue
            left = self._visible[number] - lost
            if left * 1_000_000 < self._min_visible_ppm * self.things[number].pixels or not self._box_survives(
                number, patch
            ):
                return False
        pixels = int(patch.mask.sum())
        for number, other in enumerate(self._patches):
            common = overlap(patch, other)
            if common:
                if common * 20 < min(pixels, self.things[number].pixels):
                    return False  # a touch of a few pixels is neither apart nor in front
                self.covered[len(self.things), number] = common
        below[patch.mask] = len(self.things)
        self._visible = [visible - lost for visible, lost in zip(self._visible, newly_covered.tolist(), strict=True)]
        self.things.append(replace(thing, pixels=pixels, full_box=bounds(patch.mask, patch.x, patch.y)))
        self._patches.append(patch)
        self._visible.append(pixels)
        return True

    def measured(self) -> tuple[Thing, ...]:
        """The things with the box and the number of their visible pixels."""
        return tuple(
            replace(thing, box=bounds(self.visible_mask(number)), visible=self._visible[number])
            for number, thing in enumerate(self.things)
        )

    def visible_mask(self, number: int) -> NDArray[np.bool_]:
        """The pixels of the canvas that show thing `number`."""
        return np.equal(self.owner, number)

    def _box_survives(self, number: int, patch: Patch) -> bool:
        x, y, w, h = self.things[number].full_box
        rest = self.owner[y : y + h, x : x + w] == number
        mask = np.zeros(self.owner.shape, dtype=bool)
        patch.on(mask)[...] = patch.mask
        return self._large_enough(bounds(rest & ~mask[y : y + h, x : x + w], x, y))

    def _large_enough(self, box: PixelBox) -> bool:
        return box[2] * box[3] * 224 * 224 >= LEAST_AREA * self.width * self.height


def bounds(mask: NDArray[np.bool_], x: int = 0, y: int = 0) -> PixelBox:
    """The smallest box around the true pixels of a mask that lies at (x, y); without extent if there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return x, y, 0, 0
    left, top = int(columns[0]), int(rows[0])
    return x + left, y + top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def overlap(one: Patch, other: Patch) -> int:
    """How many pixels both patches cover."""
    left, top = max(one.x, other.x), max(one.y, other.y)
    right = min(one.x + one.mask.shape[1], other.x + other.mask.shape[1])
    bottom = min(one.y + one.mask.shape[0], other.y + other.mask.shape[0])
    if right <= left or bottom <= top:
        return 0
    first = one.mask[top - one.y : bottom - one.y, left - one.x : right - one.x]
    second = other.mask[top - other.y : bottom - other.y, left - other.x : right - other.x]
    return int((first & second).sum())


def find_relations(things: Sequence[Thing], covered: dict[tuple[int, int], int], short: int) -> tuple[Relation, ...]:
    """Every relation that holds between two things, in a fixed order."""
    return tuple(
        Relation(name, subject, target)
        for subject in range(len(things))
        for target in range(len(things))
        if subject != target
        for name in RELATIONS
        if holds(name, subject, target, things, covered, short)
    )


def holds(
    name: str, subject: int, target: int, things: Sequence[Thing], covered: dict[tuple[int, int], int], short: int
) -> bool:
    """True where the relation holds.

    `left_of`, `above`: the boxes are apart on that axis and their centres differ more on it than on the other.
    `inside`: on top, and the whole shape lies on the other's. `in_front_of`: on top of at least a twentieth of the
    smaller one, and not inside. `near`: apart by at most a sixteenth of the image's short side. `far_from`: by at
    least two fifths. The others are their inverses.
    """
    if name in ("right_of", "below", "behind", "around"):
        return holds(INVERSE[name], target, subject, things, covered, short)
    a, b = things[subject], things[target]
    ax, ay, aw, ah = a.box
    bx, by, bw, bh = b.box
    across = (2 * bx + bw) - (2 * ax + aw)  # twice the distance of the centres
    down = (2 * by + bh) - (2 * ay + ah)
    match name:
        case "left_of":
            return ax + aw <= bx and abs(down) < across
        case "above":
            return ay + ah <= by and abs(across) < down
        case "inside":
            return covered.get((subject, target), 0) == a.pixels
        case "in_front_of":
            return 0 < covered.get((subject, target), 0) < a.pixels
    gap = max(bx - ax - aw, ax - bx - bw, by - ay - ah, ay - by - bh)
    if name == "near":
        return gap >= 0 and gap * 16 <= short
    return gap * 5 >= short * 2
