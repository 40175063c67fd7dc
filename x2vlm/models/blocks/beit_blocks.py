"""The blocks of a BEiT tower: timm modules run with an attention that uses fused kernels.

B images, C clips, N tokens, H heads, E width of a head, D width.
timm owns the parameters and their names; only the order of operations is ours. FlashAttention cannot be used with the
learned position bias of every layer and head: it has no gradient for a bias. Neither has the attention of cuDNN, which
torch prefers on H100 and newer: its backward pass fails ("not differentiable with respect to argument 'attn_bias'").
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from timm.models.beit import Attention, Block
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from x2vlm.models.blocks.masks import LENGTH_MULTIPLE
from x2vlm.models.blocks.rows import take_rows
from x2vlm.models.blocks.temporal import Clips, TimeAttention, by_clip, temporal_attention
from x2vlm.models.execution import ExecutionConfig

# The only kernel with a bias and its gradient that does not keep B x H x N x N scores. Where it cannot run, PyTorch
# raises "No available kernel" instead of silently using 6 times the memory.
FUSED = [SDPBackend.EFFICIENT_ATTENTION]

Run = Callable[..., Tensor]


def run_blocks(
    blocks: Sequence[nn.Module], hidden_BND: Tensor, execution: ExecutionConfig, clips: Clips | None = None
) -> Tensor:
    """States after all blocks; every `checkpoint_vision_blocks`-th is recomputed in the backward pass.

    With `clips` the rows are frames, and each block applies temporal attention first.
    """
    plain: Run = run_block if clips is None else run_clip_block
    run = _compiled(plain) if execution.compile_blocks else plain
    every = execution.checkpoint_vision_blocks
    fused = partial(_fused_kernels, hidden_BND.device)
    with fused():
        for number, block in enumerate(blocks):
            assert isinstance(block, Block)
            keeps = _kept_rows(block.drop_path1, hidden_BND), _kept_rows(block.drop_path2, hidden_BND)
            given: tuple[Any, ...] = (block, hidden_BND, *keeps)
            if clips is not None:
                keep_C111 = _kept_rows(block.drop_path1, by_clip(hidden_BND, clips.num_frames))
                given += (clips.attention.blocks[number], clips.num_frames, keep_C111)
            if execution.compile_blocks:
                _mark_any_number_of_rows(given)
            if every and number % every == 0 and torch.is_grad_enabled():
                hidden_BND = checkpoint(run, *given, use_reentrant=False, context_fn=lambda: (nullcontext(), fused()))
            else:
                hidden_BND = run(*given)
    return hidden_BND


def run_block(block: Block, hidden_BND: Tensor, keep_attention: Tensor | None, keep_mlp: Tensor | None) -> Tensor:
    """The block's forward pass; `keep_*` (B, 1, 1) are its stochastic depth, drawn by the caller."""
    attended = block.gamma_1 * attend_with_bias(block.attn, block.norm1(hidden_BND))
    hidden_BND = hidden_BND + (attended if keep_attention is None else attended * keep_attention)
    expanded = block.gamma_2 * block.mlp(block.norm2(hidden_BND))
    fed_BND: Tensor = hidden_BND + (expanded if keep_mlp is None else expanded * keep_mlp)
    return fed_BND


def run_clip_block(
    block: Block,
    hidden_BND: Tensor,
    keep_attention: Tensor | None,
    keep_mlp: Tensor | None,
    over_time: TimeAttention,
    num_frames: int,
    keep_time: Tensor | None,
) -> Tensor:
    """The block on frames of clips: temporal attention, then `run_block` frame by frame."""
    hidden_BND = temporal_attention(over_time, hidden_BND, num_frames, keep_time)
    return run_block(block, hidden_BND, keep_attention, keep_mlp)


def attend_with_bias(attention: Attention, hidden_BND: Tensor) -> Tensor:
    """Self-attention with the layer's position bias and its output projection."""
    biases = torch.cat(
        [attention.get_parameter("q_bias"), attention.get_buffer("k_bias"), attention.get_parameter("v_bias")]
    )
    qkv = linear(hidden_BND, attention.qkv.weight, biases)
    qkv = qkv.reshape(*hidden_BND.shape[:2], 3, attention.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attended_BHNE = scaled_dot_product_attention(query, key, value, attn_mask=position_bias(attention, query.dtype))
    projected: Tensor = attention.proj(attended_BHNE.transpose(1, 2).flatten(2))
    return projected


def position_bias(attention: Attention, dtype: torch.dtype) -> Tensor:
    """(1, H, N, N), gathered once for all images.

    Its row stride is a multiple of 8: fused kernels need that, and copy an unaligned bias in every layer.
    """
    index_NX, table = (
        attention.get_buffer("relative_position_index"),
        attention.get_parameter("relative_position_bias_table"),
    )
    num_tokens = len(index_NX)
    index_NX = pad(index_NX, (0, -num_tokens % LENGTH_MULTIPLE))
    # Gathered in float32 and cast afterwards: in the backward pass a table entry sums hundreds of gradients.
    bias_NXH = take_rows(table, index_NX.flatten()).view(*index_NX.shape, -1)
    return bias_NXH.permute(2, 0, 1).to(dtype).contiguous()[None, :, :, :num_tokens]


def _kept_rows(drop_path: nn.Module, hidden_BND: Tensor) -> Tensor | None:
    """Stochastic depth factors of every image (or clip), drawn outside the block to keep its graph deterministic."""
    if not drop_path.training or isinstance(drop_path, nn.Identity):
        return None
    kept_B11: Tensor = drop_path(hidden_BND.new_ones(len(hidden_BND), *[1] * (hidden_BND.dim() - 1)))
    return kept_B11


def _fused_kernels(device: torch.device) -> AbstractContextManager[object]:
    return sdpa_kernel(FUSED) if device.type == "cuda" else nullcontext()


@cache
def _compiled(run: Run) -> Run:
    """The block compiled for any number of rows; all blocks share one graph with the weights as inputs."""
    compiled: Run = torch.compile(run, dynamic=False)
    return compiled


def _mark_any_number_of_rows(arguments: Sequence[object]) -> None:
    """Compile for any number of images (or clips) in these arguments of a block.

    How many images of a region batch have a region differs from step to step. For fixed shapes every new number would
    be compiled again, minutes each, and after the eighth torch gives up and runs blocks uncompiled.
    """
    for argument in arguments:
        if isinstance(argument, Tensor):
            torch._dynamo.maybe_mark_dynamic(argument, 0)
