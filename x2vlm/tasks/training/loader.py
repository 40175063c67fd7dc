"""The batches of any step of a fine-tuning, for any rank of any world size: a pure function of the step.

As in pre-training (`x2vlm.data.loading.loader`), resuming needs no state. A pass is a permutation of the task's rows;
step s of global batch size B takes places s x B to (s + 1) x B - 1 of the endless sequence of passes, so nothing is
left out at the end of a pass. Crop, mirror and operations of a row are drawn from (seed, pass, row). A row whose media
cannot be decoded is replaced by another one that depends on its place alone, and both are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from x2vlm.data.loading.config import AugmentConfig
from x2vlm.data.loading.loader import StepData, Substitute
from x2vlm.data.loading.orders.permutation import permuted
from x2vlm.data.randomness import Draws
from x2vlm.data.task_examples import Example
from x2vlm.errors import ConfigError, InvalidSample
from x2vlm.tasks.training.objective import LABEL
from x2vlm.tasks.training.rows import PreparedRow, RowPreparation

if TYPE_CHECKING:
    from x2vlm.inference.processor import Processor
    from x2vlm.inference.visuals import Visual
    from x2vlm.tasks.task import TaskTraining

MAX_ATTEMPTS = 50  # consecutive unusable rows after which the media are considered broken


@dataclass(frozen=True)
class TaskStream:
    """The only stream of a fine-tuning, as the training loop asks for it."""

    batch_size: int
    label: str = LABEL
    loss_weight: float = 1.0
    match_main: bool = True
    negative_group_size: None = None


@dataclass(frozen=True)
class TaskTokens:
    """The only thing the training loop asks of how examples are made."""

    max_tokens: int


@dataclass(frozen=True)
class TaskLoaderConfig:
    """What the training loop asks of a loader's configuration."""

    seed: int
    streams: tuple[TaskStream, ...]
    examples: TaskTokens


class TaskLoader(Dataset[StepData]):
    """`loader[step]` is the data of rank `rank` of `world_size` in that step; calls are independent.

    `load(name)` decodes a name of `Example.media`. ConfigError unless `world_size` divides the batch, and if the task
    finds no rows in the examples.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        training: TaskTraining,
        options: Any,
        processor: Processor,
        load: Callable[[str], Visual],
        batch_size: int,
        seed: int,
        augment: AugmentConfig,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ConfigError(
                f"finetune.batch_size: {world_size} processes cannot share {batch_size} rows; change batch_size or "
                "world_size so that one divides the other"
            )
        self.examples, self.rows = examples, training.rows(examples, options)
        if not self.rows:
            raise ConfigError(f"none of the {len(examples)} training examples has a row for this task")
        self.rank, self.world_size, self.batch_size = rank, world_size, batch_size
        self.config = TaskLoaderConfig(seed, (TaskStream(batch_size),), TaskTokens(processor.config.max_tokens))
        self._training, self._options, self._processor, self._load = training, options, processor, load
        self._augment = augment

    def __getitem__(self, step: int) -> StepData:
        substitutes: list[Substitute] = []
        size = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * size
        rows = [self._usable_row(place, substitutes) for place in range(first, first + size)]
        batch: Any = self._training.collate(rows, self._processor, self._options)
        return StepData(step, {LABEL: batch}, {LABEL: False}, substitutes)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of a pass over the rows, at least one."""
        return max(1, len(self.rows) // self.batch_size)

    def consumed(self, step: int) -> list[str]:
        """Example ids of all rows of a step over all ranks, before media that cannot be decoded are replaced."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self.examples[self.rows[self._row_at(place, 0)][0]].example_id for place in places]

    def _row_at(self, place: int, attempt: int) -> int:
        """The number of the row at a place; another one for every attempt, the same for all ranks."""
        epoch, number = divmod(place, len(self.rows))
        seed = self.config.seed
        if attempt:
            return Draws(seed, "substitute", place, attempt).integer(0, len(self.rows) - 1)
        return permuted(number, len(self.rows), seed, "order", epoch)

    def _usable_row(self, place: int, substitutes: list[Substitute]) -> PreparedRow:
        failed: list[tuple[str, str]] = []
        for attempt in range(MAX_ATTEMPTS):
            index, item = self.rows[self._row_at(place, attempt)]
            example = self.examples[index]
            try:
                media = [self._load(name) for name in example.media]
                draws = Draws(self.config.seed, "row", place // len(self.rows), example.example_id, item)
                preparation = RowPreparation(self._augment, self._processor.config.image_res, draws)
                row = self._training.prepare(example, item, media, preparation, self._options)
            except InvalidSample as error:
                failed.append((example.example_id, error.rule))
                continue
            substitutes += [Substitute(LABEL, key, rule, example.example_id) for key, rule in failed]
            return row
        raise ConfigError(f"{MAX_ATTEMPTS} training examples in a row are unusable, last {failed[-1]}")
