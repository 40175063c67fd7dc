"""Outlines of the shapes and the pixels they cover, in integers only, so that every machine draws the same.

Outlines are closed rings of points with y down, the shape's radius being UNIT; two rings make a hole. Coordinates of a
placed outline are sixteenths of a pixel. A pixel is covered if its centre is inside by the even-odd rule.
"""

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ring = tuple[tuple[int, int], ...]
Mask = NDArray[np.bool_]

UNIT = 1000
SUBPIXELS = 16
TURN = 16384  # fixed-point one of the rotation


def _polar(radius: float, degrees: float, x: float = 0, y: float = 0) -> tuple[int, int]:
    # Rounding to 1/1000 of the radius removes the last bits, in which math libraries differ.
    angle = math.radians(degrees)
    return round(x + radius * math.cos(angle)), round(y + radius * math.sin(angle))


def _regular(corners: int, start: float = -90) -> Ring:
    return tuple(_polar(UNIT, start + 360 * corner / corners) for corner in range(corners))


def _star() -> Ring:
    return tuple(_polar(UNIT if corner % 2 == 0 else 400, -90 + 36 * corner) for corner in range(10))


def _heart() -> Ring:
    points = []
    for step in range(48):
        t = math.radians(7.5 * step)
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((round(x * 58), round(-(y + 2.5) * 58)))
    return tuple(points)


def _crescent() -> Ring:
    outer = [_polar(UNIT, degrees) for degrees in range(50, 311, 5)]
    inner = [_polar(804, 287.6 - 8.6 * step, x=400) for step in range(1, 25)]
    return tuple(outer + inner)


def _semicircle() -> Ring:
    return tuple(_polar(UNIT, degrees, y=450) for degrees in range(180, 361, 5))


OUTLINES: dict[str, tuple[Ring, ...]] = {
    "circle": (_regular(72),),
    "square": (((-800, -800), (800, -800), (800, 800), (-800, 800)),),
    "triangle": (_regular(3),),
    "pentagon": (_regular(5),),
    "hexagon": (_regular(6, 0),),
    "star": (_star(),),
    "diamond": (((0, -1000), (620, 0), (0, 1000), (-620, 0)),),
    "cross": (
        tuple(
            (x * 10, y * 10)
            for x, y in (
                *((-30, -95), (30, -95), (30, -30), (95, -30), (95, 30), (30, 30)),
                *((30, 95), (-30, 95), (-30, 30), (-95, 30), (-95, -30), (-30, -30)),
            )
        ),
    ),
    "heart": (_heart(),),
    "crescent": (_crescent(),),
    "ring": (_regular(72), tuple((x * 11 // 20, y * 11 // 20) for x, y in _regular(72))),
    "arrow": (((-1000, -280), (150, -280), (150, -700), (1000, 0), (150, 700), (150, 280), (-1000, 280)),),
    "semicircle": (_semicircle(),),
}


@cache
def _turn(degrees: int) -> tuple[int, int]:
    angle = math.radians(degrees)
    return round(TURN * math.cos(angle)), round(TURN * math.sin(angle))


def placed_outline(shape: str, x: int, y: int, radius: int, degrees: int) -> tuple[Ring, ...]:
    """The outline around centre (x, y) in pixels with `radius` pixels, turned clockwise; sixteenths of a pixel."""
    cosine, sine = _turn(degrees % 360)
    scale = UNIT * TURN
    return tuple(
        tuple(
            (
                x * SUBPIXELS + (px * cosine - py * sine) * radius * SUBPIXELS // scale,
                y * SUBPIXELS + (px * sine + py * cosine) * radius * SUBPIXELS // scale,
            )
            for px, py in ring
        )
        for ring in OUTLINES[shape]
    )


@dataclass(frozen=True)
class Patch:
    """A mask at (x, y) on a larger canvas."""

    x: int
    y: int
    mask: Mask

    def on(self, canvas: NDArray[Any]) -> NDArray[Any]:
        """The part of a canvas that the patch covers, as a view."""
        height, width = self.mask.shape
        return canvas[self.y : self.y + height, self.x : self.x + width]


def rasterise(rings: tuple[Ring, ...]) -> Patch:
    """The pixels whose centres are inside, cut to the smallest patch of whole pixels around the outline.

    Each edge flips every pixel to the right of it; pixels flipped an odd number of times are inside.
    """
    starts = np.array([point for ring in rings for point in ring], dtype=np.int64)
    ends = np.array([point for ring in rings for point in (*ring[1:], ring[0])], dtype=np.int64)
    left, top = (starts.min(axis=0) // SUBPIXELS).tolist()
    right, bottom = (starts.max(axis=0) // SUBPIXELS).tolist()
    width, height = right + 1 - left, bottom + 1 - top
    downwards = (starts[:, 1] < ends[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(downwards, starts, ends).T, np.where(downwards, ends, starts).T
    centres = np.arange(top, bottom + 1)[:, None] * SUBPIXELS + SUBPIXELS // 2
    rows, edges = np.nonzero((y0 <= centres) & (centres < y1))
    x0, y0, x1, y1 = x0[edges], y0[edges], x1[edges], y1[edges]
    # A centre 16 c + 8 is right of the edge where (16 c + 8 - x0) (y1 - y0) > (centre - y0) (x1 - x0).
    reach = (centres[rows, 0] - y0) * (x1 - x0) + (x0 - SUBPIXELS // 2) * (y1 - y0)
    columns = np.clip(reach // (SUBPIXELS * (y1 - y0)) + 1 - left, 0, width)
    flips = np.bincount(rows * (width + 1) + columns, minlength=height * (width + 1)).reshape(height, width + 1)
    return Patch(left, top, flips.cumsum(axis=1)[:, :width] % 2 == 1)


def covered_pixels(shape: str, x: int, y: int, radius: int, degrees: int) -> Patch:
    """The pixels of a shape around centre (x, y). The mask is shared and cannot be written to."""
    patch = _at_origin(shape, radius, degrees)
    return Patch(patch.x + x, patch.y + y, patch.mask)


@lru_cache(maxsize=4096)
def _at_origin(shape: str, radius: int, degrees: int) -> Patch:
    # A shift by whole pixels does not change an outline, so one mask is reused for every position.
    patch = rasterise(placed_outline(shape, 0, 0, radius, degrees))
    patch.mask.flags.writeable = False
    return patch
