"""Metrics against hand-made cases and naive versions."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from x2vlm.errors import InvalidSample
from x2vlm.samples import Box
from x2vlm.tasks.scoring import best_ranks, bootstrap_interval, box_iou, recall_at, shortlist_ranks


def naive_rank(scores: list[float], right: list[int]) -> int:
    """Place of the first right candidate when sorted by score, then by index."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    return min(order.index(index) for index in right)


@given(st.integers(1, 6), st.integers(1, 7), st.randoms(use_true_random=False))
def test_best_ranks_agree_with_sorting(queries: int, candidates: int, rng: random.Random) -> None:
    scores = np.array([[float(rng.randrange(4)) for _ in range(candidates)] for _ in range(queries)])  # many ties
    right = [rng.sample(range(candidates), rng.randint(1, candidates)) for _ in range(queries)]
    expected = [naive_rank(list(row), answer) for row, answer in zip(scores, right, strict=True)]
    assert best_ranks(scores, right).tolist() == expected


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_shortlist_ranks_are_those_of_the_whole_table(
    queries: int, candidates: int, size: int, rng: random.Random
) -> None:
    chosen = np.array([rng.sample(range(candidates), min(size, candidates)) for _ in range(queries)])
    scores = np.array([[float(rng.randrange(4)) for _ in row] for row in chosen])  # many ties
    table = np.full((queries, candidates), -100.0)
    np.put_along_axis(table, chosen, scores, axis=1)
    right = [rng.sample(range(candidates), rng.randint(1, candidates)) for _ in range(queries)]
    assert shortlist_ranks(chosen, scores, candidates, right).tolist() == best_ranks(table, right).tolist()


def test_broken_shortlists_are_refused() -> None:
    chosen = np.array([[0, 2]])
    for scores, right, rule in (
        (np.array([[np.nan, 1.0]]), [[0]], "nan_score"),
        (np.array([[0.0, 1.0]]), [[]], "no_right_answer"),
        (np.array([[0.0, 1.0]]), [[0], [1]], "missing_predictions"),
        (np.array([[0.0]]), [[0]], "missing_predictions"),
    ):
        with pytest.raises(InvalidSample) as error:
            shortlist_ranks(chosen, scores, 3, right)
        assert error.value.rule == rule


def test_recall_of_a_perfect_and_of_a_permuted_model() -> None:
    ranks = best_ranks(np.eye(4), [[0], [1], [2], [3]])
    assert recall_at(ranks, 1) == 100.0
    permuted = best_ranks(np.roll(np.eye(4), 1, axis=1), [[0], [1], [2], [3]])
    assert recall_at(permuted, 1) == 0.0
    assert recall_at(permuted, 4) == 100.0


@pytest.mark.parametrize(
    ("scores", "right", "rule"),
    [
        (np.array([[np.nan, 1.0]]), [[0]], "nan_score"),
        (np.zeros((0, 3)), [], "empty_split"),
        (np.zeros((1, 3)), [[]], "no_right_answer"),
        (np.zeros((2, 3)), [[0]], "missing_predictions"),
    ],
)
def test_broken_input_is_refused(scores: np.ndarray, right: list[list[int]], rule: str) -> None:
    with pytest.raises(InvalidSample) as error:
        best_ranks(scores, right)
    assert error.value.rule == rule


def test_iou_by_hand() -> None:
    assert box_iou(Box(0, 0, 10, 10), Box(0, 0, 10, 5)) == 0.5  # the boundary counts as right
    assert box_iou(Box(0, 0, 1, 1), Box(0, 0, 1, 1)) == 1.0  # the reference says 0
    assert box_iou(Box(0, 0, 10, 10), Box(10, 0, 5, 5)) == 0.0


def test_inclusive_iou_is_the_references(golden_dir: Path) -> None:
    for case in json.loads((golden_dir / "data/boxes/case.json").read_text())["computeIoU"]:
        assert box_iou(Box(*case["a"]), Box(*case["b"]), "inclusive") == pytest.approx(case["iou"], abs=1e-12)


def test_bootstrap_interval_holds_the_mean_and_is_repeatable() -> None:
    values = [0.0] * 30 + [100.0] * 70
    low, high = bootstrap_interval(values)
    assert low < 70 < high
    assert (low, high) == bootstrap_interval(values)
    assert bootstrap_interval([5.0] * 9) == (5.0, 5.0)
