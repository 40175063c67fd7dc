"""Part 2: one step of the base 4M recipe on one GPU, from the reference's graph to ours, one change per variant.

Every variant is a new model with the same initial weights, dropout on. R0 and R1 are the reference's graph in float16
under autocast with a loss scale (instead of Apex O1); R2 to R5 are our step in bfloat16. Texts are the same; the
reference pads them to 40 tokens, R2 to the longest of the batch (its FLOPs are given for 40).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from tests.benchmarks.gpu.bench import Bench, per_second, rounded
from tests.benchmarks.step_inputs import (
    BASE_4M,
    BASE_MODEL,
    TINY,
    TINY_MODEL,
    StreamShape,
    batch_shapes,
    graph_inputs,
    histogram,
    make_batches,
)
from tests.benchmarks.training_sides import DECAY, LEARNING_RATE, OurSide, ReferenceSide
from x2vlm.cost.flops import PEAK_FLOPS, Rewrites, find_device, step_flops
from x2vlm.cost.flops import REFERENCE as REFERENCE_GRAPH
from x2vlm.models.config import ModelConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.train.config import OptimizerConfig
from x2vlm.train.optim import parameter_groups

TOY_MODEL = ModelConfig(
    vision=TINY_MODEL.vision.model_copy(update={"depth": 1}),
    text=TINY_MODEL.text.model_copy(update={"num_layers": 1}),
    fusion=TINY_MODEL.fusion.model_copy(update={"num_layers": 1}),
    embed_dim=16,
)

MOST_NOISE = 0.05  # of R0 against itself: above it the run is inconclusive
PADDED = ExecutionConfig(
    pack_texts=False, one_fusion_call=False, prune_last_layer=False, only_masked_words=False, share_image_keys=True
)
EXACT = ExecutionConfig()
COMPILED = ExecutionConfig(compile_blocks=True)


@dataclass(frozen=True)
class Variant:
    """A variant of the step: the reference's graph with an attention, or ours with switches."""

    name: str
    attention: str | None = None
    execution: ExecutionConfig | None = None
    fused_optimizer: bool = False


REFERENCE = Variant("R0 reference graph, fp16", attention="eager")
OURS = Variant("R5 R4 + fused AdamW", execution=COMPILED, fused_optimizer=True)
LADDER = (
    REFERENCE,
    Variant("R1 R0 + fused attention", attention="sdpa"),
    Variant("R2 ours: shared image keys, bf16, no row-wise waits", execution=PADDED),
    Variant("R3 R2 + packed texts, one fusion call, pruned", execution=EXACT),
    Variant("R4 R3 + compiled image blocks", execution=COMPILED),
    OURS,
    Variant("R0 again", attention="eager"),
)


def flops_of(config: ModelConfig, streams: Sequence[StreamShape], execution: ExecutionConfig | None) -> int:
    """FLOPs of a step in closed form; None as execution is the reference's graph. Compiling changes nothing."""
    rewrites = REFERENCE_GRAPH
    if execution is not None:
        rewrites = Rewrites(**execution.model_dump(include={field.name for field in fields(Rewrites)}))
    return step_flops(config, batch_shapes(streams), rewrites)


def make_step(
    variant: Variant, config: ModelConfig, streams: Sequence[StreamShape], device: str
) -> Callable[[], object]:
    """A complete optimizer step of the variant on fixed batches."""
    torch.manual_seed(0)
    model = build_model(config).to(device).train()
    batches = make_batches(streams, config, device)
    if variant.attention is not None:
        reference = ReferenceSide(model, variant.attention, half_precision=True)
        inputs = {name: graph_inputs(batch) for name, batch in batches.items()}
        return lambda: reference.step(inputs)
    optimizer = None
    if variant.fused_optimizer:
        groups = [group for group in parameter_groups(model, OptimizerConfig(lr=LEARNING_RATE)) if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=DECAY, fused=True)
    side = OurSide(model, variant.execution, half_precision=True, optimizer=optimizer)
    return lambda: side.step(batches)


def run_variant(
    bench: Bench,
    variant: Variant,
    config: ModelConfig,
    streams: tuple[StreamShape, ...],
    profile: str | None = None,
    warmup: int | None = None,
    rounds: int | None = None,
) -> dict[str, Any]:
    """Milliseconds, rates, both utilisations, memory and synchronisations of one variant."""
    row: dict[str, Any] = {"lengths": histogram(streams)}
    step = make_step(variant, config, streams, bench.device)
    with bench.peak_memory(row):
        timing = bench.time_steps(step, warmup, rounds)
    row |= {"ms": rounded(timing.median), "least_ms": rounded(timing.least), "most_ms": rounded(timing.most)}
    row["waits_per_step"] = bench.count_waits(step)
    texts = sum(stream.rows for stream in streams)
    images = sum(stream.images * stream.frames for stream in streams)
    tokens = sum(length for stream in streams for length in stream.lengths)
    for unit, amount in (("texts", texts), ("images", images), ("real_tokens", tokens)):
        row[f"{unit}_per_second"] = rounded(per_second(amount, timing), 1)
    row |= utilisation(bench, timing, flops_of(config, streams, variant.execution), "executed")
    row |= utilisation(bench, timing, flops_of(config, streams, None), "reference")
    if profile:
        row["profile"] = bench.profile_top(profile, step)
    return row


def utilisation(bench: Bench, timing: Any, flops: int, kind: str) -> dict[str, Any]:
    """FLOPs of a step, and their fraction of the device's dense bfloat16 peak; null for a GPU not listed.

    With the FLOPs of the reference's graph it is a proxy for speed, not a utilisation, and may exceed 100 %.
    """
    peak = PEAK_FLOPS.get(find_device(torch.cuda.get_device_name()) or "") if bench.is_gpu else None
    rate = per_second(flops, timing)
    percent = None if rate is None or peak is None else 100 * rate / peak
    return {f"{kind}_flop": flops, f"mfu_{kind}_percent": rounded(percent, 1)}


def run_part_2(bench: Bench) -> None:
    config, streams = (TOY_MODEL, TINY[:2]) if bench.is_tiny else (BASE_MODEL, BASE_4M)
    first: dict[str, Any] = {}
    for variant in LADDER:
        profile = {REFERENCE.name: "R0", OURS.name: "R5"}.get(variant.name)
        row = bench.measure(
            variant.name, lambda variant=variant, p=profile: run_variant(bench, variant, config, streams, p)
        )
        first = first or row
        bench.compare(row, first)
    bench.measure("R0 against itself", lambda: {"noise": noise_of(row.get("speedup"))})


def noise_of(speedup: float | None) -> str | None:
    """The difference of the two runs of R0 and its consequence; null if they were not timed."""
    if speedup is None:
        return None
    return f"{abs(speedup - 1):.1%}" + (": INCONCLUSIVE" if abs(speedup - 1) > MOST_NOISE else "")
