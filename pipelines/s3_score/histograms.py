"""Histograms of a part's scores, and of its shuffled pairs: the scores of wrong texts under this model.

They are stored in the manifest, so that a threshold can be assessed and suggested without reading rows again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipelines.flow.stage import Json
from x2vlm.data.scores.thresholds import add_histograms, score_histogram, shuffled_pairs, shuffled_scores
from x2vlm.samples import MEDIA_KINDS

SEED = 0
MAX_PAIRS = 4000  # shuffled pairs of a part: a fraction of 5 % is then known to within 0.7 points (two standard errors)

Histograms = dict[str, dict[str, list[int]]]  # kind -> "real" and "shuffled" -> counts (x2vlm.data.scores.thresholds)


def part_histograms(
    rows: Path,
    scores: Sequence[float | None],
    images: Sequence[np.ndarray | None],
    texts: Sequence[np.ndarray | None],
) -> Histograms:
    """The two histograms of every kind that has a score. Clips of one video (rows of one URL) are not shuffled."""
    table = pq.read_table(rows, columns=["kind", "url"])
    kinds, urls = table["kind"].to_pylist(), table["url"].to_pylist()
    found: Histograms = {}
    for kind in MEDIA_KINDS:
        mine = [row for row, score in enumerate(scores) if score is not None and kinds[row] == kind]
        if not mine:
            continue
        own = np.array([scores[row] for row in mine], dtype=np.float64)
        images_ND, texts_ND = _stacked(images, mine), _stacked(texts, mine)
        rounds = max(1, min(8, MAX_PAIRS // len(mine)))
        image, text = shuffled_pairs([urls[row] for row in mine], SEED, rounds)
        pairs = (image[:MAX_PAIRS], text[:MAX_PAIRS])
        shuffled = shuffled_scores(own, images_ND, texts_ND, pairs)
        found[kind] = {"real": score_histogram(own), "shuffled": score_histogram(shuffled)}
    return found


def _stacked(vectors: Sequence[np.ndarray | None], rows: Sequence[int]) -> np.ndarray:
    """The vectors of `rows`, which have a score and therefore one."""
    return np.stack([vector for row in rows if (vector := vectors[row]) is not None])


def add_up_histograms(parts: Sequence[Mapping[str, Mapping[str, Sequence[int]]]]) -> dict[str, Json]:
    """The histograms of all parts together."""
    total: dict[str, Json] = {}
    for kind in MEDIA_KINDS:
        mine = [part[kind] for part in parts if kind in part]
        if mine:
            total[kind] = {name: add_histograms([part[name] for part in mine]) for name in ("real", "shuffled")}
    return total
