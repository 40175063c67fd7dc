"""How often a step makes the host wait for the device: once, for the drawn negatives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.training.steps import mixed_step, step_model
from x2vlm.models.execution import ExecutionConfig
from x2vlm.objectives import host, passes
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.step import step_losses

# Operators that answer with values, or whose shape of the answer depends on values.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero",
    "aten::_unique2", "aten::unique_dim", "aten::bincount", "aten::repeat_interleave.Tensor",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """Names of the operators seen that would make the host of a GPU wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        indexes = [t for t in args[1] if isinstance(t, Tensor)] if name in ("aten::index", "aten::index_put_") else []
        if name in WAITING or any(index.dtype in (torch.bool, torch.uint8) for index in indexes):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def test_what_counts_as_waiting_is_seen():
    with Waits() as waits:
        values = torch.arange(3)
        values[values > 1].sum().item()
        values.nonzero()
    assert waits.found == ["aten::index", "aten::_local_scalar_dense", "aten::nonzero"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", [None, 3])
def test_a_step_fetches_its_negatives_once_and_waits_for_nothing_else(monkeypatch, known, size):
    """Forward and backward, with negatives drawn. Batches that bring no lengths cost a second wait, not one each."""
    model, (batches, _) = step_model().train(), mixed_step(known)
    fetched: list[int] = []
    ours = passes.fetch

    def watched(tensors):
        fetched.append(len(tensors))
        return ours(tensors)

    monkeypatch.setattr(passes, "fetch", watched)
    monkeypatch.setattr(host, "fetch", watched)
    objectives = {"images": ObjectiveConfig(negative_group_size=size)}
    with Waits() as waits:
        losses = step_losses(model, batches, objectives)
        sum(loss for parts in losses.values() for loss in parts.values()).backward()
    assert waits.found == []
    # Two index vectors of each of three streams; before that lengths and masked tokens of four, images of one.
    assert [count for count in fetched if count] == ([6] if known else [9, 6])


def test_on_a_device_without_values_only_the_fetch_needs_any(monkeypatch):
    """The meta device has shapes and no values, so whatever reads one raises: nothing does but the fetch."""
    with torch.device("meta"):
        model = step_model_on_meta().train()
    batches, _ = mixed_step()
    batches = {label: batch.to("meta") for label, batch in batches.items()}
    fetched: list[int] = []

    def answers(tensors):
        fetched.append(len(tensors))
        assert all(tensor.is_meta for tensor in tensors)
        return [np.roll(np.arange(len(tensor)), 1) for tensor in tensors]

    monkeypatch.setattr(passes, "fetch", answers)
    for execution in (ExecutionConfig(), ExecutionConfig(pack_texts=False, one_fusion_call=False)):
        losses = step_losses(model, batches, execution=execution)
        sum(loss for parts in losses.values() for loss in parts.values()).backward()
    assert fetched == [6, 6]
    with pytest.raises(ValueError, match="give it lengths"):
        step_losses(model, {"images": replace(batches["images"], lengths=None)})


def step_model_on_meta():
    from x2vlm.models.x2vlm import X2VLM

    return X2VLM(step_model().config)
