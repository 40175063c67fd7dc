"""Configuration of training: duration, optimizer, losses, checkpoints.

Without importing torch, so that planning a run need not wait for it.
"""

from typing import Literal

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig
from x2vlm.models.execution import ExecutionConfig
from x2vlm.objectives.config import ObjectiveConfig, Parity


class OptimizerConfig(FrozenConfig):
    """Learning rates and AdamW settings of one run; the defaults are the published base 4M recipe."""

    lr: float = Field(default=1e-4, gt=0)
    lr_multiplier: float = Field(default=2.0, gt=0)
    # Learning rates by tower; they override the multiplier, so new cross-attention inside the text stack gets text_lr.
    vision_lr: float | None = None
    text_lr: float | None = None
    cross_lr: float | None = None
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    # "reference" is the AdamW of transformers the paper used, "torch" is torch.optim.AdamW.
    adamw: Literal["reference", "torch"] = "reference"
    # One kernel per group for adamw="torch". Without it every step synchronises to decide whether it is skipped.
    fused: bool = True


class TrainConfig(FrozenConfig):
    """Duration and settings of training; the defaults are the released base 4M recipe.

    `stop_matching_at`: no matching loss from that step on. `matching_follows` names the stream whose batch decides for
    all streams whether a step has the matching loss (the reference's noisy phase: no aux image batch, no matching of
    regions either); None: each stream decides for itself. `execution` and `cpu_threads` change the order of sums, and
    so the last bits of results. `on_nonfinite`: handling of a step with non-finite losses or gradients; "skip" leaves
    weights and optimizer unchanged, and gives up after `max_skipped_steps` in a row. `gradient_dtype` is the dtype of
    the all-reduce; bfloat16 halves the bytes and rounds every gradient to 8 bits. Every `validate_every`
    steps the losses of `validation_batches` held-out batches (see `DataConfig.validation_share`) and zero-shot
    retrieval among their image rows are measured; None: never. `rate_parity: reference` takes the reference's formula
    for `min_rate`, which jumps above the learning rate after the warm-up and ends above the minimum.
    retrieval among their image rows are measured; None: never. `accumulate` cuts the rows of a process into that many
    chunks that run one after the other: the same losses and gradients as at once, also of the contrastive loss and of
    negatives from the whole batch, with the memory of a chunk, for one more forward pass of the towers
    (`x2vlm.objectives.accumulation`). Dropout is drawn anew for each number of chunks.
    """

    steps: int = Field(default=500_000, ge=1)
    warmup_steps: int = Field(default=2_500, ge=0)
    min_rate: float = Field(default=0.0, ge=0, le=1)
    rate_parity: Parity = "fixed"
    clip_norm: float = Field(default=1.0, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    execution: ExecutionConfig = ExecutionConfig()
    stop_matching_at: int | None = Field(default=None, ge=0)
    matching_follows: str | None = None
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = Field(default=1, ge=1)
    on_nonfinite: Literal["skip", "stop"] = "skip"
    max_skipped_steps: int = Field(default=10, ge=1)
    cpu_threads: int = Field(default=1, ge=1)
    checkpoint_every: int = Field(default=1_000, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    validate_every: int | None = Field(default=None, ge=1)
    validation_batches: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "TrainConfig":
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is more than steps ({self.steps})")
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
    """Logging, placement and loader processes of a run. Nothing here changes a weight, so it is not in any fingerprint.

    `log_every`: steps between two lines on the console; the metrics file has every step. `steps_ahead`: how many steps
    the host may queue before it reads the metrics of the first; None: 1 on a GPU, 0 on a CPU. `stall_seconds` without
    progress end the run with an error that names the slowest rank (the first step may take five times as long: it
    compiles); None: no limit. `profile_steps` = (first, last) writes a torch profile of these steps.
    `readers` processes per trainer prefetch; None: its part of the cores on a GPU machine, none on a CPU.
    Shards of an object store are copied below `shard_cache` (None: the machine's folder for temporary files), together
    at most `shard_cache_bytes` (None: no limit). `max_failures` lost workers are replaced before the run fails.
    `cpus_per_worker` and `placement` are passed to Ray unchanged.
    A call to the object store that fails in transport is tried again for `store_retry_seconds`; training goes on
    meanwhile. `keep_every`: of every so many steps the first checkpoint is never removed (None: only the newest are
    kept). A loss `loss_spike` standard deviations above its mean over about 100 steps is logged with its sample keys
    (None: never). `tensorboard` also writes event files, to `tensorboard/` beside the metrics.
    """

    log_every: int = Field(default=50, ge=1)
    steps_ahead: int | None = Field(default=None, ge=0)
    stall_seconds: float | None = Field(default=300.0, gt=0)
    profile_steps: tuple[int, int] | None = None
    readers: int | None = Field(default=None, ge=0)
    shard_cache: str | None = None
    shard_cache_bytes: int | None = Field(default=None, gt=0)
    max_failures: int = Field(default=3, ge=0)
    cpus_per_worker: float = Field(default=1.0, gt=0)
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    store_retry_seconds: float = Field(default=900.0, gt=0)
    keep_every: int | None = Field(default=None, ge=1)
    loss_spike: float | None = Field(default=6.0, gt=0)
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
    def _profile_has_an_order(self) -> "TrainRuntime":
        if self.profile_steps and not 0 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise ValueError(f"profile_steps {self.profile_steps} must be (first, last) with 0 <= first <= last")
        return self
