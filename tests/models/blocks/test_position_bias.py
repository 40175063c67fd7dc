"""Table resizing against SciPy's bicubic spline, which runtime code does without."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from torch.testing import assert_close

from x2vlm.errors import ConfigError
from x2vlm.models.blocks.position_bias import resize_position_bias, source_offsets, spline_matrix


def rows(grid: int) -> int:
    return (2 * grid - 1) ** 2 + 3


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 48), (7, 8), (5, 8), (5, 11), (5, 3), (24, 14), (3, 4)])
def test_resizing_equals_scipy(old, new):
    torch.manual_seed(old * new)
    table = torch.randn(rows(old), 3)
    side, new_side = 2 * old - 1, 2 * new - 1
    offsets, wanted = source_offsets(side, new_side), np.arange(new_side) - new_side // 2
    resized = resize_position_bias(table, rows(new))
    for head in range(3):
        grid = table[:-3, head].double().reshape(side, side).numpy()
        expected = RectBivariateSpline(offsets, offsets, grid, kx=3, ky=3, s=0)(wanted, wanted)
        assert_close(resized[:-3, head], torch.from_numpy(expected).float().flatten(), atol=1e-5, rtol=1e-5)
    assert torch.equal(resized[-3:], table[-3:])


@pytest.mark.parametrize(("new", "ratio"), [(24, 1.090307), (48, 1.195487), (20, 1.060968), (30, 1.125056)])
def test_growth_ratio_is_the_published_one(new, ratio):
    offsets = source_offsets(27, 2 * new - 1)
    half = offsets[14:]
    assert half[0] == 1
    assert (half[2] - half[1]) / (half[1] - half[0]) == pytest.approx(ratio, abs=2e-6)
    assert half[-1] == pytest.approx(new - 1, abs=1e-3)


def test_same_resolution_is_a_copy():
    table = torch.randn(rows(4), 2)
    resized = resize_position_bias(table, rows(4))
    assert torch.equal(resized, table)
    assert resized is not table


def test_a_cubic_is_read_exactly_and_points_outside_at_the_end():
    knots = np.array([-3.0, -1.0, 0.0, 0.5, 2.0, 4.0])
    points = np.array([-2.2, 0.1, 3.9])

    def cubic(x):
        return 2 * x**3 - x**2 + 4 * x - 1

    np.testing.assert_allclose(spline_matrix(knots, points) @ cubic(knots), cubic(points), atol=1e-10)
    outside = spline_matrix(knots, np.array([-9.0, 9.0])) @ cubic(knots)
    np.testing.assert_allclose(outside, cubic(knots[[0, -1]]), atol=1e-10)


@pytest.mark.parametrize("num_rows", [0, 3, 7, 53, 731])
def test_row_counts_of_no_grid_are_refused(num_rows):
    with pytest.raises(ConfigError, match="square grid"):
        resize_position_bias(torch.zeros(rows(4), 1), num_rows)


def test_too_small_a_grid_is_refused():
    with pytest.raises(ConfigError, match="4 are needed"):
        resize_position_bias(torch.zeros(rows(2), 1), rows(4))
