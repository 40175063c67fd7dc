"""Held-out samples of the pipeline as examples of tasks, whose media are named by sha256."""

from collections.abc import Sequence

from x2vlm.data.task_examples import Example
from x2vlm.data.text.texts import concept_text
from x2vlm.errors import InvalidSample
from x2vlm.samples import Sample
from x2vlm.tasks.config import GroundingConfig, RetrievalConfig


def retrieval_examples(samples: Sequence[Sample], options: RetrievalConfig) -> list[Example]:
    """One example per captioned sample, with its captions; InvalidSample for one of these without media."""
    return [
        Example(
            example_id=sample.key,
            split=sample.split,
            media=(_media_of(sample),),
            texts=tuple(caption.text for caption in sample.captions),
            kind=sample.kind,
        )
        for sample in samples
        if sample.captions
    ]


def grounding_examples(samples: Sequence[Sample], options: GroundingConfig) -> list[Example]:
    """One example per text with a box; its id is `key#annotation_id`.

    InvalidSample for a sample with boxes and without media.
    """
    return [
        Example(
            example_id=f"{sample.key}#{concept.annotation_id}",
            split=sample.split,
            media=(_media_of(sample),),
            texts=(concept_text(concept),),
            box=concept.box,
            kind=sample.kind,
        )
        for sample in samples
        for concept in sample.concepts
    ]


def _media_of(sample: Sample) -> str:
    if sample.media is None:
        raise InvalidSample("missing_media", f"sample {sample.key} has no media")
    return sample.media.sha256
