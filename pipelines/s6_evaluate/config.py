"""What an evaluation node decides."""

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
