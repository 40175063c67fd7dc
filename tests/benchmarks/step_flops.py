"""Arithmetic of one training step, counted operation by operation on tensors without values.

`FlopCounterMode` counts matrix products and convolutions, forward and backward, 2 per multiply-add, attention included:
on the meta device torch writes attention out as two products. Nothing of it depends on a machine, so the numbers are
pinned as integers in `test_flops.py`. Its first convolution has no gradient for the pixels, so totals are 0.1 % below
three times the forward pass.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.step_inputs import StreamShape, graph_inputs, make_batches, pinned_negatives, without_dropout
from tests.benchmarks.training_sides import OurSide, ReferenceSide
from x2vlm.execution_config import ExecutionConfig
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import build_model


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
