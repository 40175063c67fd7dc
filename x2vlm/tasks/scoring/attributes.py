"""Average precision of attributes (OVAD, box-oracle).

N boxes, A attributes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from x2vlm.errors import InvalidSample
from x2vlm.extras import needs

PRESENT, ABSENT, NOT_ANNOTATED = 1, 0, -1


def average_precisions(
    scores_NA: NDArray[np.floating], present_NA: NDArray[np.integer], clip: bool
) -> NDArray[np.float64]:
    """(A,) average precision over the boxes that are annotated for each attribute, in percent; NaN if none has it.

    `clip` cuts scores to [0, 1] first, as the official evaluator does: cosines below 0 are then equal.
    InvalidSample for an empty table, NaN scores, shapes that differ, and annotations other than 1, 0 and -1.
    """
    with needs("average precision"):
        from sklearn.metrics import average_precision_score

    if scores_NA.ndim != 2 or 0 in scores_NA.shape:
        raise InvalidSample("empty_split", f"a score table of shape {scores_NA.shape} has no average precision")
    if scores_NA.shape != present_NA.shape:
        raise InvalidSample("missing_predictions", f"{scores_NA.shape} scores for {present_NA.shape} annotations")
    if np.isnan(scores_NA).any():
        raise InvalidSample("nan_score", "scores hold NaN: the model or its input is broken")
    if not np.isin(present_NA, (PRESENT, ABSENT, NOT_ANNOTATED)).all():
        raise InvalidSample("malformed_row", "annotations of attributes are 1, 0 or -1")
    used_NA = scores_NA.clip(0.0, 1.0) if clip else scores_NA
    found = np.full(scores_NA.shape[1], np.nan)
    for number, (scores, present) in enumerate(zip(used_NA.T, present_NA.T, strict=True)):
        known = present != NOT_ANNOTATED
        if (present == PRESENT).any():
            found[number] = 100.0 * average_precision_score(present[known], scores[known])
    return found


def mean_average_precision(precisions_A: NDArray[np.float64], sets: Sequence[str]) -> Mapping[str, float]:
    """Mean over the attributes that have a value: of `all`, and of each of their `sets` (head, medium, tail).

    A set without a value is left out. InvalidSample if no attribute has one.
    """
    if len(sets) != len(precisions_A):
        raise InvalidSample("missing_predictions", f"{len(sets)} sets for {len(precisions_A)} attributes")
    known = ~np.isnan(precisions_A)
    if not known.any():
        raise InvalidSample("no_right_answer", "no attribute is present in any box")
    found = {"all": float(precisions_A[known].mean())}
    for name in dict.fromkeys(sets):
        chosen = known & (np.array(sets) == name)
        if chosen.any():
            found[name] = float(precisions_A[chosen].mean())
    return found
