"""What a fine-tuning decides; without importing torch.

Presets of the paper and the released files are in `x2vlm.tasks.presets`.
"""

from typing import Any, Literal

import pydantic

from x2vlm.config import FrozenConfig, parse_field
from x2vlm.data.loading.config import AugmentConfig
from x2vlm.tasks.catalog import task_spec
from x2vlm.train.config import OptimizerConfig


class TaskChoice(FrozenConfig):
    """A task and its `options`, which are of the type that `x2vlm.tasks.catalog` gives for it."""

    task: str
    options: pydantic.SerializeAsAny[FrozenConfig] = pydantic.Field(default=FrozenConfig(), validate_default=True)

    @pydantic.field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        return task_spec(task).name

    @pydantic.field_validator("options", mode="plain")
    @classmethod
    def _options_fit_the_task(cls, options: Any, info: pydantic.ValidationInfo) -> FrozenConfig:
        if "task" not in info.data:  # that is the problem then
            return FrozenConfig()
        values = options.model_dump() if isinstance(options, FrozenConfig) else options
        return parse_field(task_spec(info.data["task"]).config_type, values)


class LoraConfig(FrozenConfig):
    """Low-rank adapters on the projections of all attention; everything but them and the task's head is frozen."""

    rank: int = pydantic.Field(default=8, ge=1)
    alpha: float = pydantic.Field(default=16.0, gt=0, allow_inf_nan=False)


class FinetuneConfig(FrozenConfig):
    """How a task is learned from its training split; the defaults are those of X-VLM's released retrieval recipe.

    `image_res`, `max_tokens`, `frames_per_clip`: None takes those of the pre-trained model. `warmup` and the epochs
    give the steps: a pass is `rows // batch_size` steps, rows as the task counts them. `selection`: which epoch's
    weights are kept, by the headline metric of the task on the validation split (the paper's scripts select on the
    test split in nine tasks: `reference`, labelled so in the result), or the `last`. `reference_splits`: the splits
    whose mean headline selects with `reference` (NLVR2: val and test).
    """

    epochs: int = pydantic.Field(default=10, ge=1)
    batch_size: int = pydantic.Field(default=128, ge=1)
    warmup: float = pydantic.Field(default=0.1, ge=0, le=1)  # fraction of all steps
    image_res: int | None = pydantic.Field(default=None, ge=16)
    max_tokens: int | None = pydantic.Field(default=None, ge=3)
    frames_per_clip: int | None = pydantic.Field(default=None, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-5)
    augment: AugmentConfig = AugmentConfig(min_area=0.5)
    drop_path: float | None = pydantic.Field(default=None, ge=0, lt=1)  # of text and fusion layers; None: the model's
    clip_norm: float = pydantic.Field(default=1.0, gt=0, allow_inf_nan=False)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    accumulate: int = pydantic.Field(default=1, ge=1)  # chunks of a process's rows, one backward pass each
    seed: int = 42
    selection: Literal["validation", "reference", "last"] = "validation"
    reference_splits: tuple[str, ...] = pydantic.Field(default=("test",), min_length=1)
    select_from_epoch: int = pydantic.Field(default=0, ge=0)  # no epoch before it is measured (VQA: 2)
    lora: LoraConfig | None = None
    world_size: int = pydantic.Field(default=1, ge=1)

    @pydantic.model_validator(mode="after")
    def _sizes_fit(self) -> "FinetuneConfig":
        if self.batch_size % self.world_size:
            raise ValueError(f"batch_size ({self.batch_size}) is no multiple of world_size ({self.world_size})")
        if self.selection != "last" and self.select_from_epoch >= self.epochs:
            raise ValueError(
                f"select_from_epoch ({self.select_from_epoch}) leaves none of {self.epochs} epochs, counted from 0"
            )
        return self

    @property
    def selection_splits(self) -> tuple[str, ...]:
        """The splits that decide which epoch is kept."""
        return {"validation": ("val",), "reference": self.reference_splits, "last": ()}[self.selection]
