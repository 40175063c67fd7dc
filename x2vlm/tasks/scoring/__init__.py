"""Metrics of the downstream tasks, on plain arrays, each checked against an independent implementation.

Every function refuses what would give a wrong number quietly: NaN, empty splits, queries without a right answer.
"""

from x2vlm.tasks.scoring.boxes import IOU_THRESHOLD, IouConvention, box_iou
from x2vlm.tasks.scoring.intervals import bootstrap_interval
from x2vlm.tasks.scoring.ranks import Ties, best_ranks, mean_rank, median_rank, recall_at, shortlist_ranks

__all__ = [
    "IOU_THRESHOLD",
    "IouConvention",
    "Ties",
    "best_ranks",
    "bootstrap_interval",
    "box_iou",
    "mean_rank",
    "median_rank",
    "recall_at",
    "shortlist_ranks",
]
