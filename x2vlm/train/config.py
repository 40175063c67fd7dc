"""What an experiment decides about training: how long, how weights are moved, which losses, how often it is saved.

The loop and the optimizer import torch; planning a run must not wait for it.
"""

from typing import Literal

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig
from x2vlm.objective_config import ObjectiveConfig


class OptimizerConfig(FrozenConfig):
    """Rates of one run; the defaults are the published base 4M recipe."""

    lr: float = Field(default=1e-4, gt=0)
    lr_multiplier: float = Field(default=2.0, gt=0)
    # Rates by part; they win over the multiplier, so a new cross-attention inside the text stack gets text_lr.
    vision_lr: float | None = None
    text_lr: float | None = None
    cross_lr: float | None = None
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    # "reference" is the AdamW of transformers the paper used, "torch" is torch.optim.AdamW.
    adamw: Literal["reference", "torch"] = "reference"


class TrainConfig(FrozenConfig):
    """How long and how weights are moved; the defaults are the released base 4M recipe.

    `stop_matching_at`: no matching loss from that step on. `cpu_threads` changes the order of sums, and so the last
    bits of every result on CPU.
    """

    steps: int = Field(default=500_000, ge=1)
    warmup_steps: int = Field(default=2_500, ge=0)
    min_rate: float = Field(default=0.0, ge=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    stop_matching_at: int | None = Field(default=None, ge=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    cpu_threads: int = Field(default=1, ge=1)
    checkpoint_every: int = Field(default=1_000, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> "TrainConfig":
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) is more than steps ({self.steps})")
        return self
