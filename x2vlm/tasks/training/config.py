"""What a fine-tuning decides; without importing torch.

Presets of the paper and the released files are in `x2vlm.tasks.presets`.
"""

from typing import Literal

import pydantic

from x2vlm.config import FrozenConfig
from x2vlm.data.loading.config import AugmentConfig
from x2vlm.train.config import OptimizerConfig


class LoraConfig(FrozenConfig):
    """Low-rank adapters on the attention projections of the towers, by peft; all but them and the head is frozen."""

    rank: int = pydantic.Field(default=8, ge=1)
    alpha: float = pydantic.Field(default=16.0, gt=0)
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)


class FinetuneConfig(FrozenConfig):
    """How a task is learned from its training split; the defaults are those of X-VLM's released retrieval recipe.

    `image_res`, `max_tokens`, `frames_per_clip`: None takes those of the pre-trained model. `warmup` and the epochs
    give the steps: a pass is `rows // batch_size` steps, rows as the task counts them. `selection`: which epoch's
    weights are kept, by the headline metric of the task on the validation split (the paper's scripts select on the
    test split in nine tasks: `reference`, labelled so in the result), or the `last`.
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
    clip_norm: float = pydantic.Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    accumulate: int = pydantic.Field(default=1, ge=1)  # chunks of a process's rows, one backward pass each
    seed: int = 42
    selection: Literal["validation", "reference", "last"] = "validation"
    select_from_epoch: int = pydantic.Field(default=0, ge=0)  # no epoch before it is measured (VQA: 2)
    lora: LoraConfig | None = None
    world_size: int = pydantic.Field(default=1, ge=1)
