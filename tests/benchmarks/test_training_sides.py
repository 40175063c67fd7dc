"""With any switches, our step computes the losses and gradients of the reference's graph."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.benchmarks.gpu.ceilings import cosine
from tests.benchmarks.reference_graph_losses import reference_losses
from tests.benchmarks.step_flops import SWITCHES
from tests.benchmarks.step_inputs import (
    MAX_TOKENS,
    TINY,
    TINY_MODEL,
    graph_inputs,
    make_batches,
    pinned_negatives,
    without_dropout,
)
from tests.benchmarks.training_sides import DECAY, LEARNING_RATE, OurSide, PlainAdamW, ReferenceSide, plain_groups
from tests.support.models.golden_cases import LOSS_NAMES
from x2vlm.data.loading.batch import Batch
from x2vlm.models.checkpoints.reference import reference_names
from x2vlm.models.config import ModelConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import X2VLM, build_model
from x2vlm.train.optim import ReferenceAdamW

LOSS, GRADIENT = 1e-5, 1e-4  # relative
# Gradients of key biases are zero up to rounding: a softmax is invariant to a shift. They are compared with this
# fraction of the norm of the whole gradient.
SMALLEST = 1e-6
COMBINATIONS = list(itertools.product([True, False], repeat=len(SWITCHES)))

MODEL = without_dropout(TINY_MODEL)


def random_model(config: ModelConfig = MODEL) -> X2VLM:
    """Random weights as large as trained ones: no bias, scale or table is zero, and every input affects every loss."""
    torch.manual_seed(0)
    model = build_model(config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temperature":
                spread = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                parameter.add_(torch.randn_like(parameter), alpha=spread)
    return model


def four_streams() -> dict[str, Batch]:
    batches = make_batches(TINY, MODEL)
    texts = replace(batches["image"], kind="text", pixels=None)
    return batches | {"text": texts}


@pytest.fixture(scope="module")
def reference() -> tuple[X2VLM, dict[str, Tensor], dict[str, Tensor]]:
    """Our model, and losses and gradients of the reference's graph with its weights, in their names."""
    model, batches = random_model(), four_streams()
    side = ReferenceSide(model)
    pinned = {name: tuple(rows.tolist() for rows in pair) for name, pair in pinned_negatives(batches).items()}
    losses = side.backward({name: graph_inputs(batch) for name, batch in batches.items()}, pinned)
    flat = {f"{stream}/{name}": value.detach() for stream, parts in losses.items() for name, value in parts.items()}
    return model, flat, {name: value.grad for name, value in side.graph.named_parameters()}


@pytest.mark.parametrize("values", COMBINATIONS, ids=lambda values: "".join("-+"[value] for value in values))
def test_every_combination_of_switches_gives_the_losses_and_gradients_of_the_reference(reference, values):
    model, losses, gradients = reference
    batches = four_streams()
    model.zero_grad()
    side = OurSide(model, ExecutionConfig(**dict(zip(SWITCHES, values, strict=True))))
    ours = side.backward(batches, pinned_negatives(batches))
    flat = {f"{stream}/{LOSS_NAMES[name]}": value for stream, parts in ours.items() for name, value in parts.items()}
    assert set(flat) == set(losses)
    for name, value in losses.items():
        assert abs(flat[name].item() - value.item()) <= LOSS * abs(value.item()), name
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    parameters = dict(model.named_parameters())
    for name, theirs in reference_names(model).items():
        error = (parameters[name].grad - gradients[theirs]).norm()
        assert error <= GRADIENT * max(gradients[theirs].norm(), SMALLEST / GRADIENT * whole), name


def test_half_precision_of_the_reference_points_the_same_way(reference):
    """float16 under autocast with a scaled loss: the unscaled gradients are nearly those of float32."""
    model, losses, gradients = reference
    batches = four_streams()
    side = ReferenceSide(model, half_precision=True)
    pinned = {name: tuple(rows.tolist() for rows in pair) for name, pair in pinned_negatives(batches).items()}
    found = side.backward({name: graph_inputs(batch) for name, batch in batches.items()}, pinned)
    side.scaler.unscale_(side.optimizer)
    for name, value in losses.items():
        stream, part = name.split("/")
        assert found[stream][part].item() == pytest.approx(value.item(), rel=0.02), name
    assert cosine(gradients, {name: p.grad for name, p in side.graph.named_parameters()}) > 0.999


def test_one_other_word_shows(reference):
    """Another word in one caption changes losses far above the tolerance: the comparison above is not of constants."""
    model, losses, _ = reference
    batches = four_streams()
    image = batches["image"]
    ids = image.text_ids_BL.clone()
    ids[0, 1] += 1
    pair = tuple(rows.tolist() for rows in pinned_negatives(batches)["image"])
    with torch.no_grad():
        graph = ReferenceSide(model).graph
        other = reference_losses(graph, graph_inputs(replace(image, text_ids_BL=ids)), pair)
    for name in ("loss_itc", "loss_itm"):
        before = losses[f"image/{name}"]
        assert abs(other[name] - before) > 10 * LOSS * abs(before), name


def test_the_sample_has_the_longest_and_the_shortest_text_and_whole_images():
    batches = four_streams()
    lengths = {name: batch.text_mask_BL.sum(dim=1) for name, batch in batches.items()}
    assert lengths["image"].min() == 3
    assert lengths["image"].max() == MAX_TOKENS
    assert 0 < batches["region"].is_whole_image_R.sum() < batches["region"].num_rows


def test_plain_adamw_moves_weights_like_ours():
    torch.manual_seed(0)
    start = torch.nn.Linear(5, 4)
    ends = []
    for kind in ("plain", "ours"):
        layer = torch.nn.Linear(5, 4)
        layer.load_state_dict(start.state_dict())
        groups = plain_groups(layer)
        optimizer = PlainAdamW(groups) if kind == "plain" else ReferenceAdamW(groups, LEARNING_RATE, weight_decay=DECAY)
        for step in range(3):
            optimizer.zero_grad()
            layer(torch.full((2, 5), 0.1 * step + 0.3)).square().sum().backward()
            optimizer.step()
        ends.append(layer.weight.detach().clone())
    assert (ends[0] - start.weight).abs().max() > LEARNING_RATE
    torch.testing.assert_close(ends[0], ends[1], atol=1e-7, rtol=0)
