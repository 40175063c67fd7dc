"""Ranks and recall of retrieval, on plain arrays.

Q queries, C candidates, K of them on a shortlist. Every function refuses what would give a wrong number quietly: NaN,
empty splits, queries without a right answer. Ties are broken by index, so a result never depends on batch size or world
size.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from x2vlm.errors import InvalidSample

# "index": of equal scores the lower number comes first. "reference": the higher number, which is what reversing the
# order of a sort does to ties (the reference's sort is not stable, so of long tables it is only mostly so).
Ties = Literal["index", "reference"]


def best_ranks(
    scores_QC: NDArray[np.floating], relevant: Sequence[Sequence[int]], ties: Ties = "index"
) -> NDArray[np.int64]:
    """Rank (0 = top) of the best-placed right candidate of every query.

    Raises InvalidSample for NaN scores, an empty table, or a query without a right candidate.
    """
    _check(scores_QC, relevant)
    numbers = np.broadcast_to(np.arange(scores_QC.shape[1]), scores_QC.shape)
    return shortlist_ranks(numbers, scores_QC, scores_QC.shape[1], relevant, ties)


def shortlist_ranks(
    candidates_QK: NDArray[np.int64],
    scores_QK: NDArray[np.floating],
    num_candidates: int,
    relevant: Sequence[Sequence[int]],
    ties: Ties = "index",
) -> NDArray[np.int64]:
    """`best_ranks` for a table in which only the `candidates_QK` of each query have a score.

    All others follow them in the order of their numbers (from the last for "reference"), as if every one had a score
    below the lowest. The whole table of COCO 5K, 5,000 images by 25,010 captions, would take 1 GB in float64. Raises as
    `best_ranks` does.
    """
    if scores_QK.shape != candidates_QK.shape:
        raise InvalidSample("missing_predictions", f"{scores_QK.shape} scores for {candidates_QK.shape} candidates")
    _check(scores_QK, relevant)
    sign = 1 if ties == "index" else -1
    order_QK = np.lexsort((sign * candidates_QK, -scores_QK), axis=1)
    ranked_QK = np.take_along_axis(candidates_QK, order_QK, axis=1)
    ranks = np.empty(len(relevant), dtype=np.int64)
    for query, right in enumerate(relevant):
        wanted = np.asarray(right, dtype=np.int64)
        if wanted.min() < 0 or wanted.max() >= num_candidates:
            raise InvalidSample("no_right_answer", f"query {query}: {wanted} are not all among {num_candidates}")
        found = np.flatnonzero(np.isin(ranked_QK[query], wanted))
        if len(found):
            ranks[query] = found[0]
        elif ties == "index":  # behind the shortlist and every other candidate with a lower number
            first = int(wanted.min())
            ranks[query] = candidates_QK.shape[1] + first - int((candidates_QK[query] < first).sum())
        else:
            last = int(wanted.max())
            behind = num_candidates - 1 - last - int((candidates_QK[query] > last).sum())
            ranks[query] = candidates_QK.shape[1] + behind
    assert (ranks < num_candidates).all()
    return ranks


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """Fraction of queries whose best right candidate is among the top `k`, in percent."""
    if ranks.size == 0:
        raise InvalidSample("empty_split", "no queries to average over")
    return float((ranks < k).mean() * 100)


def median_rank(ranks: NDArray[np.int64]) -> float:
    """Median of the ranks, where the top is 1; of an even number of queries the mean of the middle two."""
    if ranks.size == 0:
        raise InvalidSample("empty_split", "no queries to average over")
    return float(np.median(ranks)) + 1


def mean_rank(ranks: NDArray[np.int64]) -> float:
    """Mean of the ranks, where the top is 1."""
    if ranks.size == 0:
        raise InvalidSample("empty_split", "no queries to average over")
    return float(ranks.mean()) + 1


def _check(scores: NDArray[np.floating], relevant: Sequence[Sequence[int]]) -> None:
    if scores.ndim != 2 or 0 in scores.shape:
        raise InvalidSample("empty_split", f"a score table of shape {scores.shape} ranks nothing")
    if len(relevant) != scores.shape[0]:
        raise InvalidSample("missing_predictions", f"{scores.shape[0]} rows of scores for {len(relevant)} queries")
    if np.isnan(scores).any():
        raise InvalidSample("nan_score", "scores hold NaN: the model or its input is broken")
    for query, right in enumerate(relevant):
        if len(right) == 0:
            raise InvalidSample("no_right_answer", f"query {query} has no right candidate")
