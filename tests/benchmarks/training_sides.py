"""The compared implementations of a training step: the reference's graph, and this project's step.

Both start from the same weights and make complete optimizer steps: temperature clamped, gradients cleared, losses of
all streams, backward, gradient norm clipped to 1.0, AdamW as in the reference. Where the sides differ, each does as its
code does: the reference updates one parameter after the other and reads every loss separately, ours updates parameters
in multi-tensor calls and reads all values in one transfer. Batches are ready before a step starts; padding the
reference's texts to 40 tokens is not counted.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from tests.benchmarks.reference_graph import ReferenceGraph
from tests.benchmarks.reference_graph_losses import GraphInputs, Negatives, reference_losses
from tests.benchmarks.step_inputs import graph_sizes
from x2vlm.data.loading.batch import Batch
from x2vlm.models.checkpoints.reference import export_reference_state
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import X2VLM
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.step import step_losses
from x2vlm.train.config import OptimizerConfig
from x2vlm.train.optim import build_optimizer

LEARNING_RATE, DECAY, BETAS, EPS, CLIP_NORM = 1e-4, 0.01, (0.9, 0.98), 1e-8, 1.0
FIRST_LOSS_SCALE = 1024.0  # the maximum of the reference


def reference_of(model: X2VLM, attention: str = "eager") -> ReferenceGraph:
    """The reference's graph with the weights of `model`, on its device and in its mode."""
    with torch.device("meta" if model.temperature.is_meta else "cpu"):
        graph = ReferenceGraph(graph_sizes(model.config, attention))
    if not model.temperature.is_meta:
        graph.load_state_dict({name: value.cpu() for name, value in export_reference_state(model).items()})
    return graph.to(model.temperature.device).train(model.training)


class PlainAdamW(torch.optim.Optimizer):
    """AdamW of transformers 4.12, one parameter at a time: eps outside the correction, decay on the updated weight."""

    def __init__(self, groups: Iterable[dict]) -> None:
        super().__init__(groups, {"lr": LEARNING_RATE, "weight_decay": DECAY})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, self.state[parameter], group)

    def _move(self, parameter: Tensor, gradient: Tensor, state: dict, group: dict) -> None:
        if not state:
            state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["step"] += 1
        state["mean"].mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
        state["square"].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        size = group["lr"] * math.sqrt(1 - BETAS[1] ** state["step"]) / (1 - BETAS[0] ** state["step"])
        parameter.addcdiv_(state["mean"], state["square"].sqrt().add_(EPS), value=-size)
        if group["weight_decay"]:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def plain_groups(graph: nn.Module) -> list[dict]:
    """All parameters, those with "bias" or "norm" in their names without decay."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in graph.named_parameters():
        groups["bias" in name or "norm" in name.lower()].append(parameter)
    return [{"params": groups[True], "weight_decay": 0.0}, {"params": groups[False], "weight_decay": DECAY}]


class ReferenceSide:
    """Training steps of the reference's graph; with `half_precision` in float16 under autocast with scaled losses.

    Autocast replaces Apex O1, which the reference uses and which is no longer maintained.
    """

    def __init__(self, model: X2VLM, attention: str = "eager", half_precision: bool = False) -> None:
        self.graph = reference_of(model, attention)
        self.device = next(self.graph.parameters()).device.type
        self.half_precision = half_precision
        self.optimizer = PlainAdamW(plain_groups(self.graph))
        self.scaler = torch.amp.GradScaler(
            self.device, init_scale=FIRST_LOSS_SCALE, growth_interval=2**31 - 1, enabled=half_precision
        )

    def backward(
        self, inputs: Mapping[str, GraphInputs], negatives: Mapping[str, Negatives] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Losses by stream; gradients are added to the parameters. Clips come first, alone, as in the reference."""
        losses: dict[str, dict[str, Tensor]] = {}
        for together in ([name for name in inputs if name == "video"], [name for name in inputs if name != "video"]):
            with autocast(self.device, torch.float16, self.half_precision):
                for name in together:
                    pinned = None if negatives is None else negatives[name]
                    losses[name] = reference_losses(self.graph, inputs[name], pinned)
            if together:
                self.scaler.scale(total_of({name: losses[name] for name in together})).backward()
        return losses

    def step(self, inputs: Mapping[str, GraphInputs]) -> dict[str, float]:
        """One optimizer step; returns the losses before it."""
        with torch.no_grad():
            self.graph.temp.clamp_(0.001, 0.5)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.backward(inputs)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.graph.parameters(), CLIP_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        numbers = {f"{name}/{part}": value.item() for name, parts in losses.items() for part, value in parts.items()}
        return numbers | {"grad_norm": float(norm)}


class OurSide:
    """Training steps of this project's model with the given switches; with `half_precision` bfloat16 under autocast."""

    def __init__(
        self,
        model: X2VLM,
        execution: ExecutionConfig | None = None,
        half_precision: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model = model
        self.device = model.temperature.device.type
        self.execution = execution or ExecutionConfig()
        self.half_precision = half_precision
        self.optimizer = optimizer or build_optimizer(model, OptimizerConfig(lr=LEARNING_RATE, weight_decay=DECAY))
        self.parameters = list(model.parameters())

    def backward(
        self, batches: Mapping[str, Batch], negatives: Mapping[str, tuple[Tensor, Tensor]] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """Losses by stream; gradients are added to the parameters."""
        objectives = dict.fromkeys(batches, ObjectiveConfig())
        with autocast(self.device, torch.bfloat16, self.half_precision):
            losses = step_losses(self.model, batches, objectives, negatives=negatives, execution=self.execution)
        total_of(losses).backward()
        return losses

    def step(self, batches: Mapping[str, Batch]) -> Tensor:
        """One optimizer step; all losses and the gradient norm, still on the device."""
        self.model.clamp_temperature()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.backward(batches)
        norm = nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        return torch.stack([*(part.detach() for parts in losses.values() for part in parts.values()), norm])


def autocast(device: str, dtype: torch.dtype, enabled: bool) -> AbstractContextManager[object]:
    """Autocast to `dtype`, or nothing; the meta device has no autocast, not even a disabled one."""
    return torch.autocast(device, dtype) if enabled else nullcontext()


def total_of(losses: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """The unweighted sum of all losses of all streams, as in every published 4M recipe."""
    return torch.stack([value.float() for parts in losses.values() for value in parts.values()]).sum()
