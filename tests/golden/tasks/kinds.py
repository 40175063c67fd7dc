"""Checks of the tasks after pre-training, one line a kind, and how a case's kind is seen from its arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.golden.differences import Check
from tests.golden.tasks import answers, captioning, matching

DOWNSTREAM_CHECKS: dict[str, Check] = {
    "captioning": captioning.check_captioning,
    "grounding": matching.check_grounding,
    "nlvr": answers.check_classifier,
    "retrieval": matching.check_retrieval,
    "video_qa": answers.check_classifier,
    "vqa": answers.check_vqa,
    "vqa_classes": answers.check_classifier,
}
KINDS = ("captioning", "grounding", "nlvr", "retrieval", "video_qa", "vqa", "vqa_classes")


def kind_of(folder: str, shapes: Mapping[str, Sequence[int]], info: Mapping[str, Any]) -> str | None:
    """The kind of a case: its folder's name, or for any other name what only its arrays have; None for neither."""
    if folder in KINDS:
        return folder
    if "in.question_ids" in shapes:
        return "vqa"
    if {"out.sims", "out.score_i2t", "out.score_t2i"} & shapes.keys():
        return "retrieval"
    if "w.mlm_bias" in shapes or "captions" in info:
        return "captioning"
    if "in.targets" in shapes:
        if "in.weights" in shapes:
            return "vqa_classes"
        return "video_qa" if len(shapes.get("in.image", ())) == 5 else "nlvr"
    return "grounding" if "in.target_bbox" in shapes else None
