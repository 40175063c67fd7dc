"""A task learned on a few examples without the training loop: its rows, batches, losses and a plain optimizer."""

from collections.abc import Sequence
from typing import Any

import torch

from tests.support.models.tasks import VOCABULARY, load
from x2vlm.data.loading.config import AugmentConfig
from x2vlm.data.task_examples import Example
from x2vlm.data.text.tokenizer import WordPieceTokenizer
from x2vlm.inference.processor import processor_for
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import X2VLM
from x2vlm.tasks.task import LossContext, Task
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.tasks.training.loader import TaskLoader
from x2vlm.tasks.training.objective import LABEL
from x2vlm.train.ranks import Ranks


def new_model(base: X2VLM, task: Task, options: Any, labels: Sequence[str]) -> TaskModel:
    """The model that a fine-tuning of `task` starts from."""
    assert task.training is not None
    torch.manual_seed(8)
    model = TaskModel(base, task.training.head(len(labels), options))
    if task.training.start_head is not None:
        task.training.start_head(model)
    return model


def loader(model: TaskModel, task: Task, options: Any, examples: Sequence[Example], batch_size: int) -> TaskLoader:
    assert task.training is not None
    processor = processor_for(model.config, WordPieceTokenizer(VOCABULARY))
    return TaskLoader(examples, task.training, options, processor, load, batch_size, 1, AugmentConfig(min_area=0.9))


def batch_of(
    model: TaskModel, task: Task, options: Any, examples: Sequence[Example], batch_size: int, step: int = 0
) -> TaskBatch:
    batch: TaskBatch = loader(model, task, options, examples, batch_size)[step].batches[LABEL]
    return batch


def loss_of(model: TaskModel, task: Task, options: Any, labels: Sequence[str], batch: TaskBatch) -> torch.Tensor:
    """The losses of a batch, summed."""
    assert task.training is not None
    context = LossContext(torch.Generator().manual_seed(0), labels, Ranks(), 0)
    return torch.stack(list(task.training.losses(model, batch, options, context).values())).sum()


def learn(
    model: TaskModel, task: Task, options: Any, examples: Sequence[Example], labels: Sequence[str], steps: int
) -> list[float]:
    """The loss of each step."""
    batches = loader(model, task, options, examples, len(examples))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        loss = loss_of(model, task, options, labels, batches[step].batches[LABEL])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
