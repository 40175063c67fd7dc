"""The training loop: the same function on one process, under torchrun and under Ray Train.

The state of a run is only its checkpoint: batches are a function of the step (`x2vlm.data.loading.loader`),
and so is everything random in it (`x2vlm.train.step`). So a run that was killed and resumed has the weights, bit for
bit, of an uninterrupted one, and its metrics contain every step once.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from x2vlm.data.loading.loader import StepData, StepLoader, iterate_steps
from x2vlm.errors import CorruptArtifact
from x2vlm.models.checkpoints.weights import load_own_tensors, own_tensors
from x2vlm.train.background_saves import BackgroundSaves
from x2vlm.train.checkpoint import Checkpoint, CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.metrics import MetricsLog
from x2vlm.train.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from x2vlm.train.profiling import StepProfile
from x2vlm.train.progress import Progress, console_line
from x2vlm.train.ranks import Ranks, copy_from_first, gather_json, negative_groups
from x2vlm.train.step import Trainer, objectives_of, train_step
from x2vlm.train.stopping import StopOnSignal, TrainingStopped
from x2vlm.train.throughput import work_of
from x2vlm.train.validation import validate
from x2vlm.train.watchdog import Watchdog

if TYPE_CHECKING:  # importing the model imports timm and transformers; its type alone must not
    from x2vlm.models.x2vlm import X2VLM

log = logging.getLogger(__name__)

# Folders beside the metrics.
HEARTBEATS, PROFILE = "heartbeats", "profile"


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
    *,
    new_parameters: Collection[str] | None = None,
    runtime: TrainRuntime | None = None,
    held_out: StepLoader | None = None,
    asks_save: Callable[[int], bool] | None = None,
) -> int:
    """Train `model` to the last step; returns the first step: 0, or that of the newest valid checkpoint.

    The first rank writes a checkpoint every `checkpoint_every` steps and at the end, one line of metrics per step, and
    heartbeats and profiles beside them. `facts` (JSON) is stored in every checkpoint, with the world size of each
    interval of steps. `on_step(step)` is called after each step; if `asks_save(step)` on any rank, a checkpoint is
    written. `num_workers` processes prefetch. `new_parameters` (reference names; default: those without pretrained
    values) get the larger learning rate. `held_out` are the shards of `validate_every`.

    TrainingStopped after SIGTERM, once the current step is saved. X2VLMError after too many non-finite steps in a row.
    """
    runtime = runtime or TrainRuntime()
    torch.set_num_threads(runtime.cpu_threads)
    folder = metrics_uri.rpartition("/")[0]
    with ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(f"{folder}/{HEARTBEATS}", ranks, runtime.stall_seconds))
        stop = stack.enter_context(StopOnSignal())
        trainer = _build_trainer(model, loader, config, ranks, new_parameters, runtime)
        stack.callback(trainer.gradients.close)
        first_step, found = _resume(trainer, checkpoints)
        progress = Progress(trainer, int(found.get("skipped_in_a_row", 0)))
        saved_facts = {**(facts or {}), "world_sizes": _intervals(found, first_step, ranks.world_size)}
        writer = stack.enter_context(_Writer(metrics_uri, first_step, checkpoints)) if ranks.is_first else None
        finish = _StepEnd(trainer, progress, watchdog, runtime, held_out, writer, saved_facts)
        profile = stack.enter_context(StepProfile(f"{folder}/{PROFILE}", runtime.profile_steps if writer else None))
        steps = iterate_steps(loader, first_step, config.steps, num_workers, pin_memory=ranks.device.type == "cuda")
        for data, waited in _timed(steps, watchdog, first_step):
            step = data.step
            profile.before(step)
            watchdog.beat(step, "train")
            asks = {"asks_stop": float(stop.is_asked), "asks_save": float(bool(asks_save and asks_save(step)))}
            host = {**asks, "data_wait": waited, "replaced": float(len(data.substitutes))}
            progress.add(data, train_step(trainer, data, host | _work(trainer, loader, data)))
            finish(step)
            profile.after(step)
            if on_step:
                on_step(step)
            if progress.asks_stop and step + 1 < config.steps:
                raise TrainingStopped(step + 1)
    return first_step


@dataclass(frozen=True)
class _StepEnd:
    """What follows a queued step: reading its numbers, and where due validation, metrics and a checkpoint."""

    trainer: Trainer
    progress: Progress
    watchdog: Watchdog
    runtime: TrainRuntime
    held_out: StepLoader | None
    writer: _Writer | None  # of the first rank
    facts: Mapping[str, Any]  # of every checkpoint

    def __call__(self, step: int) -> None:
        config, runtime, progress = self.trainer.config, self.runtime, self.progress
        self.watchdog.beat(step, "read numbers")
        is_validated = self.held_out is not None and _is_due(step, runtime.validate_every, config.steps)
        is_saved = _is_due(step, runtime.checkpoint_every, config.steps)
        num_ahead = 0 if is_validated or is_saved else _steps_ahead(self.runtime, self.trainer.ranks)
        lines = progress.read(num_ahead)
        if progress.asks_stop or progress.asks_save:
            is_saved = True
            lines += progress.read()
        if is_validated and self.held_out is not None:
            beat = functools.partial(self.watchdog.beat, step, "validate")
            lines[-1] |= validate(self.trainer, self.held_out, runtime.validation_batches, beat)
        self.watchdog.beat(step, "save")
        if self.writer:
            self.writer.write(lines, config.steps, self.runtime.log_every)
            if is_saved:
                facts = {**self.facts, "skipped_in_a_row": progress.skipped_in_a_row}
                self.writer.save(self.trainer, step + 1, facts)
        progress.asks_save = False


class _Writer:
    """Metrics and checkpoints, written by the first rank. On leaving the `with` block both are complete."""

    def __init__(self, metrics_uri: str, first_step: int, checkpoints: CheckpointStore) -> None:
        self._metrics = MetricsLog(metrics_uri, first_step)
        self._saves = BackgroundSaves(checkpoints)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._saves.__exit__(kind, error, at)
        finally:
            self._metrics.close()

    def write(self, lines: list[dict[str, Any]], num_steps: int, log_every: int) -> None:
        for line in lines:
            self._metrics.write(line)
            if (line["step"] + 1) % log_every == 0 or line["step"] + 1 == num_steps:
                log.info("%s", console_line(line, num_steps))

    def save(self, trainer: Trainer, step: int, facts: Mapping[str, Any]) -> None:
        """Write the checkpoint after `step` steps in the background; the metrics up to it are synced first."""
        self._metrics.sync()
        checkpoint = Checkpoint(step, own_tensors(trainer.model), optimizer_tensors(trainer.optimizer), facts)
        self._metrics.note(save_wait_seconds=round(self._saves.save(checkpoint), 4))


def _build_trainer(
    model: X2VLM,
    loader: StepLoader,
    config: TrainConfig,
    ranks: Ranks,
    new_parameters: Collection[str] | None,
    runtime: TrainRuntime = TrainRuntime(),  # noqa: B008  # frozen
) -> Trainer:
    model.to(ranks.device).train()
    copy_from_first(model, ranks)
    streams = {item.label: (item.loss_weight, item.match_main) for item in loader.config.streams}
    optimizer = build_optimizer(model, config.optimizer, new_parameters)
    trainer = Trainer(model, optimizer, config, ranks, loader.config.seed, streams, runtime=runtime)
    own = {item.label: item.negative_group_size for item in loader.config.streams}
    trainer.negative_group_sizes = {label: size for label, size in own.items() if size is not None}
    sizes = {label: trainer.objective(label).negative_group_size for label in own}
    rows = {item.label: item.batch_size // ranks.world_size for item in loader.config.streams}
    trainer.negative_groups = negative_groups(ranks, sizes, rows, loader.config.examples.max_tokens)
    return trainer


def _timed(steps: Iterator[StepData], watchdog: Watchdog, first_step: int) -> Iterator[tuple[StepData, float]]:
    """Every step's data and the seconds spent waiting for them."""
    number = first_step
    while True:
        watchdog.beat(number, "wait for data")
        started = time.perf_counter()
        data = next(steps, None)
        if data is None:
            return
        yield data, time.perf_counter() - started
        number = data.step + 1


def _work(trainer: Trainer, loader: StepLoader, data: StepData) -> dict[str, float]:
    objectives, execution = objectives_of(trainer, data), trainer.execution
    return work_of(data, trainer.model.config, loader.config.examples, objectives, execution)


def _steps_ahead(runtime: TrainRuntime, ranks: Ranks) -> int:
    """On a GPU one step: while the metrics of a step are read the next one is queued, and the GPU never waits."""
    if runtime.steps_ahead is not None:
        return runtime.steps_ahead
    return 1 if ranks.device.type == "cuda" else 0


def _is_due(step: int, every: int | None, num_steps: int) -> bool:
    return every is not None and ((step + 1) % every == 0 or step + 1 == num_steps)


def _intervals(found: Mapping[str, Any], first_step: int, world_size: int) -> list[list[int]]:
    """(first step, number of processes) of every interval of the run so far."""
    intervals = [list(item) for item in found.get("world_sizes", []) if item[0] < first_step]
    if not intervals or intervals[-1][1] != world_size:
        intervals.append([first_step, world_size])
    return intervals


def _resume(trainer: Trainer, checkpoints: CheckpointStore) -> tuple[int, Mapping[str, Any]]:
    """Load the newest valid checkpoint into model and optimizer; its step and its facts, 0 and {} without one."""
    found = checkpoints.load_newest()
    step = 0 if found is None else found.step
    steps = gather_json([step], trainer.ranks)
    if len(set(steps)) > 1:
        raise CorruptArtifact(
            f"the processes see different newest checkpoints (steps {steps}); is the store shared by all machines?"
        )
    if found is None:
        return 0, {}
    load_own_tensors(trainer.model, found.model, f"checkpoint of step {step}")
    load_optimizer_tensors(trainer.optimizer, found.optimizer)
    log.info("resumed step=%d", step)
    return step, found.facts
