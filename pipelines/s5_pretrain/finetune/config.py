"""Configuration of the finetune stage."""

from x2vlm.tasks.training.config import FinetuneConfig, TaskChoice


class FinetuneNodeConfig(TaskChoice):
    """A task, its options, and how it is learned. Rows come from the split `train` of the task data."""

    finetune: FinetuneConfig = FinetuneConfig()

    @property
    def world_size(self) -> int:
        """Processes of the training."""
        return self.finetune.world_size

    def sharing_problem(self, number: int) -> str | None:
        """Why `number` processes cannot share a batch; None if they can."""
        size = self.finetune.batch_size
        return f"{number} processes cannot share a batch of {size} rows" if size % number else None

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the task data that the node reads."""
        return ("train", *self.finetune.selection_splits)
