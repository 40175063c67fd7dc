"""Captioning of images and clips: written behind a prompt by beam search, scored by the official code (X2-VLM 4.3.5).

Example: for a photo whose five captions speak of a bear in the grass, the model goes on from "a picture of" and writes
"a large brown bear sitting in a field". CIDEr compares that with the five, and counts rare words most.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError, InvalidSample, X2VLMError
from x2vlm.inference.processor import num_positions
from x2vlm.models.generate import GenerateConfig, generate
from x2vlm.samples import Sample
from x2vlm.tasks.captions.learning import (
    caption_losses,
    caption_rows,
    collate_captions,
    prepare_caption,
    reward_of_training,
)
from x2vlm.tasks.captions.scores import CaptionScores, score_captions
from x2vlm.tasks.classification import encode_media
from x2vlm.tasks.config import CaptioningConfig, RetrievalConfig
from x2vlm.tasks.from_samples import retrieval_examples
from x2vlm.tasks.scoring import bootstrap_interval
from x2vlm.tasks.sharing import map_batches
from x2vlm.tasks.task import Task, TaskContext, TaskResult, TaskTraining, data_digest
from x2vlm.train.ranks import gather_json

if TYPE_CHECKING:
    from x2vlm.models.downstream.task_model import TaskModel


def check_captioning(examples: Sequence[Example], labels: Sequence[str], options: CaptioningConfig) -> None:
    """ConfigError for an example without exactly one image or clip, and if only some have reference captions."""
    for example in examples:
        if len(example.media) != 1:
            raise ConfigError(
                f"example {example.example_id} has {len(example.media)} images; captioning takes one: make an example "
                "of each"
            )
    bare = [example for example in examples if not example.texts]
    if bare and len(bare) < len(examples):
        raise ConfigError(
            f"{len(bare)} of {len(examples)} examples, such as {bare[0].example_id}, have no reference caption; give "
            "them captions, or leave them out"
        )


@torch.no_grad()
def evaluate_captioning(model: TaskModel, options: CaptioningConfig, ctx: TaskContext) -> TaskResult:
    """BLEU, METEOR, ROUGE_L, CIDEr and SPICE in percent, and the file of results that the COCO server takes.

    Without reference captions the file is all there is. Raises InvalidSample for an empty split and for an image id
    (`Example.group`) that occurs twice, ConfigError as `check_captioning` and if captions are longer than the model
    has positions.
    """
    check_examples(ctx.examples, "captioning")
    check_captioning(ctx.examples, (), options)
    ids = [example.group or example.example_id for example in ctx.examples]
    digest = data_digest([f"{key}={'|'.join(e.texts)}" for key, e in zip(ids, ctx.examples, strict=True)])
    if len(set(ids)) < len(ids):
        raise InvalidSample("duplicate_id", "captioning: an image id occurs twice; one example holds all its captions")
    written = _write(model, options, ctx)
    captions = [text for text, _ in written]
    columns: dict[str, Any] = {
        "example_id": [example.example_id for example in ctx.examples],
        "image_id": ids,
        "caption": captions,
        "log_probability": [score for _, score in written],
    }
    found = [
        {"image_id": int(key) if key.isdecimal() else key, "caption": text}
        for key, text in zip(ids, captions, strict=True)
    ]
    submission = {f"captions_{ctx.examples[0].split}_results.json": json.dumps(found)}
    scores = CaptionScores({}, [], {})
    if ctx.examples[0].texts:
        scores = _scores_on_first(ids, captions, ctx)
        columns["cider"] = scores.cider_of_image
    return TaskResult(
        metrics=scores.metrics,
        predictions=pa.table(columns),
        data_digest=digest,
        intervals={"cider": bootstrap_interval(scores.cider_of_image)} if scores.cider_of_image else {},
        num_examples=len(ids),
        measured_as=scores.measured_as | {"decoding": _decoding(options)},
        submission=submission,
    )


def examples_from_samples(samples: Sequence[Sample], options: CaptioningConfig) -> list[Example]:
    """One example per captioned sample: those of retrieval, which asks about the same images and captions."""
    return retrieval_examples(samples, RetrievalConfig())


def as_written(text: str) -> str:
    """Decoded word pieces as a person writes them: no blanks around apostrophes and before punctuation."""
    text = text.replace(" ' ", "'")
    for mark in (".", ",", "?", "!"):
        text = text.replace(f" {mark}", mark)
    return text


def _write(model: TaskModel, options: CaptioningConfig, ctx: TaskContext) -> list[tuple[str, float]]:
    """A caption and its score for every example; every image is encoded and projected once."""
    tokenizer, prompt_ids = ctx.processor.tokenizer, ctx.processor.prompt(options.prompt.strip())
    names = ("max_tokens", "min_tokens", "num_beams", "length_penalty", "no_repeat")
    config = GenerateConfig(**{name: getattr(options, name) for name in names})
    longest, num = len(prompt_ids) + options.max_tokens, num_positions(model.config)
    if longest > num:
        raise ConfigError(
            f"options.max_tokens: prompt and caption have up to {longest} tokens, the model has {num} positions; set "
            f"max_tokens to {max(1, num - len(prompt_ids))} or less"
        )
    model.eval()

    def write(examples: Sequence[Example]) -> list[list[Any]]:
        visuals = [ctx.load(example.media[0]) for example in examples]
        is_clip = examples[0].kind == "video"
        pixels = ctx.processor.clips(visuals) if is_clip else ctx.processor.images([v.frames[0] for v in visuals])
        vision = encode_media(model, pixels.to(ctx.device))
        texts = generate(model.base, vision, prompt_ids, tokenizer.mask_id, tokenizer.sep_id, config)
        return [[as_written(ctx.processor.decode(text.tokens)), text.score] for text in texts]

    return [(text, score) for text, score in map_batches(ctx.examples, ctx.batch_size, ctx.ranks, write)]


def _scores_on_first(ids: Sequence[str], captions: Sequence[str], ctx: TaskContext) -> CaptionScores:
    """The scores, computed by the first process for all: Java need not run once for each."""
    own: list[Any] = []
    if ctx.ranks.is_first:
        references = [(key, example.texts) for key, example in zip(ids, ctx.examples, strict=True)]
        try:
            scores = score_captions(references, list(zip(ids, captions, strict=True)))
            own = [[scores.metrics, scores.cider_of_image, scores.measured_as]]
        except X2VLMError as error:  # the others wait for an answer
            own = [str(error)]
    (found,) = gather_json(own, ctx.ranks)
    if isinstance(found, str):
        raise X2VLMError(found)
    return CaptionScores(*found)


def _decoding(options: CaptioningConfig) -> str:
    limits = f"{options.min_tokens} to {options.max_tokens} tokens behind {options.prompt.strip()!r}"
    return (
        f"{options.num_beams} beams, {limits}, length penalty {options.length_penalty:g}, "
        f"no {options.no_repeat} tokens twice"
    )


CAPTIONING = Task(
    evaluate=evaluate_captioning,
    training=TaskTraining(
        rows=caption_rows,
        prepare=prepare_caption,
        collate=collate_captions,
        losses=caption_losses,
        before=reward_of_training,
    ),
    check=check_captioning,
    from_samples=examples_from_samples,
)
