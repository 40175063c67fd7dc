"""What an evaluation node decides, and where on a machine its files lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic

from x2vlm.tasks.training.config import TaskChoice


class EvaluateConfig(TaskChoice):
    """A task on one split. `split`: of the task data; "" on a held-out source.

    `card`, `card_split`: the card of the data and what it calls the split, by which published numbers are found; "" for
    own data. `known_as`: names under which the search for test images in the training data may know the split.
    """

    batch_size: int = pydantic.Field(default=32, gt=0)
    split: str = ""
    card: str = ""
    card_split: str = ""
    known_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationFiles:
    """Local paths of what an evaluation reads; a process that shares the work gets this.

    `model` by file name. Of a task's own data `examples` and `labels`, of a held-out source `rows`. `media`: packs,
    each with its index.
    """

    config: EvaluateConfig
    model: Mapping[str, Path]
    examples: tuple[Path, ...] = ()
    labels: Path | None = None
    rows: tuple[Path, ...] = ()
    media: tuple[tuple[Path, Path], ...] = ()
