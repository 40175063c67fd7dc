"""Part 1: peak rates of the device, attention kernels with the position bias, and errors of half precision.

B images, H heads, N tokens, E width of a head.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from tests.benchmarks.gpu.bench import Bench, per_second, rounded
from tests.benchmarks.reference_graph import relative_position_index
from tests.benchmarks.step_inputs import (
    SMALL,
    SMALL_MODEL,
    TINY,
    TINY_MODEL,
    graph_inputs,
    make_batches,
    pinned_negatives,
    without_dropout,
)
from tests.benchmarks.training_sides import OurSide, ReferenceSide
from tests.support.models.golden_cases import LOSS_NAMES
from x2vlm.models.checkpoints.reference import reference_names
from x2vlm.models.config import VisionConfig
from x2vlm.models.vision import VisionEncoder
from x2vlm.models.x2vlm import build_model

COPY_BYTES = 2 << 30
ALIGNMENT = 8  # row stride of a bias that fused kernels accept without a copy
TOKENS_BASE, TOKENS_LARGE = 178 * 197, 89 * 197  # of the images of one 4M step

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def run_part_1(bench: Bench) -> None:
    gemms = [(8192, 8192, 8192), (TOKENS_BASE, 768, 3072), (TOKENS_LARGE, 1024, 4096)]
    for shape in [(64, 32, 16)] if bench.is_tiny else gemms:
        bench.measure(f"GEMM {'x'.join(map(str, shape))} bfloat16", lambda shape=shape: gemm(bench, *shape))
    bench.measure("copy", lambda: copy(bench, 1 << 10 if bench.is_tiny else COPY_BYTES))
    shapes = [(2, 2, 2, 16)] if bench.is_tiny else [(178, 12, 14, 64), (89, 16, 14, 64)]
    for images, heads, grid, width in shapes:
        for name in ATTENTION:
            label = f"attention with bias {images}x{heads}x{grid * grid + 1}x{width}: {name}"
            bench.measure(
                label,
                lambda name=name, i=images, h=heads, g=grid, w=width: attention(bench, name, i, h, g, w),
            )
    bench.measure("image block: gradient of its position bias", lambda: block_bias(bench))
    bench.measure("losses and gradients: float32, reference graph", lambda: parity(bench, half_precision=False))
    bench.measure("losses and gradients: bfloat16, ours in float32", lambda: parity(bench, half_precision=True))


def gemm(bench: Bench, rows: int, inner: int, columns: int) -> dict[str, Any]:
    """TFLOP/s of one matrix product."""
    left = torch.randn(rows, inner, device=bench.device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=bench.device, dtype=torch.bfloat16)
    out = torch.empty(rows, columns, device=bench.device, dtype=torch.bfloat16)
    timing = bench.time_steps(lambda: torch.mm(left, right, out=out))
    rate = per_second(2 * rows * inner * columns, timing)
    return {"ms": rounded(timing.median, 4), "tflops": rounded(None if rate is None else rate / 1e12, 1)}


def copy(bench: Bench, num_bytes: int) -> dict[str, Any]:
    """TB/s of a copy, bytes read and bytes written counted."""
    source = torch.empty(num_bytes, device=bench.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    timing = bench.time_steps(lambda: target.copy_(source))
    rate = per_second(2 * num_bytes, timing)
    return {"ms": rounded(timing.median, 4), "terabytes_per_second": rounded(None if rate is None else rate / 1e12)}


def attention(bench: Bench, name: str, images: int, heads: int, grid: int, width: int) -> dict[str, Any]:
    """One block's attention core with its table of position biases, including its gradient."""
    shape = (images, heads, grid * grid + 1, width)
    make = {"device": bench.device, "dtype": torch.bfloat16}
    query, key, value = (torch.randn(shape, **make).requires_grad_() for _ in range(3))
    table = torch.randn((2 * grid - 1) ** 2 + 3, heads, device=bench.device).requires_grad_()
    index = relative_position_index(grid).to(bench.device)
    step = ATTENTION[name]
    outgoing = torch.randn(shape, **make)

    def once() -> None:
        bias_HNN = table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).to(query.dtype)
        step(query, key, value, bias_HNN).backward(outgoing)

    row: dict[str, Any] = {}
    with bench.peak_memory(row):
        timing = bench.time_steps(once)
    exact = eager(query.detach().double(), key.detach().double(), value.detach().double(), _bias(table, index).double())
    error = (step(query, key, value, _bias(table, index).to(query.dtype)).double() - exact).abs().max().item()
    assert table.grad is not None
    return row | {"ms": rounded(timing.median, 3), "largest_error": error, "bias_gradient": table.grad.norm().item()}


def block_bias(bench: Bench) -> dict[str, Any]:
    """The gradient of a position table through a block as training runs it, with the kernels that it may use.

    As cosine with that of float64 on the CPU. A kernel without such a gradient fails here, in the first backward pass.
    """
    config = VisionConfig(image_res=64 if bench.is_tiny else 224, width=64 if bench.is_tiny else 768, depth=1,
                          num_heads=1 if bench.is_tiny else 12, drop_path=0.0)  # fmt: skip
    torch.manual_seed(0)
    tower = VisionEncoder(config).train()
    pixels = torch.randn(2, 3, config.image_res, config.image_res)
    tables = []
    for device, dtype in (("cpu", torch.float64), (bench.device, torch.bfloat16)):
        tower.to(device=device, dtype=torch.float64 if dtype == torch.float64 else torch.float32).zero_grad()
        half = dtype == torch.bfloat16
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            patches = tower(pixels.to(device, torch.float64 if not half else torch.float32)).patches_MPD
        (patches * torch.linspace(-1, 1, patches.shape[-1], device=device)).sum().backward()
        (table,) = (p for name, p in tower.named_parameters() if name.endswith("relative_position_bias_table"))
        tables.append(None if table.grad is None else table.grad.detach().cpu().clone())
    return {"gradient_cosine": cosine({"table": tables[0]}, {"table": tables[1]})}


def _bias(table: Tensor, index: Tensor) -> Tensor:
    return table.detach()[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


def eager(query: Tensor, key: Tensor, value: Tensor, bias_HNN: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias_HNN
    return scores.softmax(dim=-1) @ value


def fused(backend: SDPBackend, pad_keys: bool = False) -> Attend:
    """Attention by that kernel only, with an aligned bias: in memory only, as in our blocks, or with padded keys."""

    def attend(query: Tensor, key: Tensor, value: Tensor, bias_HNN: Tensor) -> Tensor:
        num_tokens, missing = key.shape[2], -key.shape[2] % ALIGNMENT
        bias = pad(bias_HNN, (0, missing), value=float("-inf"))[None].expand(len(query), -1, -1, -1)
        if pad_keys:
            key, value = (pad(states, (0, 0, 0, missing)) for states in (key, value))
        else:
            bias = bias[..., :num_tokens]
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(query, key, value, attn_mask=bias)

    return attend


def flex(query: Tensor, key: Tensor, value: Tensor, bias_HNN: Tensor) -> Tensor:
    """Compiled flex_attention that adds the bias to each score; it has no backward on a CPU."""
    if query.device.type != "cuda" and torch.is_grad_enabled():
        raise RuntimeError("flex_attention has a backward on a GPU only")

    def add_bias(score: Tensor, _image: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias_HNN[head, row, column]

    return torch.compile(flex_attention)(query, key, value, score_mod=add_bias)


ATTENTION: dict[str, Attend] = {
    "eager": eager,
    "sdpa efficient": fused(SDPBackend.EFFICIENT_ATTENTION),
    "sdpa efficient, padded keys": fused(SDPBackend.EFFICIENT_ATTENTION, pad_keys=True),
    "sdpa cudnn": fused(SDPBackend.CUDNN_ATTENTION),
    "sdpa math": fused(SDPBackend.MATH),
    "flex": flex,
}


def parity(bench: Bench, half_precision: bool) -> dict[str, Any]:
    """Differences of our losses and gradients on this device from the reference's graph, or from our own in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config, streams = (TINY_MODEL, TINY) if bench.is_tiny else (SMALL_MODEL, SMALL)
    torch.manual_seed(0)
    model = build_model(without_dropout(config)).to(bench.device).train()
    batches = make_batches(streams, config, bench.device)
    negatives = {
        name: tuple(rows.to(bench.device) for rows in pair) for name, pair in pinned_negatives(batches).items()
    }
    if half_precision:
        exact = OurSide(model).backward(batches, negatives)
        expected = {name: parameter.grad for name, parameter in model.named_parameters()}
        model.zero_grad()
    else:
        side = ReferenceSide(model)
        listed = {name: tuple(rows.tolist() for rows in pair) for name, pair in negatives.items()}
        theirs = side.backward({name: graph_inputs(batch) for name, batch in batches.items()}, listed)
        exact = {
            name: {ours: parts[LOSS_NAMES[ours]] for ours in LOSS_NAMES if LOSS_NAMES[ours] in parts}
            for name, parts in theirs.items()
        }
        gradients = dict(side.graph.named_parameters())
        expected = {ours: gradients[name].grad for ours, name in reference_names(model).items()}
    found = OurSide(model, half_precision=half_precision).backward(batches, negatives)
    return {
        "largest_loss_difference": max(
            abs(value.item() / exact[name][part].item() - 1)
            for name, parts in found.items()
            for part, value in parts.items()
        ),
        "gradient_cosine": cosine(expected, {name: p.grad for name, p in model.named_parameters()}),
    }


def cosine(first: dict[str, Tensor | None], second: dict[str, Tensor | None]) -> float:
    """Cosine of two complete gradients, in float64; both must have the same parameters."""
    if {name for name, value in first.items() if value is None} != {n for n, value in second.items() if value is None}:
        raise ValueError("one side has gradients that the other lacks")
    pairs = [(value.double(), other.double()) for name, value in first.items() if (other := second[name]) is not None]
    inner = sum(float((one * other).sum()) for one, other in pairs)
    sizes = [math.sqrt(sum(float(pair[side].square().sum()) for pair in pairs)) for side in (0, 1)]
    return inner / (sizes[0] * sizes[1])
