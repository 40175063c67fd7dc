"""What a downstream task is: a value that can evaluate a model and say on which data it did so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from PIL import Image

from x2vlm.errors import InvalidSample
from x2vlm.samples import Sample

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.inference.processor import Processor
    from x2vlm.models.x2vlm import X2VLM


@dataclass(frozen=True)
class TaskResult:
    """`metrics` in percent unless a name says otherwise; `intervals` are 95 % bootstrap intervals of some of them.

    `measured_as` names the conventions behind the metrics where a task knows several: equal numbers of different
    conventions do not mean the same.
    """

    metrics: Mapping[str, float]
    predictions: pa.Table  # one row per example
    data_digest: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    num_examples: int = 0
    measured_as: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskContext:
    """What a task may use besides the model: held-out samples, their images, and the model's own processor."""

    samples: Sequence[Sample]
    load_image: Callable[[Sample], Image.Image]  # RGB, oriented
    processor: Processor  # makes images and texts what the model was trained on
    device: torch.device = torch.device("cpu")
    batch_size: int = 32


@dataclass(frozen=True)
class Task:
    """What a downstream task does; `x2vlm.tasks.catalog` says what it is called and which options it takes.

    Both functions get a value of the task's `config_type`. `finetune` is None for a zero-shot task.
    """

    evaluate: Callable[[X2VLM, Any, TaskContext], TaskResult]
    finetune: Callable[[X2VLM, Any, TaskContext], X2VLM] | None = None


def data_digest(example_ids: Sequence[str]) -> str:
    """sha256 over the sorted ids of all examples; equal digests mean the same questions were asked.

    Raises InvalidSample when an id occurs twice.
    """
    if len(set(example_ids)) != len(example_ids):
        twice = next(item for item in example_ids if example_ids.count(item) > 1)
        raise InvalidSample("duplicate_id", f"example {twice} occurs twice")
    return hashlib.sha256("\n".join(sorted(example_ids)).encode()).hexdigest()
