"""Which attention kernels the towers may use, asked of torch itself, and the masks that they get."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from tests.support.models.tiny import tiny_model, tiny_text
from tests.support.training.steps import mixed_step, step_model
from x2vlm.models import fusion
from x2vlm.models.blocks import beit_blocks, packing
from x2vlm.models.blocks.masks import LENGTH_MULTIPLE, AttentionMask
from x2vlm.models.execution import ExecutionConfig
from x2vlm.objectives.step import step_losses

OPERATIONS = {
    SDPBackend.EFFICIENT_ATTENTION: torch.ops.aten._scaled_dot_product_efficient_attention.default,
    SDPBackend.CUDNN_ATTENTION: torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


def bias_gradient(backend: SDPBackend) -> torch.Tensor | None:
    """The gradient of a position bias after the kernel's forward and backward pass, on the meta device."""
    make = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    query, key, value = (torch.randn(2, 4, 197, 64, **make) for _ in range(3))
    bias = torch.randn(1, 4, 197, 200, **make)
    attended = OPERATIONS[backend](query, key, value, bias[..., :197].expand(2, -1, -1, -1), True)[0]
    attended.backward(torch.empty_like(attended))
    assert query.grad is not None
    return bias.grad


def test_every_kernel_of_the_image_tower_gives_the_bias_a_gradient():
    assert beit_blocks.FUSED
    for backend in beit_blocks.FUSED:
        assert bias_gradient(backend) is not None


def test_cudnn_gives_none():
    """Why it is left out. Should this fail with a new torch, it may be allowed again."""
    with pytest.raises(RuntimeError, match="attn_bias"):
        bias_gradient(SDPBackend.CUDNN_ATTENTION)


def test_blocks_on_a_gpu_run_with_that_kernel_alone():
    with beit_blocks._fused_kernels(torch.device("cuda")):
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize("num_keys", [1, 8, 197, 198])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_additive_masks_are_aligned_and_say_the_same(num_keys, dtype):
    seen = torch.rand(3, 1, 5, num_keys) > 0.4
    seen[..., 0] = True
    mask = AttentionMask(seen)
    additive = mask.additive(dtype)
    assert additive.dtype == dtype
    assert additive.stride(-2) % LENGTH_MULTIPLE == 0
    assert torch.equal(additive == 0, seen)
    assert torch.equal(additive.isneginf(), ~seen)
    assert mask.additive(dtype) is additive  # made once
    query, key, value = torch.randn(3, 2, 5, 8), torch.randn(3, 2, num_keys, 8), torch.randn(3, 2, num_keys, 8)
    if dtype == torch.float32:
        expected = scaled_dot_product_attention(query, key, value, attn_mask=seen)
        torch.testing.assert_close(scaled_dot_product_attention(query, key, value, attn_mask=additive), expected)


@contextmanager
def masks_of_attention(monkeypatch):
    """Every mask that attention gets, with the type of its queries."""
    found: list[tuple[torch.Tensor, torch.dtype]] = []

    def spy(query, key, value, attn_mask=None, **options):
        if attn_mask is not None:
            found.append((attn_mask, query.dtype))
        return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **options)

    with monkeypatch.context() as patch:
        for module in (packing, fusion):
            patch.setattr(module, "scaled_dot_product_attention", spy)
        yield found


def check(found, num_layers):
    assert found
    for mask, dtype in found:
        assert mask.dtype == dtype  # torch converts no other, and no booleans
        assert mask.shape[-2] == 1 or mask.stride(-2) % LENGTH_MULTIPLE == 0
        assert mask.stride(-1) == 1
    assert len({mask.data_ptr() for mask, _ in found}) * num_layers == len(found)  # one for all layers


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_a_training_step_gives_attention_masks_as_its_kernels_read_them(monkeypatch, half):
    """The fusion layers and the text layers, two of each: each mask is made once, and not by torch in every call."""
    batches, negatives = mixed_step()
    model = step_model().train()
    with (
        masks_of_attention(monkeypatch) as found,
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        losses = step_losses(model, batches, negatives=negatives, execution=ExecutionConfig(prune_last_layer=False))
    assert {dtype for _, dtype in found} == {torch.bfloat16 if half else torch.float32}
    assert all(value.isfinite() for parts in losses.values() for value in parts.values())
    assert any(mask.shape[-2] > 1 for mask, _ in found)  # patches under the boxes of several texts
    check(found, num_layers=2)


@torch.no_grad()
def test_padded_texts_of_a_task_share_masks_over_layers(monkeypatch):
    model = tiny_model()
    ids, mask = tiny_text()
    vision = model.encode_image(torch.randn(2, 3, 64, 64))
    regions = model.pool_regions(vision, torch.tensor([0, 1, 1]), torch.rand(3, 16) > 0.3)
    with masks_of_attention(monkeypatch) as found:
        model.fuse(model.encode_text(ids, mask), mask, regions)
    check(found, num_layers=2)
