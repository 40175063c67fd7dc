"""The training loop: the same function on one process, under torchrun and under Ray Train.

The state of a run is only its checkpoint: batches are a function of the step (`x2vlm.data.loading.loader`),
and so is everything random in it (`x2vlm.train.step`). So a run that was killed and resumed has the weights, bit for
bit, of an uninterrupted one, and its metrics contain every step once.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from x2vlm.data.loading.loader import StepData, StepLoader, iterate_steps
from x2vlm.data.loading.shard_cache import DEFAULT_FOLDER, seconds_since_wait
from x2vlm.errors import StageFailed
from x2vlm.models.checkpoints.weights import load_own_tensors
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.optim import build_optimizer, load_optimizer_tensors
from x2vlm.train.profiling import StepProfile
from x2vlm.train.progress import Progress, rank_times
from x2vlm.train.ranks import Ranks, copy_from_first, gather_json, negative_groups, tensors_from_first
from x2vlm.train.recording.spikes import LossLevel
from x2vlm.train.recording.writer import Writer
from x2vlm.train.step import StepObjective, Trainer, train_step
from x2vlm.train.stopping import StopOnSignal, TrainingStopped
from x2vlm.train.validation.held_out import validate
from x2vlm.train.watchdog import Watchdog

if TYPE_CHECKING:  # importing the model imports timm and transformers; its type alone must not
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.models.x2vlm import X2VLM

log = logging.getLogger(__name__)

# Folders beside the metrics.
HEARTBEATS, PROFILE = "heartbeats", "profile"
SETTLE_SECONDS = 1.0  # between two looks of all ranks at the last checkpoint


def fit(
    model: X2VLM | TaskModel,
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
    learns: StepObjective | None = None,
    save_every: int | None = None,
) -> int:
    """Train `model` to the last step; returns the first step: 0, or that of the newest valid checkpoint.

    The first rank writes a checkpoint when one is due (`TrainRuntime`) and at the end, one line of metrics per step,
    and heartbeats and profiles beside them; it alone reads the checkpoint to start from. `facts` (JSON) is stored in
    every checkpoint, with the world size of each interval of steps. `on_step(step)` is called after each step. A
    checkpoint is also written if `asks_save(step)` on any rank, and after multiples of `save_every`. `num_workers`
    processes prefetch. `new_parameters` (reference names; default: those without pretrained values) get the larger
    learning rate. `held_out` are the shards of `validate_every`. `learns` is the objective (default: pre-training); a
    task's comes with a loader of its own. TrainingStopped after SIGTERM, once the step is saved; StageFailed if it, or
    an earlier checkpoint, cannot be. X2VLMError after too many non-finite steps in a row.
    """
    runtime = runtime or TrainRuntime()
    torch.set_num_threads(runtime.cpu_threads)
    folder = metrics_uri.rpartition("/")[0]
    with ExitStack() as stack:
        watchdog = stack.enter_context(_watchdog(f"{folder}/{HEARTBEATS}", ranks, runtime))
        stop = stack.enter_context(StopOnSignal())
        trainer = _build_trainer(model, loader, config, ranks, new_parameters, runtime, learns)
        stack.callback(trainer.gradients.close)
        first_step, found = _resume(trainer, checkpoints)
        level = LossLevel(runtime.loss_spike, found.get("loss_level", ()))
        progress = Progress(trainer, int(found.get("skipped_in_a_row", 0)), level)
        saved_facts = {**(facts or {}), "world_sizes": _intervals(found, first_step, ranks.world_size)}
        writer = None
        if ranks.is_first:
            saved_facts |= {"rollbacks": rollbacks} if (rollbacks := checkpoints.rollbacks()) else {}
            writer = stack.enter_context(Writer(metrics_uri, first_step, config.steps, checkpoints, runtime))
        finish = _StepEnd(trainer, progress, watchdog, runtime, held_out, writer, saved_facts, save_every)
        profile = stack.enter_context(StepProfile(f"{folder}/{PROFILE}", runtime.profile_steps if writer else None))
        steps = iterate_steps(loader, first_step, config.steps, num_workers, pin_memory=ranks.device.type == "cuda")
        busy = 0.0
        for data, waited in _timed(steps, watchdog, first_step):
            step = data.step
            profile.before(step)
            watchdog.beat(step, "train")
            wants_save = bool((asks_save and asks_save(step)) or (writer and writer.wants_save))
            host = {"asks_stop": float(stop.is_asked), "asks_save": float(wants_save), "data_wait": waited}
            host |= {"replaced": float(len(data.substitutes)), **rank_times(ranks, waited, busy)}
            host |= trainer.learns.work(trainer, loader, data)
            began = time.thread_time()
            progress.add(data, train_step(trainer, data, host))
            busy = time.thread_time() - began
            finish(step)
            profile.after(step)
            (on_step or (lambda step: None))(step)
            if progress.asks_stop and step + 1 < config.steps:
                finish.settle(step)
                raise TrainingStopped(step + 1)
        finish.settle(config.steps - 1)
    return first_step


@dataclass(frozen=True)
class _StepEnd:
    """What follows a queued step: reading its numbers, and where due validation, metrics and a checkpoint."""

    trainer: Trainer
    progress: Progress
    watchdog: Watchdog
    runtime: TrainRuntime
    held_out: StepLoader | None
    writer: Writer | None  # of the first rank
    facts: Mapping[str, Any]  # of every checkpoint
    save_every: int | None = None  # beside the runtime's `checkpoint_every`

    def __call__(self, step: int) -> None:
        config, runtime, progress = self.trainer.config, self.runtime, self.progress
        self.watchdog.beat(step, "read numbers")
        is_validated = self.held_out is not None and _is_due(step, runtime.validate_every, config.steps)
        is_saved = any(_is_due(step, every, config.steps) for every in (runtime.checkpoint_every, self.save_every))
        is_saved |= step + 1 == config.steps
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
            self.writer.write(lines)
            if is_saved:
                is_last = step + 1 == config.steps or progress.asks_stop
                facts = {
                    **self.facts,
                    "skipped_in_a_row": progress.skipped_in_a_row,
                    "loss_level": progress.level.state,
                }
                beat = functools.partial(self.watchdog.beat, step, "save")
                self.writer.save(self.trainer, step + 1, facts, is_last, beat)
        progress.asks_save = False

    def settle(self, step: int) -> None:
        """Wait on all ranks until the first one has written its last checkpoint: none ends before.

        StageFailed on every rank if it could not be written.
        """
        error: Exception | None = None
        seconds = min(SETTLE_SECONDS, (self.runtime.stall_seconds or math.inf) / 4)
        while True:
            self.watchdog.beat(step, "save")
            said = []
            if self.writer is not None:
                try:
                    said = ["done" if self.writer.settle(seconds) else "busy"]
                except Exception as raised:
                    error, said = raised, [f"{type(raised).__name__}: {raised}"]
            (outcome,) = gather_json(said, self.trainer.ranks)
            if error is not None:
                raise error
            if outcome == "done":
                return
            if outcome != "busy":
                raise StageFailed(f"rank 0: {outcome}")


def _build_trainer(
    model: X2VLM | TaskModel,
    loader: StepLoader,
    config: TrainConfig,
    ranks: Ranks,
    new_parameters: Collection[str] | None,
    runtime: TrainRuntime,
    learns: StepObjective | None = None,
) -> Trainer:
    model.to(ranks.device).train()
    copy_from_first(model, ranks)
    streams = {item.label: (item.loss_weight, item.match_main) for item in loader.config.streams}
    optimizer = build_optimizer(model, config.optimizer, new_parameters)
    trainer = Trainer(model, optimizer, config, ranks, loader.config.seed, streams, runtime=runtime)
    trainer.learns = learns or trainer.learns
    own = {item.label: item.negative_group_size for item in loader.config.streams}
    trainer.negative_group_sizes = {label: size for label, size in own.items() if size is not None}
    sizes = {label: trainer.objective(label).negative_group_size for label in own}
    rows = {item.label: item.batch_size // ranks.world_size for item in loader.config.streams}
    timeout = timedelta(seconds=runtime.collective_seconds)
    trainer.negative_groups = negative_groups(ranks, sizes, rows, loader.config.examples.max_tokens, timeout)
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


def _watchdog(folder: str, ranks: Ranks, runtime: TrainRuntime) -> Watchdog:
    """A watchdog that knows when readers on this machine wait for a store that fails."""
    cache = Path(runtime.shard_cache or DEFAULT_FOLDER)
    waits = functools.partial(seconds_since_wait, cache)
    return Watchdog(folder, ranks, runtime.stall_seconds, runtime.store_retry_seconds, waits)


def _resume(trainer: Trainer, checkpoints: CheckpointStore) -> tuple[int, Mapping[str, Any]]:
    """Load the newest valid checkpoint into model and optimizer; its step and its facts, 0 and {} without one.

    The first rank reads it and sends it to the others.
    """
    ranks = trainer.ranks
    found = checkpoints.load_newest() if ranks.is_first else None
    told = gather_json([] if found is None else [[found.step, dict(found.facts)]], ranks)
    if not told:
        return 0, {}
    ((step, facts),) = told
    if found is not None:
        load_own_tensors(trainer.model, found.model, f"checkpoint of step {step}")
    copy_from_first(trainer.model, ranks)
    load_optimizer_tensors(trainer.optimizer, tensors_from_first({} if found is None else found.optimizer, ranks))
    log.info("resumed step=%d", step)
    return step, facts
