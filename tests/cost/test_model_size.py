"""Counts of parameters against real models, and the memory model against the study's table, typed in here."""

import pytest
import torch

from tests.support.models.sizes import (
    ATTENTIVE,
    BASE,
    BASE_4M,
    BASE_PHASE_2,
    LARGE,
    LARGE_4M,
    LARGE_PHASE_2,
    SMALL,
    TOWERS,
    batch_shape,
)
from x2vlm.cost.flops import BatchShape, Graph
from x2vlm.cost.model_size import checkpoint_bytes, num_parameters, peak_memory
from x2vlm.models.blocks.temporal import TimeAttention, temporal_attention
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import build_model


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        SMALL.model_copy(update={"num_frames": 3}),
        SMALL.model_copy(update={"tie_words": False}),
        *(SMALL.model_copy(update={"vision": tower}) for name, tower in TOWERS.items() if name != "beit2"),
        ATTENTIVE,
    ],
    ids=["plain", "frames", "untied", *(name for name in TOWERS if name != "beit2"), "attention over time"],
)
def test_parameters_are_those_of_the_real_model(config: ModelConfig) -> None:
    assert num_parameters(config) == sum(parameter.numel() for parameter in build_model(config).parameters())


def test_parameters_are_those_the_reference_was_counted_to_have() -> None:
    assert num_parameters(BASE) == 254_758_401
    assert num_parameters(LARGE.model_copy(update={"num_frames": 3})) == 592_952_129
    assert checkpoint_bytes(BASE) / 1e9 == pytest.approx(3.1, abs=0.05)


LARGE_128 = [batch_shape("image", 128, 128), batch_shape("region", 128, 50)]

# GB: image tower, text, fusion, keys and values, word head, states.
ROWS: list[tuple[str, ModelConfig, list[BatchShape], Graph, str, int, list[float]]] = [
    ("base, the paper's way", BASE, BASE_4M, "reference", "eager", 0, [22.2, 9.6, 20.8, 4.5, 0.9, 4.6]),
    ("base, fused, padded", BASE, BASE_4M, "reference", "fused", 0, [7.8, 4.5, 6.8, 4.5, 0.6, 4.6]),
    ("base, ours", BASE, BASE_4M, "executed", "fused", 0, [7.8, 1.1, 1.6, 0.7, 0.2, 4.6]),
    ("base, checkpointed", BASE, BASE_4M, "executed", "fused", 12, [1.1, 1.1, 1.6, 0.7, 0.2, 4.6]),
    ("large, the paper's way", LARGE, LARGE_4M, "reference", "eager", 0, [29.6, 6.4, 13.8, 3.0, 0.5, 10.7]),
    ("large 128, eager", LARGE, LARGE_128, "reference", "eager", 0, [59.1, 12.8, 27.7, 5.9, 0.9, 10.7]),
    ("large 128, ours", LARGE, LARGE_128, "executed", "fused", 0, [20.7, 1.5, 2.2, 0.9, 0.2, 10.7]),
    ("base phase 2, ours", BASE, BASE_PHASE_2, "executed", "fused", 0, [9.2, 0.8, 1.1, 0.5, 0.2, 4.6]),
    (
        "large phase 2, ours",
        LARGE,
        [batch_shape("image", 64, 64), batch_shape("region", 64, 26), batch_shape("video", 40, 120)],
        "executed",
        "fused",
        0,
        [24.5, 1.1, 1.5, 0.7, 0.2, 10.7],
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_memory_is_what_the_table_says(
    row: tuple[str, ModelConfig, list[BatchShape], Graph, str, int, list[float]],
) -> None:
    _, config, shapes, graph, attention, checkpointed, expected = row
    memory = peak_memory(
        config,
        shapes,
        graph,
        attention=attention,
        checkpoint_vision_blocks=checkpointed,  # type: ignore[arg-type]
    )
    parts = (memory.vision, memory.text, memory.fusion, memory.image_keys, memory.words, memory.states)
    for found, wanted in zip(parts, expected, strict=True):
        assert found / 1e9 == pytest.approx(wanted, abs=0.35, rel=0.02)
    assert memory.total / 1e9 == pytest.approx(sum(expected), rel=0.025)


@pytest.mark.parametrize("checkpointed", [0, 2])
def test_attention_over_time_keeps_what_torch_saves_of_it(checkpointed: int) -> None:
    """Counted on tensors of float32, which are twice as large; scores and what a norm keeps per row are left out."""
    config, num_clips, num_frames = BASE.model_copy(update={"num_frames": 3}), 5, 3
    vision = config.vision.model_copy(update={"temporal": "attention"})
    attentive = config.model_copy(update={"vision": vision})
    shape = [batch_shape("image", 4, 4), batch_shape("video", num_clips, num_clips * num_frames)]
    found, plain = (
        peak_memory(each, shape, checkpoint_vision_blocks=checkpointed).vision for each in (attentive, config)
    )
    saved: dict[int, int] = {}
    with torch.device("meta"):
        block = TimeAttention(vision)
        hidden = torch.zeros(num_clips * num_frames, 197, 768, requires_grad=True)
    weights = {parameter.untyped_storage()._cdata for parameter in block.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        temporal_attention(block, hidden, num_frames)
    held = 12 - checkpointed + (checkpointed > 0)
    assert found - plain == pytest.approx(held * sum(saved.values()) / 2, rel=0.015)


def test_smaller_phase_2_of_large_takes_half() -> None:
    assert peak_memory(LARGE, LARGE_PHASE_2).vision / 1e9 == pytest.approx(24.5 / 210 * 106, rel=0.02)
