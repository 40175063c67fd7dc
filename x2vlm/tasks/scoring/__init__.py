"""Metrics of the downstream tasks, on plain arrays, each checked against an independent implementation.

Every function refuses what would give a wrong number quietly: NaN, empty splits, queries without a right answer.
"""

from x2vlm.tasks.scoring.attributes import average_precisions, mean_average_precision
from x2vlm.tasks.scoring.boxes import IOU_THRESHOLD, IouConvention, box_iou
from x2vlm.tasks.scoring.intervals import bootstrap_interval
from x2vlm.tasks.scoring.pairs import winoground_answers
from x2vlm.tasks.scoring.ranks import Ties, best_ranks, mean_rank, median_rank, recall_at, shortlist_ranks

__all__ = [
    "IOU_THRESHOLD",
    "IouConvention",
    "Ties",
    "average_precisions",
    "best_ranks",
    "bootstrap_interval",
    "box_iou",
    "mean_average_precision",
    "mean_rank",
    "median_rank",
    "recall_at",
    "shortlist_ranks",
    "winoground_answers",
]
