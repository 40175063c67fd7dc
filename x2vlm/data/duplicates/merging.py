"""Merging duplicates into their keeper: their texts, and their boxes where these fit."""

from collections.abc import Sequence
from dataclasses import replace

from x2vlm.data.text.texts import same_text
from x2vlm.errors import InvalidSample
from x2vlm.samples import Concept, Sample

SAME_PIXELS = ("sha256", "pixels")
"""Methods of `x2vlm.data.duplicates.duplicates` after which a box of one image is right on the other."""


def merge_captions(keeper: Sample, duplicates: Sequence[Sample]) -> Sample:
    """`keeper` with the captions of its duplicates appended, without texts it already has.

    Duplicates are merged in the order of their keys, whatever their order in the input. Texts are compared ignoring
    case and white space; the first wins, with its language and origin. InvalidSample `another_kind` for an image
    and a clip.
    """
    _check(keeper, duplicates)
    captions, seen = [], set()
    for sample in (keeper, *sorted(duplicates, key=lambda one: one.key)):
        for caption in sample.captions:
            same = same_text(caption.text)
            # The keeper's own captions stay as they are: merging adds and never cleans.
            if same not in seen or sample is keeper:
                captions.append(caption)
            seen.add(same)
    return replace(keeper, captions=tuple(captions))


def merge_concepts(keeper: Sample, duplicates: Sequence[tuple[Sample, str]]) -> Sample:
    """`keeper` with the concepts of those duplicates (sample, method) whose pixels are the same as its own.

    Boxes are in pixels of the oriented original, so those of a scaled or cropped copy would be wrong and are left
    out; so are concepts whose grain, text, box and attributes the keeper already has. An annotation id that the keeper
    uses is prefixed with the duplicate's source and row.
    """
    _check(keeper, [sample for sample, _ in duplicates])
    concepts, seen = list(keeper.concepts), {_content(concept) for concept in keeper.concepts}
    ids = {concept.annotation_id for concept in keeper.concepts}
    fitting = [sample for sample, method in duplicates if method in SAME_PIXELS]
    for sample in sorted(fitting, key=lambda one: one.key):
        for concept in sample.concepts:
            if _content(concept) in seen:
                continue
            seen.add(_content(concept))
            if concept.annotation_id in ids:
                name = f"{sample.source}:{sample.source_row}:{concept.annotation_id}"
                concept = replace(concept, annotation_id=name)
            ids.add(concept.annotation_id)
            concepts.append(concept)
    return replace(keeper, concepts=tuple(concepts))


def _content(concept: Concept) -> Concept:
    return replace(concept, annotation_id="")


def _check(keeper: Sample, duplicates: Sequence[Sample]) -> None:
    for sample in duplicates:
        if sample.kind != keeper.kind:
            raise InvalidSample("another_kind", f"{sample.key} is a {sample.kind}, its keeper a {keeper.kind}")
