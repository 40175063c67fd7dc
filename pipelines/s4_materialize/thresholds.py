"""The thresholds on CLIP scores, and the rows they drop."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from x2vlm.config import FrozenConfig
from x2vlm.samples import Drop

SCORE_COLUMNS = {"mean": "clip_score", "max": "clip_score_max", "middle": "clip_score_middle"}
SCORED_WELL = ("", "no_caption", "no_finite_score")  # values of `missing` of rows whose media decode


class ScoreThresholds(FrozenConfig):
    """The lowest CLIP score of a kept row.

    Thresholds apply to the score of a row's first caption; `score` is the aggregate over the frames of a clip.
    The paper (X2-VLM A.1) drops clips below 0.25 without naming model or aggregate; exactly 0.25 is kept. None = no
    threshold. 0.25 is valid only for the model it was chosen with.
    """

    score: Literal["mean", "max", "middle"] = "mean"
    min_clip_score: float | None = Field(default=0.25, allow_inf_nan=False)  # of clips
    image_min_clip_score: float | None = Field(default=None, allow_inf_nan=False)


def score_drops(config: ScoreThresholds, rows: pa.Table) -> tuple[np.ndarray, list[Drop]]:
    """Which of `rows` are kept, and a drop for each of the others.

    `rows` has key, source, source_row, kind, clip_score (the one that `config.score` chooses) and missing. A row is
    dropped if its media do not decode (`missing` names the decoder's rule), if its score is below the threshold of its
    kind, or if there is a threshold and no score (rule clip_score_missing; never kept). Compared as float32, as scores
    are stored: a score equal to the threshold is kept, for every threshold.
    """
    score = rows["clip_score"].to_numpy(zero_copy_only=False).astype(np.float32)
    is_video = pc.equal(rows["kind"], "video").to_numpy(zero_copy_only=False)
    missing = pc.fill_null(rows["missing"], "")
    broken = pc.invert(pc.is_in(missing, pa.array(SCORED_WELL))).to_numpy(zero_copy_only=False)
    threshold = np.where(is_video, _or_nan(config.min_clip_score), _or_nan(config.image_min_clip_score))
    has_threshold = ~np.isnan(threshold)
    unknown = has_threshold & np.isnan(score)
    low = has_threshold & (score < threshold.astype(np.float32))
    keep = ~(broken | unknown | low)
    gone = np.flatnonzero(~keep)
    names = rows.select(["key", "source", "source_row"]).take(pa.array(gone)).to_pylist()
    rules = missing.take(pa.array(gone)).to_pylist()
    drops = []
    for row, name, rule in zip(gone, names, rules, strict=True):
        limit = None if np.isnan(threshold[row]) else float(threshold[row])
        value, reason = None, "no caption, or media that could not be scored"
        if broken[row]:
            reason = "its media could not be decoded when it was scored"
        elif unknown[row]:
            rule = "clip_score_missing"
        else:
            rule, value, reason = "min_clip_score", float(score[row]), f"{config.score} of the scores of the frames"
        limit = None if broken[row] else limit
        drops.append(Drop(**name, stage="partition", rule=rule, value=value, threshold=limit, reason=reason))
    return keep, drops


def _or_nan(threshold: float | None) -> float:
    return np.nan if threshold is None else threshold
