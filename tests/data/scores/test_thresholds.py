"""Histograms of scores and the threshold they suggest, against naive counting and labels that only tests know."""

from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from x2vlm.data.scores.thresholds import (
    EDGES,
    NUM_BINS,
    add_histograms,
    score_histogram,
    shuffled_pairs,
    shuffled_scores,
    suggest_threshold,
)

COSINES = st.lists(st.one_of(st.floats(-1, 1, width=32), st.sampled_from(EDGES.tolist())), max_size=40)


@given(COSINES, st.integers(0, NUM_BINS))
@settings(max_examples=200, deadline=None)
def test_an_edge_splits_the_counts_as_the_threshold_splits_the_rows(scores: list[float], place: int) -> None:
    """The partition stage keeps `float32(score) >= float32(threshold)`; a score that equals an edge must not slip."""
    counts = score_histogram(scores)
    dropped = sum(np.float32(score) < np.float32(EDGES[place]) for score in scores)
    last_edge = sum(np.float32(score) == 1 for score in scores) if place == NUM_BINS else 0  # 1 is in the last bin
    assert sum(counts[:place]) == dropped + last_edge


@given(COSINES, COSINES)
@settings(max_examples=50, deadline=None)
def test_histograms_of_parts_add_up(one: list[float], other: list[float]) -> None:
    assert add_histograms([score_histogram(one), score_histogram(other)]) == score_histogram(one + other)
    assert add_histograms([]) == score_histogram([]) == [0] * NUM_BINS


def test_rounding_beyond_one_is_counted_and_anything_else_refused() -> None:
    assert score_histogram([1.0000002])[-1] == score_histogram([-1.0000002])[0] == 1
    for bad in (1.1, -2.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="no cosine"):
            score_histogram([0.1, bad])


def naive_best(real: list[float], shuffled: list[float]) -> float:
    """The best value of share kept + fraction of shuffled dropped over all edges, counted row by row."""
    ones, others = sorted(np.float32(real)), sorted(np.float32(shuffled))
    return max(
        (len(ones) - bisect_left(ones, edge)) / len(ones) + bisect_left(others, edge) / len(others)
        for edge in EDGES[:-1].astype(np.float32)
    )


@given(st.lists(st.floats(-1, 0.984375, width=32), min_size=1), st.lists(st.floats(-1, 0.984375, width=32), min_size=1))
@settings(max_examples=60, deadline=None)
def test_no_edge_is_better_than_the_suggested_one(real: list[float], shuffled: list[float]) -> None:
    found = suggest_threshold(score_histogram(real), score_histogram(shuffled))
    assert found is not None
    assert found.kept + found.shuffled_dropped == pytest.approx(naive_best(real, shuffled), abs=1e-9)
    limit = np.float32(found.threshold)
    assert found.kept == pytest.approx(np.mean(np.float32(real) >= limit), abs=1e-9)
    assert found.shuffled_dropped == pytest.approx(np.mean(np.float32(shuffled) < limit), abs=1e-9)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.4])
def test_mismatched_rows_among_the_real_ones_do_not_move_the_threshold(fraction: float) -> None:
    """Right pairs around 0.5, wrong ones around 0.1, both 0.1 wide: the best cut lies at 0.3 whatever the share."""
    draws = np.random.default_rng(5)
    num_wrong = int(40_000 * fraction)
    real = np.concatenate([draws.normal(0.5, 0.1, 40_000 - num_wrong), draws.normal(0.1, 0.1, num_wrong)])
    found = suggest_threshold(score_histogram(real), score_histogram(draws.normal(0.1, 0.1, 40_000)))
    assert found is not None
    assert found.threshold == pytest.approx(0.3, abs=0.03)
    assert found.shuffled_dropped == pytest.approx(0.977, abs=0.015)
    if fraction == 0.4:  # a quantile of the real pairs, the usual rule, is misled: it keeps 7 wrong pairs of 8
        assert found.keeps_95 < 0.1


def test_both_wishes_are_named_whether_or_not_one_threshold_fulfils_them() -> None:
    scores = (np.arange(100) / 100).tolist()
    apart = suggest_threshold(score_histogram([0.9] * 100), score_histogram([0.1] * 100))
    assert apart is not None
    assert (apart.keeps_95, apart.drops_95) == (0.9, 0.11)
    assert apart.threshold == pytest.approx(0.51, abs=0.011)  # the middle of what is equally good
    same = suggest_threshold(score_histogram(scores), score_histogram(scores))
    assert same is not None
    assert (same.keeps_95, same.drops_95) == (0.05, 0.95)
    assert suggest_threshold(score_histogram([]), score_histogram([0.5])) is None
    assert suggest_threshold(score_histogram([0.5]), score_histogram([])) is None


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_shuffled_pairs_never_stay_within_a_group(groups: list[str], seed: int) -> None:
    images, texts = shuffled_pairs(groups, seed)
    assert len(images) == len(texts) <= 4 * len(groups)
    assert all(groups[image] != groups[text] for image, text in zip(images, texts, strict=True))
    again = shuffled_pairs(groups, seed)
    assert again[0].tolist() == images.tolist()
    assert again[1].tolist() == texts.tolist()


def test_shuffled_pairs_use_every_row_about_as_often() -> None:
    images, texts = shuffled_pairs([str(number) for number in range(500)], seed=1, rounds=8)
    assert 500 * 8 - 40 < len(images) <= 500 * 8
    assert np.bincount(images, minlength=500).min() >= 4
    assert np.bincount(texts, minlength=500).min() >= 4


def test_shuffled_scores_are_means_over_frames() -> None:
    """Against the definition: the mean over a clip's frames of the cosine with the other row's text."""
    draws = np.random.default_rng(3)
    frames = [unit(draws.normal(size=(count, 16)) * 0.3 + draws.normal(size=16)) for count in (1, 2, 5, 8)]
    texts = unit(np.stack([clip.mean(axis=0) for clip in frames]) + 0.05 * draws.normal(size=(4, 16)))
    own = np.array([(clip @ text).mean() for clip, text in zip(frames, texts, strict=True)])
    images = np.stack([unit(clip.mean(axis=0)) for clip in frames])
    pairs = (np.array([0, 1, 2, 3]), np.array([1, 2, 3, 0]))
    expected = [float((frames[image] @ texts[text]).mean()) for image, text in zip(*pairs, strict=True)]
    assert shuffled_scores(own, images, texts, pairs) == pytest.approx(expected, abs=1e-9)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
