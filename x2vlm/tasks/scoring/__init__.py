"""Metrics of the downstream tasks, on plain arrays, each checked against an independent implementation.

Every function refuses what would give a wrong number quietly: NaN, empty splits, queries without a right answer.
"""

from x2vlm.tasks.scoring.boxes import IOU_THRESHOLD, IouConvention, box_iou
from x2vlm.tasks.scoring.intervals import bootstrap_interval
from x2vlm.tasks.scoring.ranks import best_ranks, recall_at, shortlist_ranks

__all__ = [
    "IOU_THRESHOLD",
    "IouConvention",
    "best_ranks",
    "bootstrap_interval",
    "box_iou",
    "recall_at",
    "shortlist_ranks",
]
