"""Metrics against hand-made cases and naive versions."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.errors import InvalidSample
from x2vlm.samples import Box
from x2vlm.tasks.scoring import (
    Ties,
    best_ranks,
    bootstrap_interval,
    box_iou,
    mean_rank,
    median_rank,
    recall_at,
    shortlist_ranks,
)


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


# ---- independent implementations and properties


tables = st.integers(1, 6).flatmap(
    lambda queries: st.integers(1, 8).flatmap(
        lambda candidates: st.tuples(
            st.lists(
                st.lists(st.integers(-3, 3), min_size=candidates, max_size=candidates),
                min_size=queries,
                max_size=queries,
            ),
            st.lists(
                st.lists(st.integers(0, candidates - 1), min_size=1, max_size=candidates, unique=True),
                min_size=queries,
                max_size=queries,
            ),
        )
    )
)


@given(tables)
@settings(deadline=None)
def test_recall_at_k_is_that_of_counting_and_of_scikit_learn(table: tuple[list[list[int]], list[list[int]]]) -> None:
    """Without ties, where all definitions agree: hits among the top k; scikit-learn knows one right answer a query."""
    from sklearn.metrics import top_k_accuracy_score

    scores = np.array(table[0], dtype=float)
    scores += np.linspace(0, 0.5, scores.shape[1])[::-1]
    ranks, firsts = best_ranks(scores, table[1]), [right[0] for right in table[1]]
    for k in range(1, scores.shape[1]):
        hits = [bool(set(np.argsort(-row)[:k]) & set(right)) for row, right in zip(scores, table[1], strict=True)]
        assert recall_at(ranks, k) == pytest.approx(100 * np.mean(hits))
        if scores.shape[1] > 2:
            theirs = top_k_accuracy_score(firsts, scores, k=k, labels=range(scores.shape[1]))
            assert recall_at(best_ranks(scores, [[first] for first in firsts]), k) == pytest.approx(100 * theirs)


@given(tables, st.sampled_from(["index", "reference"]))
def test_ranks_do_not_change_under_monotone_maps_and_recall_grows_with_k(
    table: tuple[list[list[int]], list[list[int]]], ties: Ties
) -> None:
    scores = np.array(table[0], dtype=float)
    ranks = best_ranks(scores, table[1], ties)
    for mapped in (np.exp(scores), 3 * scores - 7, np.arctan(scores)):
        assert best_ranks(mapped, table[1], ties).tolist() == ranks.tolist()
    recalls = [recall_at(ranks, k) for k in range(1, scores.shape[1] + 1)]
    assert recalls == sorted(recalls)
    assert recalls[-1] == 100.0


@given(tables, st.randoms(use_true_random=False))
def test_ranks_follow_a_permutation_of_candidates_and_queries(
    table: tuple[list[list[int]], list[list[int]]], rng: random.Random
) -> None:
    """Without ties: the order of candidates decides among equal scores, and among nothing else."""
    scores = np.array(table[0], dtype=float)
    scores += np.linspace(0, 0.5, scores.shape[1])
    order, rows = list(range(scores.shape[1])), list(range(len(scores)))
    rng.shuffle(order)
    rng.shuffle(rows)
    place = {old: new for new, old in enumerate(order)}
    moved = [[place[number] for number in table[1][row]] for row in rows]
    ranks = best_ranks(scores, table[1])
    assert best_ranks(scores[rows][:, order], moved).tolist() == ranks[rows].tolist()


@given(tables)
def test_reference_ties_are_those_of_a_reversed_stable_sort(table: tuple[list[list[int]], list[list[int]]]) -> None:
    """Rows this short are sorted by insertion, which keeps the order of equals, so the reference's rule is exact."""
    scores = np.array(table[0], dtype=float)
    expected = []
    for row, right in zip(scores, table[1], strict=True):
        order = np.argsort(row, kind="stable")[::-1].tolist()
        expected.append(min(order.index(number) for number in right))
    assert best_ranks(scores, table[1], "reference").tolist() == expected


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_reference_ties_hold_behind_the_shortlist_too(
    queries: int, candidates: int, size: int, rng: random.Random
) -> None:
    chosen = np.array([rng.sample(range(candidates), min(size, candidates)) for _ in range(queries)])
    scores = np.array([[float(rng.randrange(4)) for _ in row] for row in chosen])
    table = np.full((queries, candidates), -100.0)
    np.put_along_axis(table, chosen, scores, axis=1)
    right = [rng.sample(range(candidates), rng.randint(1, candidates)) for _ in range(queries)]
    found = shortlist_ranks(chosen, scores, candidates, right, "reference")
    assert found.tolist() == best_ranks(table, right, "reference").tolist()


def test_median_and_mean_rank_count_from_one() -> None:
    ranks = np.array([0, 0, 3, 9])
    assert (median_rank(ranks), mean_rank(ranks)) == (2.5, 4.0)
    for metric in (median_rank, mean_rank):
        with pytest.raises(InvalidSample, match="empty_split"):
            metric(np.array([], dtype=np.int64))


def test_a_right_answer_that_is_no_candidate_is_refused() -> None:
    with pytest.raises(InvalidSample, match="no_right_answer"):
        best_ranks(np.zeros((1, 3)), [[3]])


boxes = st.builds(Box, *[st.integers(0, 30)] * 2, *[st.integers(1, 30)] * 2)


@given(boxes, boxes)
def test_iou_is_that_of_pycocotools_and_torchvision(a: Box, b: Box) -> None:
    from pycocotools import mask
    from torchvision.ops import box_iou as torchvision_iou

    xywh = [[box.x, box.y, box.w, box.h] for box in (a, b)]
    found = box_iou(a, b)
    assert found == pytest.approx(float(mask.iou(xywh[:1], xywh[1:], [0])[0, 0]))
    corners = [torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64) for x, y, w, h in xywh]
    assert found == pytest.approx(torchvision_iou(*corners).item())
    assert found == box_iou(b, a)
    shifted = [Box(box.x + 3, box.y + 5, box.w, box.h) for box in (a, b)]
    assert found == pytest.approx(box_iou(*shifted))
    if min(a.w, a.h, b.w, b.h) > 1 and found > 0 and _overlap_is_over_a_pixel(a, b):
        assert box_iou(a, b, "inclusive") == pytest.approx(found)  # the two conventions differ on slivers alone


def _overlap_is_over_a_pixel(a: Box, b: Box) -> bool:
    width = min(a.x + a.w, b.x + b.w) - max(a.x, b.x)
    height = min(a.y + a.h, b.y + b.h) - max(a.y, b.y)
    return width > 1 and height > 1


def test_a_bootstrap_of_nothing_or_of_nan_is_refused() -> None:
    for values, rule in (([], "empty_split"), ([1.0, float("nan")], "nan_score")):
        with pytest.raises(InvalidSample) as error:
            bootstrap_interval(values)
        assert error.value.rule == rule
