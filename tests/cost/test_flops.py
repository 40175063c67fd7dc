"""The closed form against tables worked out by hand, and against torch's own counter to the last FLOP."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

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
from x2vlm.cost import flops
from x2vlm.cost.flops import BatchShape, Rewrites
from x2vlm.data.kinds import BatchKind
from x2vlm.models.x2vlm import build_model

MODELS = {"base": BASE, "large": LARGE}
KEYS_SHARED = Rewrites(True, False, False, False)
PACKED = Rewrites(False, True, False, True)
BOTH = Rewrites(True, True, False, True)


# GFLOP, forward: image; text of 40, 30, 14, 6 tokens; image keys; fusion side of 40, 14 tokens; 12 masked tokens.
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("base", [35.13, 6.85, 5.13, 2.39, 1.02, 2.79, 4.14, 1.44, 0.58]),
        ("large", [123.11, 12.16, 9.10, 4.24, 1.81, 4.96, 7.28, 2.54, 0.78]),
    ],
)
def test_the_parts_cost_what_the_table_says(size: str, expected: list[float]) -> None:
    cfg = MODELS[size]
    found = [
        flops.vision_flops(cfg.vision),
        *(flops.text_flops(cfg, length) for length in (40, 30, 14, 6)),
        flops.num_image_tokens(cfg.vision) * flops.image_key_flops(cfg),
        *(flops.fusion_text_flops(cfg, length) for length in (40, 14)),
        12 * flops.word_flops(cfg),
    ]
    assert [value / 1e9 for value in found] == pytest.approx(expected, abs=0.0051)


# GFLOP of training per text, three kinds: image, region, video of three frames.
@pytest.mark.parametrize(
    ("size", "graph", "max_tokens", "expected"),
    [
        ("base", "reference", 40, [231.4, 188.0, 442.1]),
        ("base", "reference", 30, [208.6, 162.0, 419.3]),
        ("base", KEYS_SHARED, 40, [206.3, 149.4, 417.0]),
        ("base", PACKED, 40, [171.5, 98.8, 382.2]),
        ("base", BOTH, 40, [146.4, 60.3, 357.2]),
        ("base", "executed", 40, [144.4, 59.3, 355.1]),
        ("large", "reference", 40, [591.5, 403.2, 1330.1]),
        ("large", "reference", 30, [551.2, 357.4, 1289.9]),
        ("large", KEYS_SHARED, 40, [546.9, 334.7, 1285.5]),
        ("large", PACKED, 40, [486.1, 246.5, 1224.8]),
        ("large", BOTH, 40, [441.5, 178.0, 1180.1]),
        ("large", "executed", 40, [437.9, 176.2, 1176.5]),
    ],
)
def test_a_sample_costs_what_the_table_says(
    size: str, graph: flops.Graph | Rewrites, max_tokens: int, expected: list[float]
) -> None:
    texts, region_images = (128, 50) if size == "base" else (64, 25)
    kinds: list[tuple[BatchKind, int]] = [("image", texts), ("region", region_images), ("video", 3 * texts)]
    shapes = [batch_shape(kind, texts, num_images) for kind, num_images in kinds]
    found = [flops.step_flops(MODELS[size], [shape], graph, max_tokens) / texts / 1e9 for shape in shapes]
    # One decimal, and the table adds 0.03 GFLOP for the heads of every sample; here they are counted.
    assert found == pytest.approx(expected, abs=0.06)


# TFLOP per step and GPU: reference, keys shared, packed, all rewrites.
@pytest.mark.parametrize(
    ("size", "shapes", "expected"),
    [
        ("base", BASE_4M, [53.68, 45.53, 34.60, 26.07]),
        ("large", LARGE_4M, [63.66, 56.42, 46.88, 39.30]),
        ("base", BASE_PHASE_2, [44.63, 39.56, 32.70, 27.35]),
        ("large", LARGE_PHASE_2, [58.99, 54.50, 48.49, 43.76]),
    ],
)
def test_a_step_costs_what_the_table_says(size: str, shapes: list[BatchShape], expected: list[float]) -> None:
    graphs: list[flops.Graph | Rewrites] = ["reference", KEYS_SHARED, PACKED, "executed"]
    found = [flops.step_flops(MODELS[size], shapes, graph) / 1e12 for graph in graphs]
    assert found == pytest.approx(expected, abs=0.0101)


@pytest.mark.parametrize(("graph", "expected"), [("reference", 28.52), ("executed", 20.89)])
def test_matching_on_fifteen_percent_of_the_steps_costs_what_the_table_says(
    graph: flops.Graph, expected: float
) -> None:
    def cost(matching: bool) -> float:
        shapes = [batch_shape("image", 128, 128, matching), batch_shape("region", 64, 26, matching)]
        return flops.step_flops(BASE, shapes, graph, 30)

    on, off = cost(True), cost(False)
    assert (0.15 * on + 0.85 * off) / 1e12 == pytest.approx(expected, abs=0.0051)


def _counted(call: Callable[..., Any], *arguments: Any) -> int:
    """What torch counts while `call` runs on tensors without data."""
    with FlopCounterMode(display=False) as counter:
        call(*arguments)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("backbone", sorted(TOWERS))
def test_an_image_tower_costs_what_torch_counts(backbone: str) -> None:
    cfg = SMALL.model_copy(update={"vision": TOWERS[backbone]})
    model = build_model(cfg).to("meta")
    pixels = torch.empty(5, 3, cfg.vision.image_res, cfg.vision.image_res, device="meta")
    assert _counted(model.encode_image, pixels) == 5 * flops.vision_flops(cfg.vision)


@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_attention_over_time_costs_what_torch_counts(num_frames: int) -> None:
    clips = torch.empty(5, num_frames, 3, 48, 48, device="meta")
    model = build_model(ATTENTIVE).to("meta")
    frames = 5 * num_frames * flops.vision_flops(ATTENTIVE.vision)
    over_time = 5 * flops.temporal_flops(ATTENTIVE.vision, num_frames)
    assert _counted(model.encode_video, clips) == frames + over_time
    assert (over_time == 0) == (num_frames == 1)
    assert _counted(build_model(SMALL).to("meta").encode_video, clips) == frames
    # Of the vision part alone: what else a step does knows nothing of time.
    shape = BatchShape("video", 5 * num_frames, (14,) * 5, (7,) * 5)
    found, plain = (flops.forward_flops_by_part(config, shape) for config in (ATTENTIVE, SMALL))
    assert found.vision == frames + over_time
    assert found.total - plain.total == over_time


def test_a_backward_pass_over_time_costs_twice_the_forward_pass() -> None:
    """Of the blocks: nothing needs a gradient with respect to pixels, which is a product less."""
    model = build_model(ATTENTIVE).to("meta")
    assert model.vision.temporal is not None
    block = model.vision.temporal.blocks[0]
    patches = torch.empty(5, 4, 9, 48, device="meta", requires_grad=True)
    assert _counted(block, patches) * ATTENTIVE.vision.depth == 5 * flops.temporal_flops(ATTENTIVE.vision, 4)
    both = _counted(lambda: torch.autograd.backward(block(patches).sum()))
    assert both == flops.TRAINING_PER_FORWARD * _counted(block, patches)


def test_attention_over_time_of_images_costs_nothing_and_clips_are_of_equal_length() -> None:
    for shape in (batch_shape("image", 4, 4), batch_shape("region", 4, 2)):
        assert flops.forward_flops(ATTENTIVE, shape) == flops.forward_flops(SMALL, shape)
    with pytest.raises(ValueError, match="7 frames do not belong to 4 equal clips"):
        flops.forward_flops(ATTENTIVE, batch_shape("video", 4, 7))


def test_text_and_fusion_stacks_cost_what_torch_counts() -> None:
    length, rows = 11, 4
    model = build_model(SMALL).to("meta").eval()
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    mask = torch.ones(rows, length, dtype=torch.bool, device="meta")
    vision = model.encode_image(torch.empty(rows, 3, 48, 48, device="meta"))
    text, memory = model.encode_text(ids, mask), model.image_memory(vision)
    assert _counted(model.encode_text, ids, mask) == rows * flops.text_flops(SMALL, length)
    tokens = rows * flops.num_image_tokens(SMALL.vision)
    assert _counted(model.image_memory, vision) == tokens * flops.image_key_flops(SMALL)
    assert _counted(model.fuse, text, mask, memory) == rows * flops.fusion_text_flops(SMALL, length)
    alone = flops.fusion_text_flops(SMALL, length, with_image=False)
    assert _counted(model.fuse, text, mask, None) == rows * alone
    positions = torch.zeros(rows, 3, dtype=torch.long, device="meta")
    assert _counted(model.predict_words, text, positions) == rows * 3 * flops.word_flops(SMALL)


def test_a_backward_pass_costs_twice_the_forward_pass() -> None:
    model = build_model(SMALL).to("meta").eval()
    ids, mask = (torch.ones(4, 11, dtype=kind, device="meta") for kind in (torch.long, torch.bool))
    forward = _counted(model.encode_text, ids, mask)
    both = _counted(lambda: torch.autograd.backward(model.encode_text(ids, mask).sum()))
    assert both == flops.TRAINING_PER_FORWARD * forward


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-32GB", None),  # no bf16
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_a_gpu_is_known_by_the_name_it_reports(reported: str, expected: str | None) -> None:
    assert flops.find_device(reported) == expected


def test_a_batch_shape_must_hold_together() -> None:
    with pytest.raises(ValueError, match="2 text lengths but 1"):
        BatchShape("image", 2, (3, 4), (1,))
    with pytest.raises(ValueError, match="text batch cannot have 2 images"):
        BatchShape("text", 2, (3,), (1,))
