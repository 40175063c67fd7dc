"""What an experiment decides about each task: its `options`. Tasks import torch; checking an experiment need not."""

from typing import Annotated, Literal

import pydantic

from x2vlm.config import FrozenConfig
from x2vlm.models.downstream.config import AnswerScore
from x2vlm.tasks.scoring import IOU_THRESHOLD, IouConvention
from x2vlm.tasks.scoring.answers import VqaVariant


class RetrievalConfig(FrozenConfig):
    """`shortlist` candidates per query go to the matching head (the paper: 256 for COCO, 128 for Flickr30K)."""

    shortlist: int = pydantic.Field(default=128, gt=0)
    recalls: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = pydantic.Field(default=(1, 5, 10), min_length=1)


class GroundingConfig(FrozenConfig):
    """`unambiguous` asks only for texts that name one box of their image: of two "person" boxes neither is right.

    `iou`: the convention of `x2vlm.tasks.scoring.box_iou`; `clip_boxes`: whether a predicted box is cut to its image.
    The released evaluation is {unambiguous: false, iou: inclusive, clip_boxes: false}. The result names all three.
    """

    iou_threshold: float = pydantic.Field(default=IOU_THRESHOLD, gt=0, le=1)
    unambiguous: bool = True
    iou: IouConvention = "plain"
    clip_boxes: bool = True


class ClassificationConfig(FrozenConfig):
    """`num_images` of an example: 2 for NLVR2 and MaRVL.

    With `several_answers` an example may have any number of weighted answers, as VQA has, and is scored by VQA
    accuracy in the given variant; otherwise it has one, or none in a test split without public answers.
    """

    num_images: int = pydantic.Field(default=1, ge=1)
    several_answers: bool = False
    vqa_variant: VqaVariant = "official"


# "auto": VQA accuracy where every question has the answers of several people, exact match where each has one.
AnswerMetric = Literal["auto", "vqa", "exact"]


class VqaConfig(FrozenConfig):
    """`shortlist` answers of the list are scored as a whole, picked by their first tokens (released: 128).

    `answer_score`: whether the first token counts twice, as released (`x2vlm.models.downstream.answers`). `metric` and
    `vqa_variant`: `x2vlm.tasks.scoring.answers`; the result names both. `decoder_layers` of a new decoder: as many as
    fusion layers (None), or half of them.
    """

    shortlist: int = pydantic.Field(default=128, ge=1)
    answer_score: AnswerScore = "released"
    metric: AnswerMetric = "auto"
    vqa_variant: VqaVariant = "official"
    decoder_layers: int | None = pydantic.Field(default=None, ge=1)
