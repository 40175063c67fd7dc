"""The optimizer of X2-VLM: which parameter gets which learning rate and decay, AdamW as published, the schedule.

Groups are chosen by substrings of the reference's parameter names, with their side effects:
"bias" also matches the relative position tables, and the LayerNorms inside the heads (`itm_head.1`) do decay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.reference import trained_names
from x2vlm.objectives.config import Parity
from x2vlm.train.config import OptimizerConfig

if TYPE_CHECKING:  # importing the model imports timm and transformers; its type alone must not
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.models.x2vlm import X2VLM

_NO_DECAY = (
    "bias",
    "LayerNorm.bias",
    "LayerNorm.weight",
    "norm.bias",
    "norm.weight",
    "norm1.bias",
    "norm1.weight",
    "norm2.bias",
    "norm2.weight",
)
# Parameters without pretrained values: heads and temperature always; cross-attention, frame position and temporal
# attention where they exist.
NEW_HEADS = (
    "vision_proj.",
    "text_proj.",
    "temp",
    "itm_head.",
    "bbox_head.",
    "absolute_frame_pos_embed",
    "vision_temporal.",
    "cls_head.",
    "text_decoder.",
)
_NEW_PARTS = (*NEW_HEADS, "crossattention.")


def new_parameter_names(model: X2VLM | TaskModel) -> list[str]:
    """Reference names of the parameters that neither BEiT-2 nor BERT has: heads, temperature, cross-attention."""
    return [name for name in trained_names(model).values() if _is_new(name)]


def parameter_groups(
    model: X2VLM | TaskModel, config: OptimizerConfig, new_parameters: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, in the reference's order: decayed, not decayed, new decayed, new not decayed.

    With learning rates by tower, decayed and not decayed of vision, text and cross follow. `params` holds (our name,
    parameter) pairs, `name` is the name of the group. `new_parameters` are reference names (default:
    `new_parameter_names`), for example the missing ones of a load report; ConfigError if the model has no such
    parameter. A tied parameter is in one group only, frozen ones in none.
    """
    names = trained_names(model)
    new = set(new_parameter_names(model) if new_parameters is None else new_parameters)
    unknown = sorted(new - set(names.values()))
    if unknown:
        raise ConfigError(f"new parameters that the model does not have: {unknown}")
    groups: dict[str, dict[str, Any]] = {}
    for lr_group, lr in _group_lrs(config).items():
        for decayed in (True, False):
            key = f"{lr_group}_{'decay' if decayed else 'no_decay'}"
            decay = config.weight_decay if decayed else 0.0
            groups[key] = {"name": key, "lr": lr, "weight_decay": decay, "params": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr_group = _lr_group(names[name], config, new)
            decay_name = "no_decay" if any(part in names[name] for part in _NO_DECAY) else "decay"
            groups[f"{lr_group}_{decay_name}"]["params"].append((name, parameter))
    return list(groups.values())


def build_optimizer(
    model: X2VLM | TaskModel, config: OptimizerConfig, new_parameters: Collection[str] | None = None
) -> torch.optim.Optimizer:
    """The configured AdamW over `parameter_groups`."""
    # torch refuses to mix named and unnamed groups, and an empty group has no names.
    groups = [group for group in parameter_groups(model, config, new_parameters) if group["params"]]
    settings: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    if config.adamw == "torch":
        return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=config.fused, **settings)
    return ReferenceAdamW(groups, weight_decay=config.weight_decay, **settings)


class ReferenceAdamW(torch.optim.Optimizer):
    """AdamW as transformers had it: eps is added to the uncorrected root, decay is applied to the updated weight.

    m, v are the usual averages; w -= lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps); then w -= lr * decay * w.
    State per parameter: `step` (float32 scalar), `exp_avg`, `exp_avg_sq`. Deterministic. Like torch's fused optimizers
    it reads an attribute `found_inf` (0 or 1 on the device): 1 skips the step, provided the gradients are 0 then.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._zeros: dict[torch.device, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_count: dict[int, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_count.setdefault(id(self._state_of(parameter)["step"]), []).append(parameter)
            for parameters in by_count.values():
                self._move(group, parameters)
        return loss

    def _move(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """One step for parameters with equal step counts, which share one count tensor."""
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages, squares = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        beta1, beta2 = group["betas"]
        lr, like = float(group["lr"]), parameters[0]
        taken = torch.ones((), dtype=torch.float64, device=like.device)
        if self.found_inf is not None:
            taken -= self.found_inf.double()
        # Everything that depends on whether the step is taken stays on the device, without synchronisation.
        count = states[0]["step"] + taken.float()
        for state in states:
            state["step"] = count
        step_size = -lr * (1 - beta2 ** count.double()).sqrt() / (1 - beta1 ** count.double())
        step_size = torch.where(taken > 0, step_size, 0.0)  # 0 / 0 where not even the first step was taken
        # Multi-tensor calls: 572 parameters would otherwise be 2,900 launches a step.
        torch._foreach_mul_(averages, (1 - (1 - beta1) * taken).to(like.dtype))
        torch._foreach_add_(averages, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, (1 - (1 - beta2) * taken).to(like.dtype))
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_mul_(roots, (1 / step_size).to(like.dtype))  # lr 0: roots become infinite, and nothing changes
        torch._foreach_addcdiv_(parameters, averages, roots)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, (1 - lr * group["weight_decay"] * taken).to(like.dtype))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            state["step"] = self._zero(parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _zero(self, device: torch.device) -> Tensor:
        """The step count that all parameters share before their first step."""
        return self._zeros.setdefault(device, torch.zeros((), dtype=torch.float32, device=device))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's whole state as `<parameter name>/<entry>` tensors, ready for a safetensors file.

    Learning rates and decays are not in it: they follow from the config and the schedule's step.
    """
    return {
        f"{name}/{entry}": value.clone()
        if entry == "step"
        else value  # counts share memory, which safetensors does not allow
        for name, parameter in _named(optimizer).items()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restores what `optimizer_tensors` returned; ConfigError, before any change, for unknown names or other shapes."""
    named = _named(optimizer)
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if name not in named:
            raise ConfigError(f"optimizer state: {key} belongs to no parameter of this model")
        if entry != "step" and value.shape != named[name].shape:
            raise ConfigError(f"optimizer state: {key} has shape {tuple(value.shape)}, not {tuple(named[name].shape)}")
        states.setdefault(name, {})[entry] = value
    optimizer.state.clear()
    counts: dict[tuple[float, torch.device], Tensor] = {}
    for name, state in states.items():
        place = named[name]
        moved = {entry: value.to(place, copy=True) for entry, value in state.items() if entry != "step"}
        if "step" in state:
            moved["step"] = _count(optimizer, state["step"], place.device, counts)
        optimizer.state[place] = moved


def _count(
    optimizer: torch.optim.Optimizer,
    step: Tensor,
    device: torch.device,
    counts: dict[tuple[float, torch.device], Tensor],
) -> Tensor:
    """A parameter's step count as its optimizer stores it: shared by equal ones for ours, else one for each."""
    if isinstance(optimizer, ReferenceAdamW):
        return counts.setdefault((step.item(), device), step.to(device, copy=True))
    return step.to(device if optimizer.defaults.get("fused") else "cpu", copy=True)


def lr_factor(step: int, warmup_steps: int, total_steps: int, min_rate: float = 0.0, parity: Parity = "fixed") -> float:
    """Factor on the base learning rates at `step` (from 0): rises linearly to 1 at `warmup_steps`, falls to `min_rate`.

    Step 0 of a warm-up has learning rate 0. With a minimum the reference's own formula, `parity="reference"`, jumps
    above 1 after the warm-up (1.011 for a minimum of 0.1 and a tenth of warm-up) and ends above the minimum.
    """
    if step < warmup_steps:
        return step / warmup_steps
    num_left = max(1, total_steps - warmup_steps)
    if parity == "reference":
        return max(min_rate, (total_steps - (1 - min_rate) * step) / num_left)
    left = (total_steps - step) / num_left
    return min_rate + (1 - min_rate) * min(1.0, max(0.0, left))


def _is_new(name: str) -> bool:
    return any(name.startswith(part) or f".{part}" in name for part in _NEW_PARTS)


def _group_lrs(config: OptimizerConfig) -> dict[str, float]:
    settings = {"base": config.lr, "new": config.lr * config.lr_multiplier}
    if config.vision_lr is None and config.text_lr is None and config.cross_lr is None:
        return settings
    if config.vision_lr is None or config.text_lr is None:
        raise ConfigError("vision_lr and text_lr belong together: set both or none (cross_lr then follows text_lr)")
    cross_lr = config.text_lr if config.cross_lr is None else config.cross_lr
    return settings | {"vision": config.vision_lr, "text": config.text_lr, "cross": cross_lr}


def _lr_group(name: str, config: OptimizerConfig, new: set[str]) -> str:
    if config.vision_lr is not None:
        for part in ("vision", "text", "cross"):
            if f"{part}_encoder" in name:
                return part
    return "new" if name in new else "base"


def _named(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    named: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        if "param_names" not in group:
            raise ConfigError("optimizer was built without parameter names: build its groups with parameter_groups")
        named.update(zip(group["param_names"], group["params"], strict=True))
    return named
