"""Ranks and recall of retrieval, on plain arrays.

Q queries, C candidates. Every function refuses what would give a wrong number quietly: NaN, empty splits, queries
without a right answer. Ties are broken by index, so a result never depends on batch size or world size.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from x2vlm.errors import InvalidSample


def best_ranks(scores_QC: NDArray[np.floating], relevant: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Rank (0 = top) of the best-placed right candidate of every query.

    Raises InvalidSample for NaN scores, an empty table, or a query without a right candidate.
    """
    if scores_QC.ndim != 2 or 0 in scores_QC.shape:
        raise InvalidSample("empty_split", f"a score table of shape {scores_QC.shape} ranks nothing")
    if len(relevant) != scores_QC.shape[0]:
        raise InvalidSample("missing_predictions", f"{scores_QC.shape[0]} rows of scores for {len(relevant)} queries")
    if np.isnan(scores_QC).any():
        raise InvalidSample("nan_score", "scores hold NaN: the model or its input is broken")
    order_QC = np.argsort(-scores_QC, axis=1, kind="stable")
    ranks_QC = np.empty_like(order_QC)
    np.put_along_axis(ranks_QC, order_QC, np.arange(scores_QC.shape[1])[None, :], axis=1)
    ranks = np.empty(len(relevant), dtype=np.int64)
    for query, right in enumerate(relevant):
        if len(right) == 0:
            raise InvalidSample("no_right_answer", f"query {query} has no right candidate")
        ranks[query] = ranks_QC[query, list(right)].min()
    return ranks


def shortlist_ranks(
    candidates_QK: NDArray[np.int64],
    scores_QK: NDArray[np.floating],
    num_candidates: int,
    relevant: Sequence[Sequence[int]],
) -> NDArray[np.int64]:
    """`best_ranks` for a table in which only the `candidates_QK` of each query have a score.

    All others follow them in the order of their numbers, as if every one had a score below the lowest. The whole table
    of COCO 5K, 5,000 images by 25,010 captions, would take 1 GB in float64. Raises as `best_ranks` does.
    """
    if scores_QK.shape != candidates_QK.shape:
        raise InvalidSample("missing_predictions", f"{scores_QK.shape} scores for {candidates_QK.shape} candidates")
    order_QK = np.lexsort((candidates_QK, -scores_QK), axis=1)
    ranked_QK = np.take_along_axis(candidates_QK, order_QK, axis=1)
    best_ranks(scores_QK, [[0] if right else [] for right in relevant])  # for its checks
    ranks = np.empty(len(relevant), dtype=np.int64)
    for query, right in enumerate(relevant):
        wanted = np.asarray(right, dtype=np.int64)
        found = np.flatnonzero(np.isin(ranked_QK[query], wanted))
        if len(found):
            ranks[query] = found[0]
        else:  # behind the shortlist and every other candidate with a lower number
            first = int(wanted.min())
            ranks[query] = candidates_QK.shape[1] + first - int((candidates_QK[query] < first).sum())
    assert (ranks < num_candidates).all()
    return ranks


def recall_at(ranks: NDArray[np.int64], k: int) -> float:
    """Fraction of queries whose best right candidate is among the top `k`, in percent."""
    if ranks.size == 0:
        raise InvalidSample("empty_split", "no queries to average over")
    return float((ranks < k).mean() * 100)
