"""Compiled blocks are compiled once, not once for every number of images that a step happens to have."""

import functools

import pytest
import torch

from tests.support.models.tiny import deep_model
from tests.support.training.corpus import DATA, TOKENIZER, make_shards
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.streams import StreamConfig
from x2vlm.models.blocks import beit_blocks
from x2vlm.models.config import ModelConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import build_model

COMPILED = ExecutionConfig(compile_blocks=True)


@pytest.fixture
def graphs(monkeypatch):
    """How many graphs were compiled so far, by a compiler that costs little; gradients are traced as well."""
    from torch._dynamo.utils import counters

    def reset():
        torch._dynamo.reset()
        beit_blocks._compiled.cache_clear()
        counters.clear()

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    reset()
    yield lambda: counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]
    reset()


@pytest.fixture(scope="module")
def image_counts(tmp_path_factory) -> list[int]:
    """Images of every step, as the loader of a run draws them."""
    shards = make_shards(tmp_path_factory.mktemp("shards"))
    streams = (StreamConfig(kind="image", batch_size=4), StreamConfig(kind="region", batch_size=12, num_images=8))
    loader = StepLoader(shards, DATA.model_copy(update={"streams": streams}), TOKENIZER, 32, 16, 0, 1)
    return [sum(len(batch.pixels) for batch in loader[step].batches.values()) for step in range(12)]


def test_steps_of_a_run_compile_two_graphs(graphs, image_counts):
    """One for the first block, which drops no path, and one for all others; more numbers of images than torch allows.

    Without dynamic rows torch compiles `recompile_limit` (8) sizes and then stops compiling at all.
    """
    assert len(set(image_counts)) >= 3
    model = deep_model(image_res=32, depth=3)
    seen = []
    for count in [*image_counts, *range(2, 14)]:
        model.vision(torch.randn(count, 3, 32, 32), COMPILED).patches_MPD.sum().backward()
        seen.append(graphs())
    assert seen == [2] * len(seen)


def test_fixed_sizes_would_be_compiled_for_every_number_of_images(graphs, monkeypatch):
    monkeypatch.setattr(beit_blocks, "_mark_any_number_of_rows", lambda _: None)
    model = deep_model(image_res=32, depth=2)
    for count in (2, 3, 4):
        model.vision(torch.randn(count, 3, 32, 32), COMPILED).patches_MPD.sum().backward()
    assert graphs() == 2 * 3


@pytest.mark.slow  # half a minute on a busy machine
def test_clips_of_any_number_compile_once(graphs):
    config = ModelConfig.model_validate(
        {
            "vision": {"image_res": 32, "width": 24, "depth": 3, "num_heads": 2, "temporal": "attention"},
            "text": {"width": 16, "num_layers": 1, "num_heads": 2, "intermediate": 32, "vocab_size": 50},
            "fusion": {"num_layers": 1, "num_heads": 2, "intermediate": 32},
            "num_frames": 3,
        }
    )
    torch.manual_seed(0)
    vision = build_model(config).train().vision
    seen = []
    for clips in (2, 3, 5, 4, 7):
        pixels = torch.randn(clips * 3, 3, 32, 32)
        vision(pixels, COMPILED, 3).patches_MPD.sum().backward()
        seen.append(graphs())
    assert seen == [2] * len(seen)
