"""What an experiment decides about each task: its `options`. Tasks import torch; checking an experiment need not."""

from typing import Annotated, Literal

import pydantic

from x2vlm.config import FrozenConfig
from x2vlm.data.loading.masking import MaskingConfig
from x2vlm.models.downstream.config import AnswerScore
from x2vlm.tasks.scoring import IOU_THRESHOLD, IouConvention, Ties
from x2vlm.tasks.scoring.answers import VqaVariant


class RetrievalConfig(FrozenConfig):
    """`shortlist` candidates per query go to the matching head (the paper: 256 for COCO, 128 for Flickr30K, 32 for
    MSRVTT).

    `ties`: of equal scores the candidate with the lower number comes first, or, as in the reference, the one with the
    higher number; candidates outside of the shortlist have equal scores too. `spool_above_bytes`: tokens of images, and
    of texts, of a process go to a temporary file where they take more. `negatives` of the matching loss in fine-tuning
    come from the rows of one process, as in the reference, or from those of all.
    """

    shortlist: int = pydantic.Field(default=128, gt=0)
    recalls: tuple[Annotated[int, pydantic.Field(ge=1)], ...] = pydantic.Field(default=(1, 5, 10), min_length=1)
    ties: Ties = "index"
    spool_above_bytes: int = pydantic.Field(default=4 * 2**30, ge=0)
    negatives: Literal["process", "all"] = "process"


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


class CaptioningConfig(FrozenConfig):
    """How captions are written and learned; the defaults are the released ones of COCO.

    Written: `num_beams` to `no_repeat` as in `x2vlm.models.generate.GenerateConfig`, behind the `prompt`. Learned:
    `mode` "fg_free" inserts a [MASK] before the true token and "causal" replaces it, both with a divergence from
    targets smoothed by `label_smoothing`; "scst" is self-critical training, with `scst_samples` captions of up to
    `scst_max_tokens` tokens an image, rewarded by CIDEr-D (released for X-VLM alone).
    """

    prompt: str = "a picture of "
    num_beams: int = pydantic.Field(default=3, ge=1)
    max_tokens: int = pydantic.Field(default=50, ge=1)
    min_tokens: int = pydantic.Field(default=5, ge=0)
    length_penalty: float = pydantic.Field(default=0.0, allow_inf_nan=False)
    no_repeat: int = pydantic.Field(default=3, ge=0)
    mode: Literal["fg_free", "causal", "scst"] = "fg_free"
    masking: MaskingConfig = MaskingConfig(prob=0.6, max_masks=18)
    label_smoothing: float = pydantic.Field(default=0.1, ge=0, lt=1)
    scst_samples: int = pydantic.Field(default=5, ge=1)
    scst_max_tokens: int = pydantic.Field(default=20, ge=1)


class WinogroundConfig(FrozenConfig):
    """`score` of a pair: the logit that says they match, by how much it is above the other logit, or the cosine."""

    score: Literal["match", "odds", "cosine"] = "match"


class AttributesConfig(FrozenConfig):
    """`prompts`: the articles of the templates. `synonyms`: of a label's words and templates the largest or the mean.

    `noun`: "object" in every prompt, as in the official code, or the category of the box. `variant` names the main
    metrics: the official evaluator cuts cosines to [0, 1] first, so that all below 0 tie.
    """

    prompts: tuple[Literal["a", "the", "none"], ...] = pydantic.Field(default=("a", "the", "none"), min_length=1)
    synonyms: Literal["max", "mean"] = "max"
    noun: Literal["object", "category"] = "object"
    variant: Literal["ovad-official", "unclipped"] = "ovad-official"


class WeakGroundingConfig(FrozenConfig):
    """`map_layer`: the fusion layer whose attention is read, from 0; None: the first of the upper half.

    That is layer 9 of 12 in X-VLM, whose last six are fusion layers: number 3 of these.
    `negatives`: as in `RetrievalConfig`, for fine-tuning, which uses no box.
    """

    map_layer: int | None = pydantic.Field(default=None, ge=0)
    area_power: float = pydantic.Field(default=0.5, ge=0, allow_inf_nan=False)
    iou_threshold: float = pydantic.Field(default=IOU_THRESHOLD, gt=0, le=1)
    iou: IouConvention = "plain"
    negatives: Literal["process", "all"] = "process"
