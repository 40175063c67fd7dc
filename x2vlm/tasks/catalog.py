"""Every downstream task, one line each: what experiments, the evaluation and its checks derive from.

Reading this file imports no task, and so no torch. A task is a file beside this one with a `Task` at its bottom, its
options in `x2vlm.tasks.config`, and a line here.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from x2vlm.config import FrozenConfig, did_you_mean
from x2vlm.tasks.config import (
    AttributesConfig,
    CaptioningConfig,
    ClassificationConfig,
    GroundingConfig,
    RetrievalConfig,
    VqaConfig,
    WeakGroundingConfig,
    WinogroundConfig,
)

if TYPE_CHECKING:
    from x2vlm.tasks.task import Task


@dataclass(frozen=True)
class TaskSpec:
    """What is known of a task before it is imported.

    Bump `version` whenever the same samples and options may give other numbers, and when a default of the options
    changes: then the evaluations of this task are made again, and no others.
    """

    name: str
    version: int
    config_type: type[FrozenConfig]  # of the options that an experiment may give
    headline: str  # name of the metric that sums it up
    implementation: str  # "<module>:<name>" of its `Task`

    def load(self) -> "Task":
        """The task itself; imports torch."""
        module, _, name = self.implementation.partition(":")
        task: Task = getattr(importlib.import_module(module), name)
        return task


TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec("retrieval", 2, RetrievalConfig, "mean_recall", "x2vlm.tasks.retrieval:RETRIEVAL"),
        TaskSpec("vqa", 1, VqaConfig, "accuracy", "x2vlm.tasks.answering.vqa:VQA"),
        TaskSpec("grounding", 2, GroundingConfig, "accuracy", "x2vlm.tasks.grounding:GROUNDING"),
        TaskSpec("captioning", 1, CaptioningConfig, "cider", "x2vlm.tasks.captioning:CAPTIONING"),
        TaskSpec("classification", 1, ClassificationConfig, "accuracy", "x2vlm.tasks.classification:CLASSIFICATION"),
        TaskSpec("weak_grounding", 1, WeakGroundingConfig, "accuracy", "x2vlm.tasks.weak_grounding:WEAK_GROUNDING"),
        TaskSpec("winoground", 1, WinogroundConfig, "group_score", "x2vlm.tasks.winoground:WINOGROUND"),
        TaskSpec("attributes", 1, AttributesConfig, "map_all", "x2vlm.tasks.attributes:ATTRIBUTES"),
    )
}


def task_spec(name: str) -> TaskSpec:
    """The task of that name; ValueError, with the nearest known name, if there is none."""
    if name not in TASKS:
        raise ValueError(f"no task is called {name!r}; {did_you_mean(name, TASKS)}")
    return TASKS[name]
