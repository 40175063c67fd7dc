"""The losses of a task in the training loop of pre-training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from x2vlm.data.randomness import derive_seed
from x2vlm.errors import ConfigError
from x2vlm.tasks.task import LossContext, TaskTraining
from x2vlm.tasks.training.batch import TaskBatch
from x2vlm.train.step import StepObjective, Trainer, precision_of

if TYPE_CHECKING:
    from x2vlm.data.loading.loader import StepData

LABEL = "task"  # of the only stream


class FineTuning(StepObjective):
    """The losses of `training`, summed. With `accumulate` the rows of a process run in that many chunks.

    A loss that compares the rows of a batch with each other (`TaskTraining.compares_rows`) cannot run in chunks:
    ConfigError. `prepared` is what `training.before` made of the training examples.
    """

    def __init__(
        self,
        training: TaskTraining,
        options: Any,
        labels: Sequence[str] = (),
        accumulate: int = 1,
        prepared: Any = None,
    ) -> None:
        if accumulate > 1 and training.compares_rows:
            raise ConfigError(
                "finetune.accumulate: this task compares the rows of a batch with each other, so chunks of it would "
                "learn something else; take a smaller batch_size or more processes"
            )
        self._training, self._options, self._accumulate = training, options, accumulate
        self._labels, self._prepared = labels, prepared

    def backward(self, trainer: Trainer, batches: Mapping[str, TaskBatch], data: StepData) -> dict[str, Tensor]:
        """As `StepObjective.backward`."""
        (batch,) = batches.values()
        if self._accumulate == 1:
            losses = self._losses(trainer, batch, data.step, 0)
            trainer.gradients.begin(tuple(losses))
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            return losses
        trainer.gradients.begin("chunks", several=True)
        summed: dict[str, Tensor] = {}
        chunks = self._training.chunks(batch, self._accumulate)
        for number, chunk in enumerate(chunks):
            fraction = chunk.num_rows / batch.num_rows
            losses = {name: fraction * loss for name, loss in self._losses(trainer, chunk, data.step, number).items()}
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                summed[name] = summed.get(name, torch.zeros_like(loss)) + loss.detach()
        return summed

    def work(self, trainer: Trainer, loader: Any, data: StepData) -> dict[str, float]:
        """Rows, images and tokens. FLOPs are not counted for tasks."""
        batch = cast(TaskBatch, next(iter(data.batches.values())))
        images = sum(item.shape[:-3].numel() for name, item in batch.tensors.items() if name.startswith("pixels"))
        mask = batch.tensors.get("mask")
        tokens = 0.0 if mask is None else float((mask != 0).sum())
        counts = {"texts": float(batch.num_rows), "images": float(images), "tokens": tokens}
        return counts | {"executed_flops": 0.0, "reference_flops": 0.0}

    def _losses(self, trainer: Trainer, batch: TaskBatch, step: int, chunk: int) -> dict[str, Tensor]:
        context = LossContext(
            generator=torch.Generator(trainer.ranks.device).manual_seed(
                derive_seed(trainer.seed, "task", step, trainer.ranks.rank, chunk)
            ),
            labels=self._labels,
            ranks=trainer.ranks,
            step=step,
            prepared=self._prepared,
        )
        with precision_of(trainer):
            losses = self._training.losses(trainer.model, batch, self._options, context)  # type: ignore[arg-type]
        return {f"{LABEL}/{name}": loss for name, loss in losses.items()}
