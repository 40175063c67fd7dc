"""The training loop: the same function on one process, under torchrun and under Ray Train.

Everything random in step s on rank r is seeded by (seed, s, r), batches are a function of s, and gradients are added in
a fixed order. So on CPU a run that was killed and resumed gives the same losses and weights, bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from x2vlm.data.loader import StepData, StepLoader, iterate_steps, substitutes_to_json
from x2vlm.data.randomness import derive_seed
from x2vlm.errors import CorruptArtifact, X2VLMError
from x2vlm.models.weights import load_own_tensors, own_tensors
from x2vlm.objective_config import ObjectiveConfig, counted_losses
from x2vlm.objectives import pretrain_losses
from x2vlm.train.checkpoint import Checkpoint, CheckpointStore
from x2vlm.train.config import TrainConfig
from x2vlm.train.metrics import MetricsLog
from x2vlm.train.optim import (
    build_optimizer,
    linear_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)
from x2vlm.train.ranks import Ranks, average_gradients, copy_from_first, gather_json, mean_over_ranks

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.models.x2vlm import X2VLM

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """What a step changes (model, optimizer) and what it needs to know."""

    model: X2VLM
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    ranks: Ranks
    seed: int
    streams: Mapping[str, tuple[float, bool]]  # loss weight; whether main batches get the matching loss

    def __post_init__(self) -> None:
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.base_rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.gather = self.ranks.gather()


def fit(
    model: X2VLM,
    loader: StepLoader,
    config: TrainConfig,
    ranks: Ranks,
    checkpoints: CheckpointStore,
    metrics_uri: str,
    facts: Mapping[str, Any] | None = None,
    num_workers: int = 0,
    on_step: Callable[[int], None] | None = None,
    new_parameters: Collection[str] | None = None,
) -> int:
    """The step it began at: 0, or that of the newest valid checkpoint. On return `model` has made all steps.

    The first rank writes a checkpoint every `checkpoint_every` steps and at the end, and one line of metrics per step.
    `facts` (JSON) goes into every checkpoint; `on_step(step)` is called after each. `num_workers` processes read ahead.
    `new_parameters` (reference names; default: what no backbone brings) move at the larger rate.
    X2VLMError if a loss stops being a number.
    """
    torch.set_num_threads(config.cpu_threads)
    model.to(ranks.device).train()
    copy_from_first(model, ranks)
    streams = {item.label: (item.loss_weight, item.match_main) for item in loader.config.streams}
    trainer = Trainer(
        model, build_optimizer(model, config.optimizer, new_parameters), config, ranks, loader.config.seed, streams
    )
    first_step = _resume(trainer, checkpoints)
    metrics = MetricsLog(metrics_uri, first_step) if ranks.is_first else None
    pin = ranks.device.type == "cuda"
    try:
        for data in iterate_steps(loader, first_step, config.steps, num_workers, pin_memory=pin):
            values = train_step(trainer, data)
            if metrics:
                metrics.write(values)
                if _is_checkpoint_due(data.step, config):
                    metrics.sync()
                    checkpoints.save(_snapshot(trainer, data.step + 1, facts or {}))
            if on_step:
                on_step(data.step)
    finally:
        if metrics:
            metrics.close()
    return first_step


def train_step(trainer: Trainer, data: StepData) -> dict[str, Any]:
    """One optimizer step over all streams; gives its metrics line, means over the ranks.

    Losses are taken before the weights move. Streams are run one after the other, so only one graph is in memory.
    """
    started = time.perf_counter()
    config, ranks, model = trainer.config, trainer.ranks, trainer.model
    torch.manual_seed(derive_seed(trainer.seed, "step", data.step, ranks.rank))
    rate = linear_rate(data.step, config.warmup_steps, config.steps, config.min_rate)
    for group, base_rate in zip(trainer.optimizer.param_groups, trainer.base_rates, strict=True):
        group["lr"] = base_rate * rate
    model.clamp_temperature()
    trainer.optimizer.zero_grad(set_to_none=True)
    losses: dict[str, Tensor] = {}
    for name, batch in data.batches.items():
        weight, match_main = trainer.streams[name]
        objective = _objective(config, data.step, match_main or data.is_aux[name])
        with torch.autocast(ranks.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            parts = pretrain_losses(
                model, batch.to(ranks.device, non_blocking=True), config=objective, gather=trainer.gather
            )
        parts = counted_losses(batch.kind, parts, objective)
        (weight * sum_of(parts)).backward()  # type: ignore[no-untyped-call]
        losses |= {f"{name}/{part}": value.detach() for part, value in parts.items()}
    average_gradients(trainer.parameters, ranks)
    norm = nn.utils.clip_grad_norm_(trainer.parameters, config.clip_norm)
    replaced = torch.tensor(float(len(data.substitutes)), device=ranks.device)
    *means, grad_norm, temperature, mean_replaced = mean_over_ranks(
        [*losses.values(), norm, model.temperature, replaced], ranks
    )
    named = dict(zip(losses, means, strict=True))
    _require_finite(data.step, named | {"grad_norm": grad_norm})
    trainer.optimizer.step()
    total = sum(trainer.streams[name.split("/")[0]][0] * value for name, value in named.items())
    num_rows = ranks.world_size * sum(batch.num_rows for batch in data.batches.values())
    seconds = time.perf_counter() - started
    return {
        "step": data.step,
        "loss": total,
        **named,
        "lr": config.optimizer.lr * rate,
        "grad_norm": grad_norm,
        "temperature": temperature,
        "seconds": round(seconds, 4),
        "rows_per_second": round(num_rows / seconds, 2),
        **_all_substitutes(data, mean_replaced, ranks),
    }


def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
    """The plain sum of a batch's losses."""
    return torch.stack(list(parts.values())).sum()


def _objective(config: TrainConfig, step: int, is_clean: bool) -> ObjectiveConfig:
    stopped = config.stop_matching_at is not None and step >= config.stop_matching_at
    return config.objective.model_copy(update={"matching": config.objective.matching and is_clean and not stopped})


def _require_finite(step: int, values: Mapping[str, float]) -> None:
    if bad := {name: value for name, value in values.items() if not math.isfinite(value)}:
        raise X2VLMError(
            f"step {step}: {', '.join(f'{name} is {value}' for name, value in bad.items())}. The run diverged: lower "
            "optimizer.lr, lengthen warmup_steps or use precision float32; it resumes from its last checkpoint"
        )


def _all_substitutes(data: StepData, mean_replaced: float, ranks: Ranks) -> dict[str, Any]:
    """What all ranks had to replace in this step, each replacement once; nothing if nothing."""
    if mean_replaced == 0:
        return {}
    everything = gather_json(substitutes_to_json(data.substitutes), ranks)
    unique = {tuple(sorted(item.items())): item for item in everything}
    return {"substitutes": list(unique.values())}


def _is_checkpoint_due(step: int, config: TrainConfig) -> bool:
    return (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps


def _snapshot(trainer: Trainer, step: int, facts: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(step, own_tensors(trainer.model), optimizer_tensors(trainer.optimizer), facts)


def _resume(trainer: Trainer, checkpoints: CheckpointStore) -> int:
    """Put the newest valid checkpoint into model and optimizer; its number of finished steps, 0 if there is none."""
    found = checkpoints.load_newest()
    step = 0 if found is None else found.step
    steps = gather_json([step], trainer.ranks)
    if len(set(steps)) > 1:
        raise CorruptArtifact(
            f"the processes see different newest checkpoints (steps {steps}); is the store shared by all machines?"
        )
    if found is not None:
        load_own_tensors(trainer.model, found.model, f"checkpoint of step {step}")
        load_optimizer_tensors(trainer.optimizer, found.optimizer)
        log.info("resumed step=%d", step)
    return step
