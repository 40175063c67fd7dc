"""Our way through the blocks of a BEiT tower against timm's own, and against itself recomputed or compiled."""

import pytest
import torch
from torch.testing import assert_close

from tests.support.models.tiny import deep_model, tiny_model
from x2vlm.errors import ConfigError
from x2vlm.models.blocks.beit_blocks import position_bias
from x2vlm.models.config import VisionConfig
from x2vlm.models.execution import ExecutionConfig


def by_timm(model, pixels):
    trunk = model.vision.trunk
    hidden = trunk.patch_embed(pixels)
    hidden = torch.cat([trunk.cls_token.expand(len(hidden), -1, -1), hidden], dim=1)
    for block in trunk.blocks:
        hidden = block(hidden)
    return trunk.fc_norm(hidden[:, 1:])


def run(model, compute):
    """Patches and the gradients of all parameters, dropping paths as seed 5 says."""
    torch.manual_seed(5)
    model.zero_grad()
    patches = compute()
    (patches * torch.linspace(-1, 1, patches.numel()).view_as(patches)).sum().backward()
    return patches.detach(), {name: p.grad.clone() for name, p in model.vision.named_parameters()}


def assert_equal(found, expected):
    assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    for name, value in expected[1].items():
        assert (found[1][name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name


def test_blocks_do_what_timm_does_and_drop_the_same_paths():
    model, pixels = deep_model(), torch.randn(3, 3, 64, 64)
    expected = run(model, lambda: by_timm(model, pixels))
    assert_equal(run(model, lambda: model.vision(pixels).patches_MPD), expected)
    assert not torch.equal(expected[0], by_timm(model.eval(), pixels))  # paths were dropped
    assert_close(model.vision(pixels).patches_MPD, by_timm(model, pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_recomputed_blocks_change_nothing_and_keep_less(every):
    model, pixels = deep_model(), torch.randn(3, 3, 64, 64)
    kept = {}

    def count(execution):
        def forward():
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
                patches = model.vision(pixels, execution).patches_MPD
            kept[execution.checkpoint_vision_blocks] = sum(sizes)
            return patches

        return run(model, forward)

    expected = count(ExecutionConfig())
    assert_equal(count(ExecutionConfig(checkpoint_vision_blocks=every)), expected)
    # A block keeps 20 or more of its inputs (3 x 17 x 24), a recomputed one that input alone.
    assert kept[0] - kept[every] > len(range(0, 4, every)) * 20 * 3 * 17 * 24


@pytest.mark.slow
def test_compiled_blocks_change_nothing_and_share_their_graphs():
    """Ten blocks, each with its own rate of dropped paths: one graph with, one without stochastic depth."""
    from torch._dynamo.utils import counters

    model, pixels = deep_model(depth=10), torch.randn(2, 3, 64, 64)
    expected = run(model, lambda: model.vision(pixels).patches_MPD)
    counters.clear()
    for changes in ({}, {"checkpoint_vision_blocks": 2}):
        execution = ExecutionConfig(compile_blocks=True, **changes)
        assert_equal(run(model, lambda execution=execution: model.vision(pixels, execution).patches_MPD), expected)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_only_beit_recomputes():
    model = tiny_model(vision=VisionConfig(backbone="clip_vit", image_res=64, width=24, depth=2, num_heads=2))
    with pytest.raises(ConfigError, match="beit2 only"):
        model.vision(torch.randn(1, 3, 64, 64), ExecutionConfig(checkpoint_vision_blocks=1))


@torch.no_grad()
def test_position_bias_is_timms_in_rows_a_multiple_of_8_apart():
    attention = deep_model().vision.trunk.blocks[0].attn
    bias = position_bias(attention, torch.bfloat16)
    assert torch.equal(bias, attention._get_rel_pos_bias().bfloat16())
    assert bias.shape == (1, 2, 17, 17)
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1])
    assert bias.stride(-1) == 1
