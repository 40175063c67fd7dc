"""Configuration of the pretrain stage."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import pydantic

from pipelines.flow.stage import Workers
from pipelines.s5_pretrain.start import StartConfig
from x2vlm.config import FrozenConfig
from x2vlm.data.loading.config import DataConfig
from x2vlm.errors import ConfigError
from x2vlm.models.config import ModelConfig
from x2vlm.train.config import TrainConfig, TrainRuntime, refuse_moved


class Shared(Protocol):
    """What placing a training asks of its configuration: how many processes it has, and which numbers could."""

    @property
    def world_size(self) -> int: ...

    def sharing_problem(self, number: int) -> str | None:
        """Why `number` processes cannot share every batch; None if they can."""


class PretrainConfig(FrozenConfig):
    """Model, data and training; the defaults are the released base 4M recipe on 8 GPUs.

    Every global batch is split over `world_size` processes. It never changes the recipe, but the order of sums, and
    negatives of the matching loss are drawn within a process, so it changes the weights and is in the fingerprint.
    With fewer machines a run goes on with fewer processes where `TrainRuntime.min_workers` allows it.
    """

    model: ModelConfig = ModelConfig()
    start: StartConfig | None = None  # None: at random
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    world_size: int = pydantic.Field(default=8, ge=1)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _nothing_is_at_its_old_place(cls, values: Any) -> Any:
        refuse_moved(cls, values)
        return values

    @pydantic.model_validator(mode="after")
    def _start_fills_the_model(self) -> "PretrainConfig":
        if self.start is not None and self.start.text is not None and self.model.text.architecture != "bert":
            raise ValueError(
                f"start.text: an encoder of the architecture {self.model.text.architecture} fills no fusion layers; "
                "start from a trained model (`checkpoint` or `node`) and give the encoder as `swap_text`"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> "PretrainConfig":
        for stream in self.data.streams:
            if stream.batch_size % self.world_size:
                raise ValueError(
                    f"stream {stream.label}: batch_size {stream.batch_size} is no multiple of world_size "
                    f"{self.world_size}"
                )
            if self.train.accumulate > stream.batch_size // self.world_size:
                raise ValueError(
                    f"train.accumulate: {self.train.accumulate} chunks of the {stream.batch_size // self.world_size} "
                    f"rows that a process has of stream {stream.label}; lower it"
                )
        if (problem := _groups_problem(self, self.world_size)) is not None:
            raise ValueError(problem)
        if self.start is not None and self.start.step is not None and self.start.step >= self.train.steps:
            raise ValueError(f"start.step ({self.start.step}) must be below train.steps ({self.train.steps})")
        labels = [stream.label for stream in self.data.streams]
        if self.train.matching_follows not in (None, *labels):
            raise ValueError(f"train.matching_follows: {self.train.matching_follows!r} is none of the streams {labels}")
        if self.train.execution.compile_blocks and self.model.vision.backbone != "beit2":
            raise ValueError(
                f"train.execution.compile_blocks knows the blocks of beit2 only, not of {self.model.vision.backbone}"
            )
        frames = self.data.examples.frames_per_clip
        has_clips = any(stream.kind == "video" for stream in self.data.streams)
        if has_clips and self.model.num_frames is not None and frames > self.model.num_frames:
            raise ValueError(f"clips have {frames} frames, the model has positions for {self.model.num_frames}")
        if self.data.examples.max_tokens > self.model.text.max_positions:
            raise ValueError("data.examples.max_tokens is more than model.text.max_positions")
        return self

    def sharing_problem(self, number: int) -> str | None:
        """Why `number` processes cannot share every batch or make its groups of negatives; None if they can."""
        if any(stream.batch_size % number for stream in self.data.streams):
            return f"{number} processes cannot share every batch"
        return _groups_problem(self, number)


def check_runtime(config: PretrainConfig, runtime: TrainRuntime, where: str = "pretrain") -> None:
    """ConfigError if a setting of `runtime` does not fit the run `where` that it is for."""
    if runtime.min_workers is not None and runtime.min_workers > config.world_size:
        raise ConfigError(
            f"train_runtime.min_workers ({runtime.min_workers}) is more than {where}.world_size ({config.world_size})"
        )
    if runtime.checkpoint_vision_blocks and config.model.vision.backbone != "beit2":
        raise ConfigError(
            f"train_runtime.checkpoint_vision_blocks: knows the blocks of beit2 only, {where}.model.vision.backbone is "
            f"{config.model.vision.backbone}"
        )


def check_trainings(trainings: Mapping[str, PretrainConfig], runtime: TrainRuntime, num_shards: int) -> None:
    """ConfigError for what would stop one of the trainings of an experiment, by section, once its shards are there."""
    for where, config in trainings.items():
        check_runtime(config, runtime, where)
        share = config.data.validation_share
        if (num_held_out := math.ceil(share * num_shards)) >= num_shards:
            raise ConfigError(
                f"{where}.data.validation_share: {share} holds out {num_held_out} of {num_shards} shards; lower it, or "
                "raise partition.num_shards"
            )
    if runtime.validate_every and not any(config.data.validation_share for config in trainings.values()):
        raise ConfigError("train_runtime.validate_every needs held-out shards: set pretrain.data.validation_share")


def workers_of(config: Shared, runtime: TrainRuntime) -> Workers:
    """The processes that a training starts on Ray. `fewest` is the smallest usable number from `min_workers` on."""
    fewest = min(runtime.min_workers or config.world_size, config.world_size)
    while fewest < config.world_size and config.sharing_problem(fewest) is not None:
        fewest += 1
    return Workers(fewest, config.world_size, runtime.cpus_per_worker, runtime.placement)


def num_training(config: Shared, runtime: TrainRuntime, num_started: int) -> int:
    """How many of `num_started` processes train: the largest number that divides every batch; the others wait.

    ConfigError if fewer than `min_workers` or more than `world_size` were started.
    """
    workers = workers_of(config, runtime)
    if not workers.fewest <= num_started <= workers.most:
        allowed = f"{workers.most}" if workers.fewest == workers.most else f"{workers.fewest} to {workers.most}"
        raise ConfigError(f"{num_started} processes were started, the experiment says {allowed}")
    return next(number for number in range(num_started, 0, -1) if config.sharing_problem(number) is None)


def _groups_problem(config: PretrainConfig, number: int) -> str | None:
    """Why groups of negatives cannot be made of the rows of `number` processes; as `x2vlm.train.ranks` makes them."""
    for stream in config.data.streams:
        size = stream.negative_group_size or config.train.objective.negative_group_size
        rows = stream.batch_size // number
        if size is None or rows % size == 0:
            continue
        if size % rows or number % (size // rows):
            return (
                f"stream {stream.label}: groups of {size} negatives cannot be made of {number} processes with {rows} "
                "rows each; change negative_group_size or world_size"
            )
    return None
