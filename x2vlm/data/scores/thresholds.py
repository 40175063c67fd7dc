"""Histograms of CLIP scores, and the threshold that they suggest without labelled pairs.

A threshold is valid only for the model and the corpus it was chosen with. Any corpus yields mismatched pairs: the image
of one row with the text of another. Their scores are a sample of the scores of mismatched rows.

Histograms are counts over fixed bins, so those of parts can be added, fit into a manifest and are exact at their edges:
a threshold on an edge splits the counts just as `score >= threshold` (in float32) splits the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS_PER_UNIT = 100
NUM_BINS = 2 * BINS_PER_UNIT  # of 0.01 from -1 to 1, the range of a cosine
EDGES = np.array([(number - BINS_PER_UNIT) / BINS_PER_UNIT for number in range(NUM_BINS + 1)], dtype=np.float64)
_FLOAT32_EDGES = EDGES.astype(np.float32)


@dataclass(frozen=True)
class Suggestion:
    """A threshold for unlabelled pairs, its effect, and two common alternatives."""

    threshold: float
    kept: float  # fraction of the real pairs at or above it
    shuffled_dropped: float  # fraction of the shuffled pairs below it
    keeps_95: float  # highest threshold that keeps 95 % of the real pairs
    drops_95: float  # lowest threshold that drops 95 % of the shuffled pairs; above `keeps_95`: no threshold does both


def score_histogram(scores: Sequence[float] | np.ndarray) -> list[int]:
    """The number of scores in each of the NUM_BINS bins; the last includes 1. ValueError for values outside [-1, 1].

    A cosine of float32 vectors may leave [-1, 1] by rounding: up to 0.001 is counted in the outermost bin.
    """
    values = np.asarray(scores, dtype=np.float32)
    bad = values[~(np.abs(values) <= 1.001)]
    if len(bad):
        raise ValueError(f"a score of {bad[0]} is no cosine; {len(bad)} of {len(values)} scores are not in [-1, 1]")
    places = np.clip(np.searchsorted(_FLOAT32_EDGES, values, side="right") - 1, 0, NUM_BINS - 1)
    counts: list[int] = np.bincount(places, minlength=NUM_BINS).tolist()
    return counts


def add_histograms(histograms: Sequence[Sequence[int]]) -> list[int]:
    """The sum of histograms; zeros for none."""
    total = np.zeros(NUM_BINS, dtype=np.int64)
    for counts in histograms:
        total += np.asarray(counts, dtype=np.int64)
    return [int(count) for count in total]


def suggest_threshold(real: Sequence[int], shuffled: Sequence[int]) -> Suggestion | None:
    """The edge with the greatest sum of real pairs kept and shuffled pairs dropped (fractions); None without both.

    Where several edges are equally good it is the middle one. That some of the real pairs are mismatched does not shift
    it: for a fraction m of them, the sum at every edge is (1 - m) times that of the right pairs alone, plus m, as far
    as mismatched pairs score like shuffled ones (Youden's index under one-sided label noise).
    """
    if not sum(real) or not sum(shuffled):
        return None
    below_real, below_shuffled = _fraction_below(real), _fraction_below(shuffled)
    total = (1 - below_real) + below_shuffled
    best = np.flatnonzero(total >= total.max() - 1e-12)
    place = int(best[len(best) // 2])
    return Suggestion(
        threshold=float(EDGES[place]),
        kept=float(1 - below_real[place]),
        shuffled_dropped=float(below_shuffled[place]),
        keeps_95=float(EDGES[np.flatnonzero(below_real <= 0.05)[-1]]),
        drops_95=float(EDGES[np.flatnonzero(below_shuffled >= 0.95)[0]]),
    )


def _fraction_below(counts: Sequence[int]) -> np.ndarray:
    """Fraction of the scores below every edge; 0 at the first, 1 at the last."""
    return np.concatenate([[0], np.cumsum(counts)]) / sum(counts)


def shuffled_pairs(groups: Sequence[str], seed: int, rounds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """(row of the image, row of the text) of `rounds` random pairings of all rows, less those within a group.

    Rows of a group have the same content (clips of one video, captions of one image): the text of one may match
    another, so they are never paired. Empty where all rows are of one group.
    """
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], dtype=np.int64)
    generator = np.random.Generator(np.random.PCG64(seed))
    images = np.tile(np.arange(len(groups)), rounds)
    texts = np.concatenate([generator.permutation(len(groups)) for _ in range(rounds)])
    apart = group[images] != group[texts]
    return images[apart], texts[apart]


def shuffled_scores(
    scores: np.ndarray, images_ND: np.ndarray, texts_ND: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """The score of each of `pairs`, from embeddings of unit length and the scores of the rows themselves.

    A clip's score is the mean over its frames, its embedding the mean frame *normalised to unit length*: the lost
    length of the mean is score / cosine of the row itself. Where that cosine is below 0.1 the quotient is noise, and
    the median of the others is used (1 for images and for parts without any).
    """
    cosine_N = np.einsum("nd,nd->n", images_ND, texts_ND)
    is_usable = np.abs(cosine_N) >= 0.1
    quotient_N = np.divide(scores, cosine_N, out=np.ones_like(cosine_N), where=is_usable)
    usual = float(np.median(quotient_N[is_usable])) if is_usable.any() else 1.0
    length_N = np.clip(np.where(is_usable, quotient_N, usual), 0.0, 1.0)
    image, text = pairs
    products: np.ndarray = np.einsum("nd,nd->n", images_ND[image], texts_ND[text]) * length_N[image]
    return products
