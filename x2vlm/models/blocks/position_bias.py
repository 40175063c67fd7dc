"""Relative position tables at another resolution: the geometric interpolation of BEiT, without SciPy.

A table has (2 g - 1) squared rows, one per (row offset, column offset) on a g x g grid, then three rows for the class
token. Near offsets matter more than far ones, so the source offsets are spread at geometrically growing distances
and the table is read from an interpolating bicubic spline at the integers. On a full grid
the spline is a product of two one-dimensional ones, each a small matrix: the not-a-knot cubic spline.
"""

import math

import numpy as np
import torch
from torch import Tensor

from x2vlm.errors import ConfigError

NUM_CLASS_ROWS = 3
# Bounds of the growth ratio. With the lower one, a smaller grid crops the table instead of compressing it.
_RATIO_RANGE = (1.01, 1.5)


def resize_position_bias(table_TH: Tensor, num_rows: int) -> Tensor:
    """`table_TH` with `num_rows` rows for another grid; computed in float64, returned in the table's type.

    ConfigError if either row count is not that of a square grid, or the source has fewer than 4 offsets a side.
    """
    source, target = _side(table_TH.shape[0]), _side(num_rows)
    if source == target:
        return table_TH.clone()
    if source < 4:
        raise ConfigError(f"position table with {source} offsets a side cannot be interpolated: 4 are needed")
    operator = torch.from_numpy(spline_matrix(source_offsets(source, target), np.arange(target) - target // 2))
    grid_HSS = table_TH[:-NUM_CLASS_ROWS].detach().double().cpu().T.reshape(-1, source, source)
    resized_HTT = operator @ grid_HSS @ operator.T
    resized_TH = resized_HTT.flatten(1).T.to(table_TH)
    return torch.cat([resized_TH, table_TH[-NUM_CLASS_ROWS:].detach()])


def resize_window_bias(table_TH: Tensor, num_rows: int) -> Tensor:
    """A Swin table, one row per offset in a window and none for a class token, for another window: plain bicubic."""
    source, target = math.isqrt(len(table_TH)), math.isqrt(num_rows)
    grid_1HSS = table_TH.detach().float().T.reshape(1, -1, source, source)
    resized = torch.nn.functional.interpolate(grid_1HSS, (target, target), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T.to(table_TH)


def source_offsets(source: int, target: int) -> np.ndarray:
    """Positions of the `source` offsets of a side, in target patches: 0, 1, 1 + q, 1 + q + q^2, ... and negatives."""
    left, right = _RATIO_RANGE
    ratio = left
    half = source // 2
    while right - left > 1e-6:
        ratio = (left + right) / 2
        if (1 - ratio**half) / (1 - ratio) > target // 2:
            right = ratio
        else:
            left = ratio
    distances = np.cumsum(ratio ** np.arange(half))
    return np.concatenate([-distances[::-1], [0.0], distances])


def spline_matrix(knots_S: np.ndarray, points_T: np.ndarray) -> np.ndarray:
    """(T, S) matrix that evaluates the not-a-knot cubic spline through (knots, values) at `points_T`.

    Points outside the knots are evaluated at the nearest end, as FITPACK does.
    """
    curvature_SS = _curvature_matrix(knots_S)
    points = np.clip(points_T, knots_S[0], knots_S[-1]).astype(np.float64)
    left = np.clip(np.searchsorted(knots_S, points, side="right") - 1, 0, len(knots_S) - 2)
    width = knots_S[left + 1] - knots_S[left]
    after = ((points - knots_S[left]) / width)[:, None]
    before = 1 - after
    identity = np.eye(len(knots_S))
    straight = before * identity[left] + after * identity[left + 1]
    bend = (before**3 - before) * curvature_SS[left] + (after**3 - after) * curvature_SS[left + 1]
    return np.asarray(straight + bend * (width[:, None] ** 2) / 6)


def _curvature_matrix(knots_S: np.ndarray) -> np.ndarray:
    """(S, S) matrix from values to second derivatives at the knots; the third one is continuous next to the ends."""
    size, step = len(knots_S), np.diff(knots_S)
    left, right = np.zeros((size, size)), np.zeros((size, size))
    for i in range(1, size - 1):
        left[i, i - 1 : i + 2] = step[i - 1], 2 * (step[i - 1] + step[i]), step[i]
        right[i, i - 1 : i + 2] = 6 / step[i - 1], -6 / step[i - 1] - 6 / step[i], 6 / step[i]
    left[0, :3] = step[1], -(step[0] + step[1]), step[0]
    left[-1, -3:] = step[-1], -(step[-2] + step[-1]), step[-2]
    return np.asarray(np.linalg.solve(left, right))


def _side(num_rows: int) -> int:
    side = math.isqrt(max(num_rows - NUM_CLASS_ROWS, 0))
    if side * side != num_rows - NUM_CLASS_ROWS or side % 2 == 0:
        raise ConfigError(f"a position table with {num_rows} rows belongs to no square grid")
    return side
