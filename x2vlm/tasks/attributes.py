"""OVAD, zero-shot, boxes given: which of 117 attributes an object has, by cosine with prompts (X2-VLM 4.3.7).

Example: of the attribute "color quantity:single-colored/uniform" the prompts are "a single-colored object", "the object
is uniform", ...; the crop of a box scores as high as its most similar prompt. Whether a prompt says "is" or "has", and
which words stand for an age, is as in the official benchmark code.
N boxes, A attributes, S prompts, E width of the comparison space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from x2vlm.data.task_examples import Example, check_examples
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.samples import Box
from x2vlm.tasks.config import AttributesConfig
from x2vlm.tasks.scoring import average_precisions, mean_average_precision
from x2vlm.tasks.sharing import batches_of, map_batches
from x2vlm.tasks.task import Task, TaskContext, TaskResult, data_digest

if TYPE_CHECKING:
    from x2vlm.models.downstream.task_model import TaskModel

HAS = "has"  # label tag of an attribute that an object has ("striped pattern") and not is ("clean")
SETS = ("head", "medium", "tail")
ANY_NOUN = "object"
# Words that the official code adds to two attributes.
MORE_WORDS = {
    "young/baby": ("kid", "kids", "child", "toddler", "boy", "girl"),
    "adult/old/aged": ("teen", "elder"),
}


def check_attributes(examples: Sequence[Example], labels: Sequence[str], options: AttributesConfig) -> None:
    """ConfigError if an example is not one image with a box, a noun and one annotation per label."""
    if not labels:
        raise ConfigError("attributes: the data name no attributes; give the official file, which lists them")
    for example in examples:
        counts = (len(example.media), len(example.texts), len(example.attributes))
        if counts != (1, 1, len(labels)) or example.box is None:
            raise ConfigError(
                f"example {example.example_id}: {counts[0]} images, {counts[1]} nouns, {counts[2]} annotations and "
                f"{'no' if example.box is None else 'a'} box; this task takes 1, 1, {len(labels)} and a box"
            )


@torch.no_grad()
def evaluate_attributes(model: TaskModel, options: AttributesConfig, ctx: TaskContext) -> TaskResult:
    """`map_all`, `map_head`, `map_medium` and `map_tail` as `options.variant` has it; the other variant's beside them.

    Raises InvalidSample for an empty split, ConfigError as `check_attributes`.
    """
    check_examples(ctx.examples, "attributes")
    check_attributes(ctx.examples, ctx.labels, options)
    model.eval()
    has = [HAS in tags for tags in ctx.label_tags] if ctx.label_tags else [False] * len(ctx.labels)
    nouns = [ANY_NOUN] if options.noun == "object" else list(dict.fromkeys(e.texts[0] for e in ctx.examples))
    boards = boards_of(model, ctx, nouns, has, options)

    def score(batch: Sequence[Example]) -> list[list[float]]:
        crops = [crop_of(ctx.load(example.media[0]).frames[0], example) for example in batch]
        features_BE = model.base.project_vision(model.base.encode_image(ctx.processor.images(crops).to(ctx.device)))
        by_noun = {noun: board.scores(features_BE, options) for noun, board in boards.items()}
        keys = [ANY_NOUN if options.noun == "object" else example.texts[0] for example in batch]
        return [by_noun[noun][row].tolist() for row, noun in enumerate(keys)]

    scores_NA = np.array(map_batches(ctx.examples, ctx.batch_size, ctx.ranks, score))
    present_NA = np.array([example.attributes for example in ctx.examples])
    sets = [next((tag for tag in tags if tag in SETS), "") for tags in ctx.label_tags] or [""] * len(ctx.labels)
    metrics: dict[str, float] = {}
    precisions: dict[str, list[float]] = {}
    for variant in ("ovad-official", "unclipped"):
        found = average_precisions(scores_NA, present_NA, clip=variant == "ovad-official")
        prefix = "" if variant == options.variant else f"{variant}/"
        for name, value in mean_average_precision(found, sets).items():
            if name:
                metrics[f"{prefix}map_{name}"] = value
        precisions[variant] = found.tolist()
    predictions = pa.table(
        {
            "example_id": [example.example_id for example in ctx.examples],
            "noun": [example.texts[0] for example in ctx.examples],
            "scores": scores_NA.tolist(),
        }
    )
    counted = int((~np.isnan(precisions[options.variant])).sum())
    return TaskResult(
        metrics=metrics,
        predictions=predictions,
        data_digest=data_digest([f"{e.example_id}={e.texts[0]}" for e in ctx.examples]),
        num_examples=len(ctx.examples),
        measured_as={
            "variant": options.variant,
            "synonyms": options.synonyms,
            "noun": options.noun,
            "prompts": "+".join(options.prompts),
            "attributes": f"{counted} of {len(ctx.labels)}, the others are in no box",
        },
    )


def prompts(label: str, has: bool, noun: str, options: AttributesConfig) -> list[str]:
    """Every prompt of an attribute "type:word/word": each word in each template."""
    kind, _, words = label.partition(":")
    kind, words = (kind, words) if words else ("", kind)
    thing = kind.replace(" tone", "")
    found = []
    for word in (*words.split("/"), *MORE_WORDS.get(words, ())):
        described = f"{word} {thing}".strip() if has else word
        verb = "has" if has else "is"
        for article in options.prompts:
            if article == "none":
                found.append(f"{described} {noun}")
            else:
                found += [f"{article} {described} {noun}", f"{article} {noun} {verb} {described}"]
    return found


@dataclass(frozen=True)
class Board:
    """Features (S, E) of the prompts of all attributes, one attribute's after the other's, and where each starts."""

    feature_SE: Tensor
    starts_A: NDArray[np.int64]

    def scores(self, images_BE: Tensor, options: AttributesConfig) -> NDArray[np.float64]:
        """(B, A): the cosines of each image with the prompts of an attribute, joined by their largest or mean."""
        cosine_BS = (images_BE @ self.feature_SE.T).double().cpu().numpy()
        if options.synonyms == "max":
            return np.maximum.reduceat(cosine_BS, self.starts_A, axis=1)
        return np.add.reduceat(cosine_BS, self.starts_A, axis=1) / np.diff(self.starts_A, append=len(self.feature_SE))


def boards_of(
    model: TaskModel, ctx: TaskContext, nouns: Sequence[str], has: Sequence[bool], options: AttributesConfig
) -> dict[str, Board]:
    """The prompts about each noun; every distinct text is encoded once."""
    boards = {}
    for noun in nouns:
        texts = [prompts(label, of_it, noun, options) for label, of_it in zip(ctx.labels, has, strict=True)]
        flat = [text for each in texts for text in each]
        place_of = {text: place for place, text in enumerate(dict.fromkeys(flat))}
        features = []
        for rows in batches_of(len(place_of), ctx.batch_size):
            ids_BL, mask_BL = ctx.processor.texts(list(place_of)[rows.start : rows.stop])
            ids_BL, mask_BL = ids_BL.to(ctx.device), mask_BL.to(ctx.device)
            features.append(model.base.project_text(model.base.encode_text(ids_BL, mask_BL)))
        counts = np.array([len(each) for each in texts], dtype=np.int64)
        feature_SE = torch.cat(features)[[place_of[text] for text in flat]]
        boards[noun] = Board(feature_SE, np.cumsum(counts) - counts)
    return boards


def crop_of(image: Image.Image, example: Example) -> Image.Image:
    """The pixels of the example's box, whole ones; the processor squashes them to a square.

    InvalidSample ("no_usable_box") for a box outside of its image.
    """
    box = example.box
    assert box is not None
    left, top = max(0, round(box.x)), max(0, round(box.y))
    right, bottom = min(image.width, round(box.x + box.w)), min(image.height, round(box.y + box.h))
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # a box of less than a pixel shows one
    if left >= image.width or top >= image.height or not _touches(box, image):
        raise InvalidSample("no_usable_box", f"example {example.example_id}: {box} in {image.width} x {image.height}")
    return image.crop((left, top, right, bottom))


def _touches(box: Box, image: Image.Image) -> bool:
    return box.x < image.width and box.y < image.height and box.x + box.w > 0 and box.y + box.h > 0


ATTRIBUTES = Task(evaluate=evaluate_attributes, check=check_attributes)
