"""Winoground: which of its three questions each example answers."""

import numpy as np
from numpy.typing import NDArray

from x2vlm.errors import InvalidSample


def winoground_answers(scores_N22: NDArray[np.floating]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the texts of each of N examples are right, and whether its images are; the group is right if both are.

    `scores_N22[n, c, i]`: how well caption c fits image i. The texts are right if each image scores its own caption
    higher than the other, the images if each caption scores its own image higher; equal scores are wrong, as in the
    benchmark's definition (an argmax would let some count). InvalidSample for an empty split or NaN.
    """
    if scores_N22.ndim != 3 or scores_N22.shape[1:] != (2, 2) or len(scores_N22) == 0:
        raise InvalidSample("empty_split", f"scores of shape {scores_N22.shape} answer nothing, expected (N, 2, 2)")
    if np.isnan(scores_N22).any():
        raise InvalidSample("nan_score", "scores hold NaN: the model or its input is broken")
    right_0, caption_1_image_0, caption_0_image_1, right_1 = (
        scores_N22[:, caption, image] for caption, image in ((0, 0), (1, 0), (0, 1), (1, 1))
    )
    texts = (right_0 > caption_1_image_0) & (right_1 > caption_0_image_1)
    images = (right_0 > caption_0_image_1) & (right_1 > caption_1_image_0)
    return texts, images
