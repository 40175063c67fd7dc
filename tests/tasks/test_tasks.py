"""Retrieval and grounding with a real tiny model, against naive loops over every pair."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.naive_pixels import naive_pixels
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from x2vlm.errors import InvalidSample
from x2vlm.inference.processor import processor_for
from x2vlm.models.x2vlm import X2VLM
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key
from x2vlm.tasks.grounding import GroundingConfig, evaluate_grounding
from x2vlm.tasks.retrieval import RetrievalConfig, evaluate_retrieval
from x2vlm.tasks.scoring import box_iou
from x2vlm.tasks.task import TaskContext, data_digest

WORDS = ["red", "green", "blue", "dog", "cat", "bus"]
VOCABULARY = [*SPECIAL_TOKENS, *WORDS]


def ids_by_hand(text: str) -> tuple[Tensor, Tensor]:
    ids = [VOCABULARY.index(token) for token in ("[CLS]", *text.split(), "[SEP]")]
    return torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)


def make_sample(index: int, captions: int = 2) -> Sample:
    row = str(index)
    texts = [f"{WORDS[index % 3]} {WORDS[3 + (index + turn) % 3]}" for turn in range(captions)]
    concepts = (
        Concept(Grain.OBJECT, WORDS[3 + index % 3], Box(4, 4, 20, 16), (WORDS[index % 3],), f"{index}-a"),
        Concept(Grain.OBJECT, "cat", Box(0, 0, 8, 8), (), f"{index}-b"),
        Concept(Grain.OBJECT, "cat", Box(9, 9, 8, 8), (), f"{index}-c"),
    )
    media = Media("image", "0" * 64, 1, 48, 32, "png")
    return Sample(
        sample_key("toy", row), "toy", row, "val", "image", "", tuple(map(Caption, texts)), concepts, media=media
    )


def image(sample: Sample) -> Image.Image:
    generator = np.random.default_rng(int(sample.source_row))
    return Image.fromarray(generator.integers(0, 255, (32, 48, 3), dtype=np.uint8))


def context(model: X2VLM, samples: Sequence[Sample], batch_size: int = 5) -> TaskContext:
    processor = processor_for(model.config, WordPieceTokenizer(VOCABULARY))
    return TaskContext(samples, image, processor, batch_size=batch_size)


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


def test_retrieval_agrees_with_scoring_every_pair(model: X2VLM) -> None:
    samples = [make_sample(index) for index in range(4)]
    result = evaluate_retrieval(model, RetrievalConfig(shortlist=3), context(model, samples))
    cosine, logits = naive_tables(model, samples)
    expected_hits = []
    for i in range(4):
        shortlist = np.argsort(-cosine[i], kind="stable")[:3]
        scores = np.full(8, -100.0)
        scores[shortlist] = logits[i, shortlist]
        expected_hits.append(int(np.argmax(scores)) // 2 == i)
    assert result.metrics["tr_r1"] == pytest.approx(100 * np.mean(expected_hits))
    rows = result.predictions.to_pylist()
    assert [row["rank_of_right"] == 0 for row in rows if row["retrieved"] == "text"] == expected_hits
    assert len(rows) == 4 + 8


def test_retrieval_does_not_depend_on_batch_size(model: X2VLM) -> None:
    samples = [make_sample(index) for index in range(5)]
    one, many = (evaluate_retrieval(model, RetrievalConfig(), context(model, samples, size)) for size in (1, 64))
    assert one.metrics == many.metrics
    assert one.data_digest == many.data_digest


def test_grounding_scales_boxes_back_and_skips_ambiguous_texts(model: X2VLM) -> None:
    samples = [make_sample(index) for index in range(3)]
    result = evaluate_grounding(model, GroundingConfig(), context(model, samples))
    rows = result.predictions.to_pylist()
    assert [row["annotation_id"] for row in rows] == ["0-a", "1-a", "2-a"]
    for row in rows:
        x, y, w, h = row["box_xywh"]
        assert min(x, y, w, h) >= 0
        assert x + w <= 48 + 1e-6
        assert y + h <= 32 + 1e-6
        assert row["iou"] == pytest.approx(box_iou(Box(x, y, w, h), Box(*row["target_xywh"])))
    ambiguous = evaluate_grounding(model, GroundingConfig(unambiguous=False), context(model, samples))
    assert ambiguous.num_examples == 9
    assert ambiguous.data_digest != result.data_digest


def test_nothing_to_evaluate_is_an_error(model: X2VLM) -> None:
    with pytest.raises(InvalidSample, match="empty_split"):
        evaluate_retrieval(model, RetrievalConfig(), context(model, []))
    with pytest.raises(InvalidSample, match="empty_split"):
        evaluate_grounding(model, GroundingConfig(), context(model, []))


def test_an_example_asked_twice_is_an_error() -> None:
    with pytest.raises(InvalidSample, match="duplicate_id"):
        data_digest(["a", "b", "a"])
