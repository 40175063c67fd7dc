"""Which examples a page shows: a few that the model got right and a few that it got wrong, the same ones every time."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from x2vlm.errors import InvalidSample
from x2vlm.tasks.scoring import IOU_THRESHOLD

Prediction = Mapping[str, Any]  # one row of `TaskResult.predictions`
VERDICTS = ("right", "wrong", "upper half", "lower half", "unknown")


@dataclass(frozen=True)
class Chosen:
    """Rows of one verdict: those shown, and how many there are in all."""

    verdict: str
    rows: Sequence[Prediction]
    num_rows: int


def choose(predictions: pa.Table, per_verdict: int) -> list[Chosen]:
    """At most `per_verdict` rows of each verdict, those whose ids have the smallest sha256: any order of the same rows
    gives the same ones.

    Captions are neither right nor wrong: they are parted at the median of CIDEr. Raises InvalidSample for an empty
    table or one without the column `example_id`.
    """
    if "example_id" not in predictions.column_names:
        raise InvalidSample("no_example_id", f"predictions have no column example_id: {predictions.column_names}")
    if predictions.num_rows == 0:
        raise InvalidSample("empty_split", "there is no prediction to show")
    verdicts = _verdicts(predictions)
    ids = predictions.column("example_id").to_pylist()
    chosen = []
    for verdict in VERDICTS:
        places = [place for place, value in enumerate(verdicts) if value == verdict]
        places.sort(key=lambda place: (_digest(str(ids[place])), place))
        if places:
            rows = predictions.take(pa.array(places[:per_verdict])).to_pylist()
            chosen.append(Chosen(verdict, rows, len(places)))
    return chosen


def _verdicts(predictions: pa.Table) -> list[str]:
    """What each row is, as far as its columns say."""
    columns = set(predictions.column_names)
    if name := next((name for name in ("right", "group_right") if name in columns), None):
        return [_named(value) for value in predictions.column(name).to_pylist()]
    if "rank_of_right" in columns:
        return [_named(rank == 0) for rank in predictions.column("rank_of_right").to_pylist()]
    if "iou" in columns:
        return [_named(iou >= IOU_THRESHOLD) for iou in predictions.column("iou").to_pylist()]
    if "accuracy" in columns:  # of one question, in percent
        return [_named(None if value is None else value >= 50) for value in predictions.column("accuracy").to_pylist()]
    if "cider" in columns:
        scores = predictions.column("cider").to_pylist()
        median = sorted(scores)[len(scores) // 2]
        return ["upper half" if score >= median else "lower half" for score in scores]
    return ["unknown"] * predictions.num_rows


def _named(value: bool | None) -> str:
    return "unknown" if value is None else "right" if value else "wrong"


def _digest(example_id: str) -> bytes:
    return hashlib.sha256(example_id.encode()).digest()
