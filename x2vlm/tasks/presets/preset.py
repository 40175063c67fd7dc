"""What a preset is; without importing torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from x2vlm.config import parse_config
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.training.config import FinetuneConfig

# What every preset does otherwise than the released scripts, on purpose. An override takes each of it back.
OURS = (
    "weights are kept of the epoch that is best on the validation split, where nine of the released scripts look at "
    "the test split (`selection: reference`)",
    "bfloat16, where the released scripts train in float32 (`precision: float32`)",
    "gradients are clipped at a norm of 1, the released scripts do not clip (`clip_norm: 1.0e+9`)",
    "an image whose text says left or right is not mirrored, where the released scripts guard question answering and "
    "grounding only (`augment: {careful_flip: false}`)",
    "the frames of a clip are cut, mirrored and changed alike (`augment: {same_for_all_frames: false}`)",
)


@dataclass(frozen=True)
class Preset:
    """A setting of one task under a name.

    `source`: where its values were published. `assumed`: what that leaves open, and what stands here instead.
    `finetune` is None for a task that is evaluated as pre-trained. `options` are the task's own, of the type that
    `x2vlm.tasks.catalog` gives for it; those not named have its defaults. What all presets decide otherwise than the
    released scripts is in `OURS`.
    """

    name: str
    task: str
    source: str
    finetune: FinetuneConfig | None
    options: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def check(self) -> None:
        """ValueError for an unknown task, ConfigError, naming the preset, for options that its task does not take."""
        parse_config(task_spec(self.task).config_type, dict(self.options), f"preset {self.name}: options")
