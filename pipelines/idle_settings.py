"""Settings of an experiment that could not take effect: refused, with a word on where they belong.

A value that is accepted and then replaced, or that nothing reads, costs its author a run. What is known by the
experiment alone is refused when its file is loaded (`pipelines.experiment`), the rest when the graph is there.
"""

from typing import Any

import pydantic

from pipelines.experiment import Experiment, is_set
from pipelines.flow.stage import Graph
from x2vlm.config import did_you_mean
from x2vlm.errors import ConfigError

# Sections whose fields are those of the nodes of the stage of that name.
SECTIONS = ("download", "domains", "filter", "score", "decontaminate", "deduplicate", "partition", "pack")


def check_settings(experiment: Experiment, graph: Graph) -> None:
    """ConfigError for settings that no node of `graph` has, and for runtimes of stages without a node."""
    problems = [*_idle_fields(experiment, graph), *_idle_runtimes(experiment, graph)]
    if problems:
        raise ConfigError("\n".join([f"{experiment.name}: {len(problems)} problem(s)", *(f"  {p}" for p in problems)]))


def _idle_fields(experiment: Experiment, graph: Graph) -> list[str]:
    """A safety net under `experiment.FILLED_IN`: whatever the graph replaces in every node of a stage."""
    problems = []
    for section in SECTIONS:
        value: pydantic.BaseModel | None = getattr(experiment, section)
        if value is None:
            continue
        configs = [graph[key].config for key in graph if graph[key].stage.name == section]
        for name in type(value).model_fields:
            asked = getattr(value, name)
            if is_set(value, name) and not any(_counts(asked, getattr(config, name)) for config in configs):
                problems.append(
                    f"{section}.{name}: has no effect, because every source says otherwise; take it out, or take out "
                    "what the sources say"
                )
    return problems


def _counts(asked: Any, found: Any) -> bool:
    """Whether a node has what was asked for: that value, or all of it joined with others."""
    if isinstance(asked, tuple) and isinstance(found, tuple):
        return set(asked) <= set(found)
    return bool(asked == found)


def _idle_runtimes(experiment: Experiment, graph: Graph) -> list[str]:
    """Runtimes of stages that have no node; `pipelines.experiment` refuses those that do not exist."""
    stages = {graph[key].stage.name: graph[key].stage for key in graph}
    problems = []
    for name in experiment.runtime:
        if name not in stages:
            hint = did_you_mean(name, stages, "this experiment has the stages")
            problems.append(f"runtime.{name}: this experiment has no node of such a stage; {hint}")
    return problems
