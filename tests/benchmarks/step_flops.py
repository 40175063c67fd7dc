"""Arithmetic of one training step, counted operation by operation on tensors without values.

    python -m tests.benchmarks.step_flops       base and large, each switch off alone: one CPU minute

`FlopCounterMode` counts matrix products and convolutions, forward and backward, 2 per multiply-add, attention included:
on the meta device torch decomposes attention into two products. The counts do not depend on the machine, so they are
pinned as integers in `test_flops.py`. Pixels get no gradient, so totals are 0.1 % below three times the forward pass.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.step_inputs import (
    BASE_4M,
    BASE_MODEL,
    LARGE_4M,
    LARGE_MODEL,
    StreamShape,
    graph_inputs,
    histogram,
    make_batches,
    pinned_negatives,
    without_dropout,
)
from tests.benchmarks.training_sides import OurSide, ReferenceSide
from x2vlm.models.config import ModelConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import build_model

SWITCHES = ("share_image_keys", "pack_texts", "one_fusion_call", "prune_last_layer", "only_masked_words")


def executions() -> dict[str, ExecutionConfig]:
    """Our step by default, with each switch off alone, and with all off."""
    single = {f"ours without {name}": ExecutionConfig(**{name: False}) for name in SWITCHES}
    return {"ours": ExecutionConfig(), **single, "ours, all off": ExecutionConfig(**dict.fromkeys(SWITCHES, False))}


def reference_flops(config: ModelConfig, streams: Sequence[StreamShape]) -> int:
    """FLOPs of forward and backward in the reference's graph, texts padded to 40 tokens."""
    with torch.device("meta"):
        model = build_model(without_dropout(config))
    batches = make_batches(streams, config, "meta")
    side = ReferenceSide(model)
    negatives = {name: tuple(rows.tolist() for rows in pair) for name, pair in pinned_negatives(batches).items()}
    with FlopCounterMode(display=False) as counter:
        side.backward({name: graph_inputs(batch) for name, batch in batches.items()}, negatives)
    return int(counter.get_total_flops())


def our_flops(config: ModelConfig, streams: Sequence[StreamShape], execution: ExecutionConfig | None = None) -> int:
    """FLOPs of forward and backward of our step, on the same texts."""
    with torch.device("meta"):
        model = build_model(without_dropout(config))
    batches = make_batches(streams, config, "meta")
    side = OurSide(model, execution)
    with FlopCounterMode(display=False) as counter:
        side.backward(batches, pinned_negatives(batches))
    return int(counter.get_total_flops())


def main() -> None:
    for title, config, streams in (("base", BASE_MODEL, BASE_4M), ("large", LARGE_MODEL, LARGE_4M)):
        print(f"{title} 4M, one GPU's step; tokens with [CLS] and [SEP]: {histogram(streams)}")
        reference = reference_flops(config, streams)
        print(f"  {'reference graph':34} {reference / 1e12:8.3f} TFLOP")
        for name, execution in executions().items():
            flops = our_flops(config, streams, execution)
            print(f"  {name:34} {flops / 1e12:8.3f} TFLOP {reference / flops:6.2f}x fewer", flush=True)


if __name__ == "__main__":
    main()
