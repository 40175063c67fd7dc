"""One decoded frame as an upright RGB image in the proportions in which a player shows it."""

from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

# Frame to display, (a, b, c, d) with x' = a x + c y and y' = b x + d y, as ISO 14496-12 has it, y pointing down.
_TRANSPOSES: tuple[tuple[tuple[int, int, int, int], Image.Transpose | None], ...] = (
    ((1, 0, 0, 1), None),
    ((0, 1, -1, 0), Image.Transpose.ROTATE_270),
    ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
    ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
    ((-1, 0, 0, 1), Image.Transpose.FLIP_LEFT_RIGHT),
    ((1, 0, 0, -1), Image.Transpose.FLIP_TOP_BOTTOM),
    ((0, 1, 1, 0), Image.Transpose.TRANSPOSE),
    ((0, -1, -1, 0), Image.Transpose.TRANSVERSE),
)
_EDGES_SWAPPED = tuple(turn for (a, *_), turn in _TRANSPOSES if a == 0)
MAX_ASPECT = 8  # of a pixel; beyond it players show the pixels square


def display_size(width: int, height: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
    """Width and height in square pixels: the width is scaled by the aspect of a pixel (width : height)."""
    if not pixel_aspect or not Fraction(1, MAX_ASPECT) <= pixel_aspect <= MAX_ASPECT:
        return width, height
    return max(1, round(width * pixel_aspect)), height


def transpose_of(matrix: bytes) -> Image.Transpose | None:
    """The quarter turn or reflection nearest to a display matrix: nine native 32-bit integers, as FFmpeg has them.

    Phones write exact quarter turns and reflections. Others (a turn by 10 degrees) would leave black corners. A matrix
    that maps an axis to nothing is none.
    """
    values = np.frombuffer(matrix[:36], dtype=np.int32).astype(np.float64)
    if values.size < 9:
        return None
    a, b, c, d = values[0], values[1], values[3], values[4]
    along_x, along_y = np.hypot(a, b), np.hypot(c, d)
    if not along_x or not along_y:
        return None
    found = (a / along_x, b / along_x, c / along_y, d / along_y)
    # Rounded, so that of two equally near ones the first is taken.
    return max(_TRANSPOSES, key=lambda item: round(sum(x * y for x, y in zip(item[0], found, strict=True)), 6))[1]


class FrameConverter:
    """Makes images of the frames of one clip."""

    def __init__(self, pixel_aspect: Fraction | None, max_short_edge: int | None) -> None:
        self._pixel_aspect, self._max_short_edge = pixel_aspect, max_short_edge
        self._transposes: dict[float, Image.Transpose | None] = {}

    def image_of(self, frame: Any) -> tuple[Image.Image, int, int]:
        """A frame as RGB, shrunk to the short edge where one is given, with the displayed width and height in full.

        FFmpeg converts with the colour matrix and range that the stream names; high dynamic range is not tone-mapped.
        """
        transpose = self._transpose(frame)
        size = display_size(frame.width, frame.height, self._pixel_aspect)
        # FFmpeg would start threads for every frame, which take address space and find none in a limited process.
        image: Image.Image = frame.to_image(threads=1)
        if transpose is not None:
            image = image.transpose(transpose)
            size = size[::-1] if transpose in _EDGES_SWAPPED else size
        return shrink(image, size, self._max_short_edge), *size

    def _transpose(self, frame: Any) -> Image.Transpose | None:
        """Looked at once for each turn: PyAV's side data and their frame hold each other, so the frame would stay."""
        from av.sidedata.sidedata import Type

        if frame.rotation not in self._transposes:
            side = frame.side_data.get(Type.DISPLAYMATRIX)
            self._transposes[frame.rotation] = transpose_of(bytes(side)) if side is not None else None
        return self._transposes[frame.rotation]


def shrink(image: Image.Image, size: tuple[int, int], max_short_edge: int | None) -> Image.Image:
    """`image`, which is shown in `size`, in that size or with the short edge `max_short_edge` if it is longer."""
    short_edge = min(size)
    if max_short_edge is not None and short_edge > max_short_edge:
        scale = max_short_edge / short_edge
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
