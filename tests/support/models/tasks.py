"""Drawn samples with captions and boxes for the downstream tasks, and a score for every pair by naive loops."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.support.naive_pixels import naive_pixels
from x2vlm.data.task_examples import Example
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from x2vlm.inference.processor import processor_for
from x2vlm.inference.visuals import Visual
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key
from x2vlm.tasks.config import GroundingConfig, RetrievalConfig
from x2vlm.tasks.from_samples import grounding_examples, retrieval_examples
from x2vlm.tasks.grounding import evaluate_grounding
from x2vlm.tasks.retrieval import evaluate_retrieval
from x2vlm.tasks.task import TaskContext, TaskResult

COLOURS = ["red", "green", "blue", "black", "white"]  # one an image, so that no two texts of five images are equal
THINGS = ["dog", "cat", "bus"]
VOCABULARY = [*SPECIAL_TOKENS, *COLOURS, *THINGS]


def ids_by_hand(text: str) -> tuple[Tensor, Tensor]:
    ids = [VOCABULARY.index(token) for token in ("[CLS]", *text.split(), "[SEP]")]
    return torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)


def make_sample(index: int, captions: int = 2) -> Sample:
    row = str(index)
    texts = [f"{COLOURS[index % 5]} {THINGS[(index + turn) % 3]}" for turn in range(captions)]
    concepts = (
        Concept(Grain.OBJECT, THINGS[index % 3], Box(4, 4, 20, 16), (COLOURS[index % 5],), f"{index}-a"),
        Concept(Grain.OBJECT, "cat", Box(0, 0, 8, 8), (), f"{index}-b"),
        Concept(Grain.OBJECT, "cat", Box(9, 9, 8, 8), (), f"{index}-c"),
    )
    media = Media("image", f"{index:064x}", 1, 48, 32, "png")
    return Sample(
        sample_key("toy", row), "toy", row, "val", "image", "", tuple(map(Caption, texts)), concepts, media=media
    )


def image(sample: Sample) -> Image.Image:
    return picture(int(sample.source_row))


def picture(number: int) -> Image.Image:
    generator = np.random.default_rng(number)
    return Image.fromarray(generator.integers(0, 255, (32, 48, 3), dtype=np.uint8))


def load(name: str) -> Visual:
    """The picture whose number the name says, as sha256 of samples made here do."""
    return Visual(name, (picture(int(name, 16)),))


def clip_of(name: str) -> Visual:
    """Three frames, drawn from the number that the name says."""
    return Visual(name, tuple(picture(100 + 10 * int(name, 16) + turn) for turn in range(3)), is_clip=True)


def context(model: TaskModel, examples: Sequence[Example], batch_size: int = 5, **fields: Any) -> TaskContext:
    processor = processor_for(model.config, WordPieceTokenizer(VOCABULARY))
    return TaskContext(examples, processor=processor, batch_size=batch_size, **{"load": load, **fields})


def small_task_model(seed: int = 3) -> TaskModel:
    """The small random model of the tasks: images of 32 pixels, 4 patches, 2 layers each."""
    torch.manual_seed(seed)
    return TaskModel(
        build_model(
            ModelConfig(
                vision=VisionConfig(image_res=32, width=32, depth=2, num_heads=2),
                text=TextConfig(width=32, num_layers=2, num_heads=2, intermediate=64, vocab_size=16, max_positions=16),
                fusion=FusionConfig(num_layers=2, num_heads=2, intermediate=64),
                embed_dim=16,
            )
        )
    )


def retrieval(base: X2VLM, samples: Sequence[Sample], batch_size: int = 5, **options: Any) -> TaskResult:
    """The retrieval of the captions of `samples`."""
    config = RetrievalConfig(**options)
    return evaluate_retrieval(
        TaskModel(base), config, context(TaskModel(base), retrieval_examples(samples, config), batch_size)
    )


def grounding(base: X2VLM, samples: Sequence[Sample], batch_size: int = 5, **options: Any) -> TaskResult:
    """The grounding of the concepts of `samples`."""
    config = GroundingConfig(**options)
    return evaluate_grounding(
        TaskModel(base), config, context(TaskModel(base), grounding_examples(samples, config), batch_size)
    )


@torch.no_grad()
def naive_tables(model: X2VLM, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and matching logit of every image with every caption, one pair at a time."""
    texts = [caption.text for sample in samples for caption in sample.captions]
    cosine, logits = np.zeros((len(samples), len(texts))), np.zeros((len(samples), len(texts)))
    model.eval()
    for i, sample in enumerate(samples):
        vision = model.encode_image(naive_pixels(image(sample), 32)[None])
        for t, text in enumerate(texts):
            ids, mask = ids_by_hand(text)
            states = model.encode_text(ids, mask)
            v, w = model.project(vision, states)
            cosine[i, t] = float((v @ w.T)[0, 0])
            logits[i, t] = float(model.match(model.fuse(states, mask, vision))[0, 1])
    return cosine, logits
