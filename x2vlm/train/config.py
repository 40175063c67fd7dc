"""Configuration of training: duration, optimizer, losses; and how a run is watched, saved and placed.

Without importing torch, so that planning a run need not wait for it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from x2vlm.config import FrozenConfig, field_problem
from x2vlm.models.execution import ExecutionConfig
from x2vlm.objectives.config import ObjectiveConfig, Parity

Beta = Annotated[float, Field(ge=0, lt=1)]

# What `TrainConfig` and `PretrainConfig` held once and `TrainRuntime` holds now: an experiment that still says it there
# is told the new place.
MOVED = (
    *("on_nonfinite", "max_skipped_steps", "cpu_threads", "checkpoint_every", "keep_checkpoints", "validate_every"),
    *("validation_batches", "min_workers", "record_samples", "checkpoint_vision_blocks"),
)


class OptimizerConfig(FrozenConfig):
    """Learning rates and AdamW settings of one run; the defaults are the published base 4M recipe."""

    lr: float = Field(default=1e-4, gt=0, allow_inf_nan=False)
    lr_multiplier: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    # Learning rates by tower; they override the multiplier, so new cross-attention inside the text stack gets text_lr.
    vision_lr: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    text_lr: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    cross_lr: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)  # 0 divides 0 by 0 where a gradient was always 0
    # "reference" is the AdamW of transformers the paper used, "torch" is torch.optim.AdamW.
    adamw: Literal["reference", "torch"] = "reference"
    # One kernel per group for adamw="torch". Without it every step synchronises to decide whether it is skipped.
    fused: bool = True

    @model_validator(mode="after")
    def _tower_rates_belong_together(self) -> "OptimizerConfig":
        if (self.vision_lr is None) != (self.text_lr is None) or (self.cross_lr is not None and self.text_lr is None):
            raise ValueError(
                "vision_lr and text_lr belong together: set both or none (cross_lr follows text_lr unless it is set)"
            )
        return self


class TrainConfig(FrozenConfig):
    """Duration and settings of training that change what is learned; the defaults are the released base 4M recipe.

    `stop_matching_at`: no matching loss from that step on. `matching_follows` names the stream whose batch decides for
    all streams whether a step has the matching loss (the reference's noisy phase: no aux image batch, no matching of
    regions either); None: each stream decides for itself. `execution` changes the order of sums, and so the last bits
    of results. `gradient_dtype` is the dtype of the all-reduce; bfloat16 halves the bytes and rounds every gradient to
    8 bits. `rate_parity: reference` takes the reference's formula for `min_rate`, which jumps above the learning rate
    after the warm-up and ends above the minimum. `accumulate` cuts the rows of a process into that many chunks that run
    one after the other: the same losses and gradients as at once, also of the contrastive loss and of negatives from
    the whole batch, with the memory of a chunk, for one more forward pass of the towers
    (`x2vlm.objectives.accumulation`). Dropout is drawn anew for each number of chunks. How often a run is saved and
    measured, and when it gives up, is in `TrainRuntime`.
    """

    steps: int = Field(default=500_000, ge=1)
    warmup_steps: int = Field(default=2_500, ge=0)
    min_rate: float = Field(default=0.0, ge=0, le=1)
    rate_parity: Parity = "fixed"
    clip_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    execution: ExecutionConfig = ExecutionConfig()
    stop_matching_at: int | None = Field(default=None, ge=0)
    matching_follows: str | None = None
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_at_its_old_place(cls, values: Any) -> Any:
        refuse_moved(cls, values)
        return values

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "TrainConfig":
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is more than steps ({self.steps})")
        if self.execution.checkpoint_vision_blocks:
            raise ValueError(f"execution.checkpoint_vision_blocks: {_new_place('checkpoint_vision_blocks')}")
        return self

    @model_validator(mode="after")
    def _rate_has_a_minimum(self) -> "TrainConfig":
        if self.rate_parity != "fixed" and not self.min_rate:
            raise ValueError("rate_parity has no effect without a min_rate: both formulas are the same then")
        return self


# A start compiles, fills caches and opens shards before its first step is done: it may take this times as long.
START_ALLOWANCE = 5.0
# torch's default for gloo; NCCL's is 10 minutes, less than the first step may take.
LEAST_COLLECTIVE_SECONDS = 1800.0


class TrainRuntime(FrozenConfig):
    """How a run is watched, saved, placed and fed. None of it changes the mathematics of a step, so none of it is in
    the fingerprint: it can be changed in mid-run, and the same command goes on from the newest checkpoint.

    Watching. `log_every`: steps between two lines on the console; the metrics file has every step. `steps_ahead`: how
    many steps the host may queue before it reads the metrics of the first; None: 1 on a GPU, 0 on a CPU.
    `stall_seconds` without progress end the run with an error that names the slowest rank (the first step may take five
    times as long: it compiles); None: no limit. `profile_steps` = (first, last) writes a torch profile of these steps.

    Saving and giving up. A checkpoint is written every `checkpoint_every` steps (None: no number of steps makes one
    due), when the first process has begun none for `checkpoint_minutes` (None: however long; about 10 suits many GPUs),
    and at the end. The newest `keep_checkpoints` are kept, and of every `keep_every` steps the first for good (None: no
    more); resuming is exact, so none of them changes a weight. A call to the object store that fails in transport is
    tried again for `store_retry_seconds`; training goes on meanwhile. `on_nonfinite`: handling of a step with
    non-finite losses or gradients; "skip" leaves weights and optimizer unchanged, and gives up after
    `max_skipped_steps` in a row, "stop" gives up at the first: both only decide when a run ends.

    Measuring. A loss `loss_spike` standard deviations above its mean over about 100 steps is logged with its sample
    keys (None: never). `tensorboard` also writes event files, to `tensorboard/` beside the metrics. Every
    `validate_every` steps (None: never) the losses of `validation_batches` held-out batches (of
    `DataConfig.validation_share`, which is in the fingerprint), zero-shot retrieval among their images and clips, and
    grounding of their boxes are measured. Every step is seeded anew, so measuring moves nothing. `record_samples`
    writes samples.parquet at the end, or above 10^8 samples what it follows from; the record can be computed for any
    step later.

    Machines. `checkpoint_vision_blocks`: every k-th block of the image tower is recomputed in the backward pass instead
    of being kept; 0: none. It trades time for memory and gives the same numbers, dropout included. `cpu_threads` of
    every process: a property of the machine, as the kind of GPU is; on a CPU another number of threads may change the
    last bit of a sum, on a GPU nothing. `min_workers`: the fewest processes with which a run of
    `PretrainConfig.world_size` goes on when machines are missing (None: only with all). Of the processes that there is
    room for, as many train as divide every batch; the others wait. The samples of a step stay, and every metrics line
    and checkpoint records the number. `readers` processes per trainer prefetch; None: its part of the machine's cores
    on a GPU machine, none on a CPU. Shards of an object store are copied below `shard_cache` (None: the machine's
    folder for temporary files), together at most `shard_cache_bytes` (None: no limit). At most `max_failures` lost
    workers within `failure_window_hours` are replaced; one more ends the run. `cpus_per_worker` and `placement` are
    passed to Ray unchanged.
    """

    log_every: int = Field(default=50, ge=1)
    steps_ahead: int | None = Field(default=None, ge=0)
    stall_seconds: float | None = Field(default=300.0, gt=0, allow_inf_nan=False)
    profile_steps: tuple[int, int] | None = None
    checkpoint_every: int | None = Field(default=1_000, ge=1)
    checkpoint_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    keep_checkpoints: int = Field(default=2, ge=1)
    on_nonfinite: Literal["skip", "stop"] = "skip"
    max_skipped_steps: int = Field(default=10, ge=1)
    validate_every: int | None = Field(default=None, ge=1)
    validation_batches: int = Field(default=8, ge=1)
    record_samples: bool = True
    checkpoint_vision_blocks: int = Field(default=0, ge=0)
    cpu_threads: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    readers: int | None = Field(default=None, ge=0)
    shard_cache: str | None = None
    shard_cache_bytes: int | None = Field(default=None, gt=0)
    max_failures: int = Field(default=3, ge=0)
    failure_window_hours: float = Field(default=24.0, gt=0, allow_inf_nan=False)
    cpus_per_worker: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    store_retry_seconds: float = Field(default=900.0, gt=0, allow_inf_nan=False)
    keep_every: int | None = Field(default=None, ge=1)
    loss_spike: float | None = Field(default=6.0, gt=0, allow_inf_nan=False)
    tensorboard: bool = False

    @property
    def collective_seconds(self) -> float:
        """Time-out of a collective operation, in seconds.

        A rank waits in one for the slowest rank, so it must outlast what the watchdog allows that rank in a first step:
        the watchdog then ends the run, and says which rank was behind. A week if `stall_seconds` sets no limit.
        """
        if self.stall_seconds is None:
            return 7 * 24 * 3600.0
        return max(LEAST_COLLECTIVE_SECONDS, START_ALLOWANCE * self.stall_seconds + 60)

    @model_validator(mode="after")
    def _is_saved(self) -> "TrainRuntime":
        if self.checkpoint_every is None and self.checkpoint_minutes is None:
            raise ValueError("checkpoint_every or checkpoint_minutes: without both a failure loses the whole run")
        return self

    @model_validator(mode="after")
    def _profile_has_an_order(self) -> "TrainRuntime":
        if self.profile_steps and not 0 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps {self.profile_steps} must be (first, last) with 0 <= first <= last")
        return self

    def execution(self, config: ExecutionConfig) -> ExecutionConfig:
        """`config` with the memory that this machine trades for time."""
        return config.model_copy(update={"checkpoint_vision_blocks": self.checkpoint_vision_blocks})


def refuse_moved(config: type[BaseModel], values: Any) -> None:
    """pydantic's ValidationError if the mapping `values` holds a setting that `TrainRuntime` has now."""
    if isinstance(values, Mapping) and (found := [name for name in MOVED if name in values]):
        problems = [field_problem((name,), _new_place(name)) for name in found]
        raise ValidationError.from_exception_data(config.__name__, problems)


def _new_place(name: str) -> str:
    return (
        f"is `train_runtime.{name}` now: it changes no result of a step, so it is no part of the fingerprint. Write "
        f"`train_runtime: {{{name}: ...}}` at the top of the experiment"
    )
