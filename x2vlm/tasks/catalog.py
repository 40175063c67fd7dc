"""All downstream tasks by name."""

from x2vlm.tasks.grounding import GROUNDING
from x2vlm.tasks.retrieval import RETRIEVAL
from x2vlm.tasks.task import Task

TASKS: dict[str, Task] = {"retrieval": RETRIEVAL, "grounding": GROUNDING}
