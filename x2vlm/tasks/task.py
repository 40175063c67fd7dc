"""What a downstream task is: how it evaluates a model, and how a model learns it.

A task is one small file that ends with a `Task`. What its examples look like is in `x2vlm.data.task_examples`; the
training loop, the order of rows, decoding and augmenting images are shared (`x2vlm.tasks.training`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from torch import Tensor

from x2vlm.data.task_examples import Example
from x2vlm.errors import InvalidSample
from x2vlm.models.downstream.config import HeadConfig
from x2vlm.samples import Sample
from x2vlm.train.ranks import Ranks

if TYPE_CHECKING:  # building a model imports timm and transformers; naming its type need not
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual
    from x2vlm.models.downstream.task_model import TaskModel
    from x2vlm.tasks.training.batch import TaskBatch
    from x2vlm.tasks.training.rows import PreparedRow, RowPreparation


@dataclass(frozen=True)
class TaskResult:
    """`metrics` in percent unless a name says otherwise; `intervals` are 95 % bootstrap intervals of some of them.

    `measured_as` names the conventions behind the metrics where a task knows several: equal numbers of different
    conventions do not mean the same. `submission`: the content of the file that a test server takes, by file name;
    where a split has no public answers `metrics` is empty and this is the result.
    """

    metrics: Mapping[str, float]
    predictions: pa.Table  # one row per example, first column `example_id`
    data_digest: str
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    num_examples: int = 0
    measured_as: Mapping[str, str] = field(default_factory=dict)
    submission: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskContext:
    """What a task may use besides the model: examples of one split, their media, and the model's own processor.

    `load(name)` decodes a name of `Example.media`: the image, or the evenly chosen frames of a clip. `labels` and
    `label_tags` as in `TaskData`. With several processes each calls `evaluate` with all examples, works on its part
    (`x2vlm.tasks.sharing`), and all return the same result.
    """

    examples: Sequence[Example]
    load: Callable[[str], Visual]
    processor: Processor  # makes images and texts what the model was trained on
    labels: Sequence[str] = ()
    label_tags: Sequence[Sequence[str]] = ()
    device: torch.device = torch.device("cpu")
    batch_size: int = 32
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class LossContext:
    """What a loss may use besides model and batch: random numbers of this step, the data's labels, other processes.

    `prepared`: what `TaskTraining.before` made.
    """

    generator: torch.Generator
    labels: Sequence[str]
    ranks: Ranks
    step: int
    prepared: Any = None


@dataclass(frozen=True)
class TaskTraining:
    """How a task is learned. Every function gets the task's options (a value of its `config_type`).

    `rows`: the rows of a pass over the training examples, as (number of the example, number within it): retrieval has
    one per caption. `prepare`: one row from its decoded media, with a crop, mirror and operations of its own draws.
    `collate`: a batch of rows. `losses`: by name, each a scalar; they are summed. `head`: the sizes of the head, None
    for the heads of pre-training; gets the number of labels of the data. `start_head`, if given, fills a new head
    from the base (the decoder of answers starts from the fusion layers). `before` makes once what the losses need of
    all training examples (self-critical captioning: in how many of them each word occurs).
    """

    rows: Callable[[Sequence[Example], Any], list[tuple[int, int]]]
    prepare: Callable[[Example, int, Sequence[Visual], RowPreparation, Any], PreparedRow]
    collate: Callable[[Sequence[PreparedRow], Processor, Any], TaskBatch]
    losses: Callable[[TaskModel, TaskBatch, Any, LossContext], dict[str, Tensor]]
    head: Callable[[int, Any], HeadConfig | None] = lambda num_labels, options: None
    start_head: Callable[[TaskModel], None] | None = None
    before: Callable[[Sequence[Example], Processor, Any], Any] = lambda examples, processor, options: None
    compares_rows: bool = False  # whether a loss compares the rows of a batch with each other
    chunks: Callable[[TaskBatch, int], list[TaskBatch]] = lambda batch, number: batch.chunks(number)


@dataclass(frozen=True)
class Task:
    """What a downstream task does; `x2vlm.tasks.catalog` says what it is called and which options it takes.

    `evaluate` gets the model, a value of the task's `config_type`, and its context. `training` is None for a task
    that is zero-shot only. `check` raises ConfigError, naming the file's row, for examples that do not fit options,
    labels or model, before the first batch. `from_samples(samples, options)`: the examples in held-out samples of the
    pipeline, their media named by sha256; None for a task whose questions samples do not hold.
    """

    evaluate: Callable[[TaskModel, Any, TaskContext], TaskResult]
    training: TaskTraining | None = None
    check: Callable[[Sequence[Example], Sequence[str], Any], None] = lambda examples, labels, options: None
    from_samples: Callable[[Sequence[Sample], Any], list[Example]] | None = None


def data_digest(example_ids: Sequence[str]) -> str:
    """sha256 over the sorted ids of all examples; equal digests mean the same questions were asked.

    Raises InvalidSample when an id occurs twice.
    """
    if len(set(example_ids)) != len(example_ids):
        twice = next(item for item in example_ids if example_ids.count(item) > 1)
        raise InvalidSample("duplicate_id", f"example {twice} occurs twice")
    return hashlib.sha256("\n".join(sorted(example_ids)).encode()).hexdigest()
