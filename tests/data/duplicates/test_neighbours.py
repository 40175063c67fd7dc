"""Near embeddings: exactly those that one product of everything with everything finds."""

import numpy as np
import pytest

from x2vlm.data.duplicates import neighbours
from x2vlm.data.duplicates.neighbours import cross_neighbours, near_neighbours


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_finds_what_the_whole_product_finds_across_blocks(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    draws = np.random.default_rng(2)
    centres_KD = draws.standard_normal((12, 24))
    rows_ND = (centres_KD[draws.integers(0, 12, 75)] + 0.25 * draws.standard_normal((75, 24))).astype(dtype)
    unit_ND = rows_ND.astype(np.float64)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    cosine_NN = unit_ND @ unit_ND.T
    tau = 0.9
    left, right = np.nonzero(np.triu(cosine_NN >= tau, 1))
    assert 20 < len(left) < 1000
    found = near_neighbours(rows_ND, tau)
    assert list(zip(found.left, found.right, strict=True)) == list(zip(left, right, strict=True))
    assert found.cosine == pytest.approx(cosine_NN[left, right], abs=1e-6)
    cross = cross_neighbours(rows_ND[:40], rows_ND[40:], tau)
    left, right = np.nonzero(cosine_NN[:40, 40:] >= tau)
    assert list(zip(cross.left, cross.right, strict=True)) == list(zip(left, right, strict=True))


def test_rows_without_direction_are_near_nothing() -> None:
    rows = np.array([[0, 0], [np.nan, 1], [np.inf, 1], [0, 0], [3, 4], [6, 8]], dtype=np.float32)
    found = near_neighbours(rows, 0.5)
    assert list(zip(found.left, found.right, strict=True)) == [(4, 5)]
    assert found.cosine.max() <= 1.0
    assert len(near_neighbours(np.empty((0, 2), np.float32), 0.5)) == 0


def test_refuses_what_means_nothing() -> None:
    rows = np.ones((2, 3), np.float32)
    for tau in (0.0, -0.5, 1.1):
        with pytest.raises(ValueError, match="tau"):
            near_neighbours(rows, tau)
    with pytest.raises(ValueError, match="widths differ"):
        cross_neighbours(rows, np.ones((2, 4), np.float32), 0.5)
