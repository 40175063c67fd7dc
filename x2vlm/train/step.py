"""One optimizer step over all streams: everything is queued on the device without synchronisation.

Everything random in step s on rank r is seeded by (seed, s, r), and gradients are summed in a fixed order. So on CPU a
resumed run gives the same losses and weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from x2vlm.data.loading.batch import Batch
from x2vlm.data.loading.loader import StepData
from x2vlm.data.randomness import derive_seed
from x2vlm.objectives.accumulation import Accumulation, accumulate_gradients
from x2vlm.objectives.across_ranks import NegativeGroup
from x2vlm.objectives.config import ObjectiveConfig, counted_losses
from x2vlm.objectives.step import step_losses
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.gradients import GradientBuckets
from x2vlm.train.optim import lr_factor
from x2vlm.train.ranks import Ranks
from x2vlm.train.throughput import work_of

if TYPE_CHECKING:  # importing the model imports timm and transformers; its type alone must not
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.models.x2vlm import X2VLM


class StepObjective(Protocol):
    """What a run learns from the batches of a step: pre-training here, a task in `x2vlm.tasks.training`."""

    def backward(self, trainer: Trainer, batches: Mapping[str, Any], data: StepData) -> dict[str, Tensor]:
        """The losses of all streams as `<stream>/<loss>`, after the backward pass of their weighted sum.

        `trainer.gradients.begin` has to come first; `finish` follows.
        """
        ...

    def work(self, trainer: Trainer, loader: Any, data: StepData) -> dict[str, float]:
        """What the step of one process consists of, as `x2vlm.train.throughput.work_of` counts it."""
        ...


@dataclass
class Trainer:
    """The state that a step changes (model, optimizer) and its settings.

    A task's model is trained with an objective of its own (`learns`), which alone reads what is not in both models.
    """

    model: X2VLM | TaskModel
    optimizer: torch.optim.Optimizer
    config: TrainConfig
    ranks: Ranks
    seed: int
    streams: Mapping[str, tuple[float, bool]]  # loss weight; whether main batches get the matching loss
    negative_groups: Mapping[str, NegativeGroup] = field(default_factory=dict)
    negative_group_sizes: Mapping[str, int] = field(default_factory=dict)  # of streams with a size of their own
    runtime: TrainRuntime = TrainRuntime()
    learns: StepObjective = field(default_factory=lambda: Pretraining())

    def __post_init__(self) -> None:
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.gradients = GradientBuckets(parameters, self.ranks, self.config.gradient_dtype)
        self.execution = self.runtime.execution(self.config.execution)
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.gather = self.ranks.gather()
        # torch's own optimizers skip a step on the device only where they are fused.
        self.skips_on_device = hasattr(self.optimizer, "found_inf") or bool(self.optimizer.defaults.get("fused"))

    def objective(self, stream: str, matching: bool = True) -> ObjectiveConfig:
        """The losses of a stream's batches, with or without the matching loss."""
        common = self.config.objective
        size = self.negative_group_sizes.get(stream, common.negative_group_size)
        return common.model_copy(update={"matching": common.matching and matching, "negative_group_size": size})

    def lr_factor_at(self, step: int) -> float:
        """Factor on the base learning rates at `step`."""
        config = self.config
        return lr_factor(step, config.warmup_steps, config.steps, config.min_rate, config.rate_parity)


@dataclass(frozen=True)
class PendingNumbers:
    """The metrics of a step, still in transfer from the device; `names` are their names.

    `num_parameters` have a gradient on this process; the number must be equal on all.
    """

    num_parameters: int
    names: tuple[str, ...]
    values: Tensor
    ready: torch.cuda.Event | None

    def read(self) -> dict[str, float]:
        """The metrics; waits for the device to finish that step."""
        if self.ready is not None:
            self.ready.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


def train_step(trainer: Trainer, data: StepData, of_host: Mapping[str, float] | None = None) -> PendingNumbers:
    """One optimizer step; returns its metrics: means over the ranks, losses before the update.

    They are every loss as `<stream>/<loss>`, temperature, parameters (with a gradient), all of `of_host`, which must
    have the same names on all ranks, then grad_norm and finite. If that is 0, the step had non-finite values, and
    neither weights nor optimizer have changed.
    """
    ranks, model, optimizer = trainer.ranks, trainer.model, trainer.optimizer
    torch.manual_seed(derive_seed(trainer.seed, "step", data.step, ranks.rank))
    lr_factor = trainer.lr_factor_at(data.step)
    for group, base_lr in zip(optimizer.param_groups, trainer.base_lrs, strict=True):
        group["lr"] = base_lr * lr_factor
    model.clamp_temperature()
    batches = {name: batch.to(ranks.device, non_blocking=True) for name, batch in data.batches.items()}
    named = trainer.learns.backward(trainer, batches, data)
    num_parameters = trainer.gradients.finish()
    host = {"parameters": float(num_parameters), **(of_host or {})}
    with torch.no_grad():
        means = _means([*named.values(), _temperature(model)], list(host.values()), ranks)
        norm = nn.utils.get_total_norm(trainer.gradients.buffers) / ranks.world_size
        finite = means[: len(named)].isfinite().all() & norm.isfinite()
        _scale(trainer, norm, finite)
        _move(trainer, finite)
    names = (*named, "temperature", *host, "grad_norm", "finite")
    return _send(num_parameters, names, torch.cat([means, norm.double().view(1), finite.double().view(1)]))


class Pretraining:
    """The objective of pre-training: all losses of all streams, at once or in chunks of the rows."""

    def backward(self, trainer: Trainer, batches: Mapping[str, Any], data: StepData) -> dict[str, Tensor]:
        """As `StepObjective.backward`."""
        objectives = objectives_of(trainer, data)
        if trainer.config.accumulate > 1:
            return _accumulate(trainer, batches, objectives, data.step)
        with precision_of(trainer):
            losses = stream_losses(trainer, batches, objectives, derive_seed(trainer.seed, "negatives", data.step))
        named = _named(losses)
        trainer.gradients.begin(tuple(named))
        _total(trainer, losses).backward()  # type: ignore[no-untyped-call]
        return named

    def work(self, trainer: Trainer, loader: Any, data: StepData) -> dict[str, float]:
        """As `StepObjective.work`."""
        sizes = (trainer.model.config, loader.config.examples)
        objectives = objectives_of(trainer, data)
        return work_of(data, *sizes, objectives, trainer.execution, trainer.config.accumulate)


def stream_losses(
    trainer: Trainer, batches: Mapping[str, Batch], objectives: Mapping[str, ObjectiveConfig], seed: int
) -> dict[str, dict[str, Tensor]]:
    """Unweighted losses of all streams of a step that are trained on.

    Where negatives come from groups of rows, `seed` must be equal on all ranks: the draw is then one of the whole
    batch, independent of the number of ranks.
    """
    losses = step_losses(
        pretrained_model(trainer),
        batches,
        objectives,
        gather=trainer.gather,
        negative_groups=trainer.negative_groups,
        generator=_negatives_generator(trainer, objectives, seed),
        execution=trainer.execution,
    )
    return {name: counted_losses(batches[name].kind, parts, objectives[name]) for name, parts in losses.items()}


def _temperature(model: X2VLM | TaskModel) -> Tensor:
    temperature = getattr(model, "base", model).temperature
    assert isinstance(temperature, Tensor)
    return temperature


def pretrained_model(trainer: Trainer) -> X2VLM:
    """The model of a pre-training."""
    return cast("X2VLM", trainer.model)


def _negatives_generator(
    trainer: Trainer, objectives: Mapping[str, ObjectiveConfig], seed: int
) -> torch.Generator | None:
    """The generator of negatives from groups of rows; None: torch's own."""
    if all(objective.negative_group_size is None for objective in objectives.values()):
        return None
    return torch.Generator(trainer.ranks.device).manual_seed(seed)


def precision_of(trainer: Trainer) -> torch.autocast:
    """The context of the model's forward passes."""
    half = trainer.config.precision == "bfloat16"
    return torch.autocast(trainer.ranks.device.type, torch.bfloat16, enabled=half)


def _accumulate(
    trainer: Trainer, batches: Mapping[str, Batch], objectives: Mapping[str, ObjectiveConfig], step: int
) -> dict[str, Tensor]:
    """The losses by name, after their gradients have been computed in chunks."""

    def counted(losses: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        return {name: counted_losses(batches[name].kind, parts, objectives[name]) for name, parts in losses.items()}

    rank, num_chunks = trainer.ranks.rank, trainer.config.accumulate
    how = Accumulation(
        num_chunks,
        [derive_seed(trainer.seed, "chunk", step, rank, number) for number in range(num_chunks)],
        derive_seed(trainer.seed, "step", step, rank),
        lambda losses: _total(trainer, counted(losses)),
        lambda: precision_of(trainer),
    )
    trainer.gradients.begin("accumulated", several=True)
    losses = accumulate_gradients(
        pretrained_model(trainer),
        batches,
        objectives,
        how,
        gather=trainer.gather,
        negative_groups=trainer.negative_groups,
        generator=_negatives_generator(trainer, objectives, derive_seed(trainer.seed, "negatives", step)),
        execution=trainer.config.execution,
    )
    return _named(counted(losses))


def _named(losses: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{name}/{part}": loss for name, parts in losses.items() for part, loss in parts.items()}


def _total(trainer: Trainer, losses: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """The weighted sum of the losses of all streams; of those that have any."""
    weighted = [trainer.streams[name][0] * sum_of(parts) for name, parts in losses.items() if parts]
    return torch.stack(weighted).sum()


def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
    """The unweighted sum of a batch's losses."""
    return torch.stack(list(parts.values())).sum()


def objectives_of(trainer: Trainer, data: StepData) -> dict[str, ObjectiveConfig]:
    """The losses of every stream in a step: the matching loss may have stopped, or be limited to aux batches."""
    config = trainer.config
    stopped = config.stop_matching_at is not None and data.step >= config.stop_matching_at

    def is_matched(name: str) -> bool:
        leader = config.matching_follows or name
        return not stopped and (trainer.streams[leader][1] or data.is_aux[leader])

    return {name: trainer.objective(name, is_matched(name)) for name in data.batches}


def _means(of_device: list[Tensor], of_host: list[float], ranks: Ranks) -> Tensor:
    """The mean of each value over the processes, in one all-reduce, on the device."""
    own = torch.tensor(of_host, dtype=torch.float64, pin_memory=ranks.device.type == "cuda")
    values = [torch.stack([value.detach().double() for value in of_device]), own.to(ranks.device, non_blocking=True)]
    means = torch.cat(values)
    if ranks.world_size > 1:
        dist.all_reduce(means)
        means /= ranks.world_size
    return means


def _scale(trainer: Trainer, norm: Tensor, finite: Tensor) -> None:
    """Turn the sums over the ranks into means, clipped to the largest norm; zeros if the step is to be skipped."""
    factor = (trainer.config.clip_norm / (norm + 1e-6)).clamp(max=1.0) / trainer.ranks.world_size
    torch._foreach_mul_(trainer.gradients.buffers, factor)
    for buffer in trainer.gradients.buffers:
        buffer.masked_fill_(~finite, 0.0)


def _move(trainer: Trainer, finite: Tensor) -> None:
    """Make or skip the optimizer step, without synchronising to know which."""
    if trainer.skips_on_device:
        trainer.optimizer.found_inf = 1.0 - finite.float()  # type: ignore[attr-defined]
        trainer.optimizer.step()
    elif bool(finite):  # the only synchronisation, for an optimizer that is neither ours nor fused
        trainer.optimizer.step()


def _send(num_parameters: int, names: tuple[str, ...], values: Tensor) -> PendingNumbers:
    """Start the copy to the host. On a GPU it goes to page-locked memory without blocking the host."""
    if not values.is_cuda:
        return PendingNumbers(num_parameters, names, values, None)
    host = values.to("cpu", non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
    ready.record()
    return PendingNumbers(num_parameters, names, host, ready)
