"""Re-ranking: equal scores whatever the chunks, one projection per image by count of FLOPs, bounded memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.support.models.tasks import context, make_sample, naive_tables, retrieval
from x2vlm.errors import InvalidSample
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import X2VLM
from x2vlm.tasks.matching import reranking


def flops_of(call) -> int:  # type: ignore[no-untyped-def]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("images_at_once", [1, 2, 100])
def test_scores_are_those_of_every_pair_alone(model: X2VLM, monkeypatch, images_at_once: int) -> None:
    monkeypatch.setattr(reranking, "_images_at_once", lambda *_: images_at_once)
    samples = [make_sample(index) for index in range(5)]
    rows = retrieval(model, samples, 3, shortlist=4).predictions.to_pylist()
    cosine, logits = naive_tables(model, samples)
    for axis, kind in ((1, "text"), (0, "image")):
        table = np.moveaxis(logits, axis, 1)
        best = np.argsort(-np.moveaxis(cosine, axis, 1).round(5), axis=1, kind="stable")[:, :4]
        tops = [row[chosen].max() for row, chosen in zip(table, best, strict=True)]
        found = [row["top_score"] for row in rows if row["retrieved"] == kind]
        np.testing.assert_allclose(found, tops, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_shortlists_are_a_stable_sort(monkeypatch, size: int) -> None:
    monkeypatch.setattr(reranking, "COSINES_AT_ONCE", 20)
    draw = torch.Generator().manual_seed(0)
    queries, candidates = (torch.randint(-1, 2, (rows, 3), generator=draw).float() for rows in (11, 6))  # many ties
    feature_of = torch.randint(0, 6, (9,), generator=draw)
    expected = torch.argsort(-(queries @ candidates[feature_of].T), dim=1, stable=True)[:, :size]
    found = reranking.shortlists(queries, candidates, feature_of.numpy(), size)
    np.testing.assert_array_equal(found, expected.numpy())
    queries[3] = torch.nan
    with pytest.raises(InvalidSample, match="nan_score"):
        reranking.shortlists(queries, candidates, feature_of.numpy(), size)


def test_equal_captions_have_equal_scores_and_are_scored_once(model: X2VLM) -> None:
    samples = [make_sample(0, captions=3), make_sample(15, captions=3)]  # the same three texts
    seen: list[int] = []
    handle = model.match_head.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    result = retrieval(model, samples, 2)
    handle.remove()
    assert sum(seen) == 2 * 3  # images by distinct captions, once for both directions
    of_text = [row["top_score"] for row in result.predictions.to_pylist() if row["retrieved"] == "image"]
    assert of_text[:3] == of_text[3:]


def test_flops_are_one_projection_per_image(model: X2VLM) -> None:
    """The whole evaluation, counted, is the sum of its parts: encoding, cosines, one projection each, every pair."""
    samples = [make_sample(index) for index in range(6)]
    processor = context(TaskModel(model), []).processor
    ids_TL, mask_TL = processor.texts([caption.text for sample in samples for caption in sample.captions])
    assert mask_TL.all()  # texts of equal length: no padding, whatever the batches
    num_texts, size = len(torch.unique(ids_TL, dim=0)), 3
    assert num_texts < len(ids_TL)
    seen: set[tuple[int, int]] = set()
    rerank = reranking.rerank

    def spy(model, images, texts, pair_sets, batch_size, ranks):  # type: ignore[no-untyped-def]
        for image, text in pair_sets:
            seen.update(zip(image.ravel().tolist(), text.ravel().tolist(), strict=True))
        return rerank(model, images, texts, pair_sets, batch_size, ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("x2vlm.tasks.retrieval.rerank", spy)
        total = flops_of(lambda: retrieval(model, samples, 4, shortlist=size))

    pixels, mask = torch.zeros(1, 3, 32, 32), mask_TL[:1]
    with torch.no_grad():
        vision = model.encode_image(pixels)
        memory, states = model.image_memory(vision), model.encode_text(ids_TL[:1], mask)
    encode_image = flops_of(lambda: model.project_vision(model.encode_image(pixels)))
    encode_text = flops_of(lambda: model.project_text(model.encode_text(ids_TL[:1], mask)))
    projection = flops_of(lambda: model.image_memory(vision))
    pair = flops_of(lambda: model.match(model.fuse(states, mask, memory)))
    cosines = 2 * 2 * len(samples) * num_texts * model.config.embed_dim  # both directions
    expected = len(samples) * (encode_image + projection) + num_texts * encode_text + cosines + len(seen) * pair
    assert total == expected
    fusion = model.config.fusion.num_layers
    assert projection == 2 * 2 * fusion * (4 + 1) * 32 * 32  # keys and values, of 4 patches and the summary


def test_keys_in_memory_are_bounded(model: X2VLM) -> None:
    """Chunks hold as many images as the bound in bytes allows, whatever their number."""
    samples = [make_sample(index) for index in range(9)]
    bytes_per_image = 2 * model.config.fusion.num_layers * 5 * 32 * 4
    rows: list[int] = []
    key = model.fusion.layers[0].cross_attention.key  # type: ignore[union-attr]
    handle = key.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))  # type: ignore[union-attr]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reranking, "KEY_BYTES", 2 * bytes_per_image + 1)
        retrieval(model, samples, 64, shortlist=18)
    handle.remove()
    assert rows == [2, 2] * 4 + [1, 1]  # summaries and patches of nine images, two at a time


COCO_SIZED = """
import resource, sys, time
import numpy as np, torch
from PIL import Image
from tests.support.models.tasks import COLOURS, THINGS, VOCABULARY
from x2vlm.data.task_examples import Example
from x2vlm.data.text.tokenizer import WordPieceTokenizer
from x2vlm.inference.processor import processor_for
from x2vlm.inference.visuals import Visual
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import build_model
from x2vlm.tasks.config import RetrievalConfig
from x2vlm.tasks.retrieval import evaluate_retrieval
from x2vlm.tasks.task import TaskContext
torch.set_num_threads(1)
torch.manual_seed(0)
config = ModelConfig(
    vision=VisionConfig(image_res=224, width=64, depth=1, num_heads=2),
    text=TextConfig(width=64, num_layers=1, num_heads=2, intermediate=128, vocab_size=16, max_positions=16),
    fusion=FusionConfig(num_layers=1, num_heads=2, intermediate=128), embed_dim=32)
model = build_model(config)
draw = np.random.default_rng(0)
def example(number):
    texts = [" ".join(draw.choice([*COLOURS, *THINGS], 8)) for _ in range(5)]
    return Example(str(number), "val", (str(number),), tuple(texts))
examples = [example(number) for number in range(5000)]
def load(name):
    pixels = np.random.default_rng(int(name)).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Visual(name, (Image.fromarray(pixels),))
processor = processor_for(config, WordPieceTokenizer(VOCABULARY))
started = time.process_time()
context = TaskContext(examples, load, processor, batch_size=64)
result = evaluate_retrieval(TaskModel(model), RetrievalConfig(shortlist=int(sys.argv[1])), context)
assert result.num_examples == 30000
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "SECONDS", time.process_time() - started)
"""


@pytest.mark.slow
def test_a_run_of_the_size_of_coco_5k_stays_under_2_gb(project_root: Path) -> None:
    """5,000 images, 25,000 captions. Whole tables of cosines and scores, as float32 and float64, would take 3 GB."""
    done = subprocess.run(
        [sys.executable, "-c", COCO_SIZED, "16"], cwd=project_root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak = int(done.stdout.split("PEAK ")[1].split()[0])
    assert peak < 2_000_000_000, done.stdout
