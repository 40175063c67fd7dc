"""The reimplementation of the reference gives its recorded losses and gradients of all parameters."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests.benchmarks.reference_graph import GraphSizes, ReferenceGraph
from tests.benchmarks.reference_graph_losses import GraphInputs, draw, reference_losses
from tests.support.models.golden_cases import read_case


def golden_sizes(folder, **changes) -> GraphSizes:
    """The sizes in a golden `config.json`; no dropout by default."""
    known = json.loads((folder / "config.json").read_text())
    return GraphSizes(
        image_res=known["image_res"], patch=known["patch_size"], vision_width=known["vision_embed"],
        vision_depth=known["vision_depth"], vision_heads=known["vision_heads"],
        vision_inner=known["vision_mlp_ratio"] * known["vision_embed"], vision_eps=known["vision_layernorm_eps"],
        text_width=known["text_hidden"], text_layers=known["text_only_layers"], fusion_layers=known["fusion_layers"],
        text_heads=known["text_heads"], text_inner=known["text_intermediate"], text_eps=known["text_layernorm_eps"],
        vocab=known["vocab_size"], positions=known["max_position_embeddings"], types=known["type_vocab_size"],
        embed=known["embed_dim"], drop_path=0.0, dropout=0.0, attention_dropout=0.0, **changes,
    )  # fmt: skip


@pytest.fixture(params=["eager", "sdpa"])
def harness(golden_dir, request) -> ReferenceGraph:
    folder = golden_dir
    model = ReferenceGraph(golden_sizes(folder, attention=request.param))
    state = load_file(folder / "model.safetensors")
    for name, constant in model.named_buffers():  # loading would hide a wrong one
        assert torch.equal(constant, state[name]), name
    model.load_state_dict(state, strict=True)
    return model.train()


@pytest.mark.parametrize("name", ["image", "regions", "text_only"])
def test_losses_and_gradient_norms_are_the_recorded_ones(golden_dir, harness, name):
    case = read_case(golden_dir / name)
    inputs = GraphInputs.from_arrays({key.removeprefix("in."): value for key, value in case.tensors.items()})
    has_images = inputs.image is not None
    negatives = tuple(rows.tolist() for rows in case.negatives) if has_images else None
    losses = reference_losses(harness, inputs, negatives)
    assert set(losses) == set(case.info["losses"])
    for key, recorded in case.info["losses"].items():
        assert losses[key].item() == pytest.approx(recorded, abs=2e-5), key
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(harness.named_parameters())
    recorded_norms = case.info["grad_norms"]
    assert {key for key, value in parameters.items() if value.grad is not None} <= set(recorded_norms)
    for key, recorded in recorded_norms.items():
        gradient = parameters[key].grad
        norm = 0.0 if gradient is None else gradient.norm().item()
        assert math.isclose(norm, recorded or 0.0, rel_tol=1e-3, abs_tol=1e-6), key
    for key, recorded in case.tensors.items():
        if key.startswith("grad."):
            error = (parameters[key.removeprefix("grad.")].grad - recorded).norm() / recorded.norm()
            assert error <= 1e-3, key


def test_negatives_are_drawn_with_the_recorded_weights(golden_dir):
    """1,000 draws of each row's wrong image and text against the recorded weights; 5 standard errors."""
    folder = golden_dir
    harness = ReferenceGraph(golden_sizes(folder))
    harness.load_state_dict(load_file(folder / "model.safetensors"))
    tensors = read_case(golden_dir / "image").tensors
    torch.manual_seed(0)
    repeats = 1000
    drawn = [draw(harness, tensors["out.image_feat"], tensors["out.text_feat"]) for _ in range(repeats)]
    for which, name in enumerate(["out.image_negative_weights", "out.text_negative_weights"]):
        expected = tensors[name] / tensors[name].sum(dim=1, keepdim=True)
        rows = torch.tensor([pair[which] for pair in drawn])
        fraction = torch.stack([(rows == candidate).float().mean(dim=0) for candidate in range(rows.shape[1])], dim=1)
        error = (expected * (1 - expected) / repeats).sqrt()
        assert ((fraction - expected).abs() <= 5 * error + 1e-4).all(), name
