"""Trainings under way that the settings of an experiment would leave behind: told before anything runs."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.flow.run.events import Action
from pipelines.flow.run.planner import Plan, PlannedNode
from pipelines.flow.stage import Graph
from pipelines.flow.store.store import Store
from pipelines.s5_pretrain.runs import STAGE, TrainingRun, runs_of

NUM_SHOWN = 5  # settings that differ


def abandoned_trainings(graph: Graph, planned: Plan, store: Store) -> list[str]:
    """For every training that would begin at step 0 though one of its node has steps: which one, and two remedies."""
    warnings = []
    for node in planned.selected:
        if graph[node.key].stage.name == STAGE and node.action is not Action.REUSE and not node.forced:
            left = _left_behind(graph, node, store)
            if left is not None:
                warnings.append(_warning(graph, node.key, left))
    return warnings


def _left_behind(graph: Graph, node: PlannedNode, store: Store) -> TrainingRun | None:
    """The unfinished training of the node with most steps; None if it would be gone on with, or there is none."""
    if graph[node.key].sources.get("start_run"):
        return None  # a branch
    runs = [run for run in runs_of(store, node.key) if run.steps() > 0]
    planned = {part.fingerprint for part in node.parts}
    config = graph[node.key].config.model_dump(mode="json")
    # Before its inputs are there a training's fingerprint is not known, but its settings are.
    if any(run.fingerprint in planned if planned else run.config == config for run in runs):
        return None
    finished = store.has_parts(STAGE, [run.fingerprint for run in runs])
    return max(
        (run for run in runs if run.fingerprint not in finished), key=lambda run: (run.steps(), run.path), default=None
    )


def _warning(graph: Graph, key: str, run: TrainingRun) -> str:
    steps = run.steps()
    changes = list(_differences(run.config, graph[key].config.model_dump(mode="json")))
    more = f" and {len(changes) - NUM_SHOWN} more" if len(changes) > NUM_SHOWN else ""
    why = f"these settings differ: {', '.join(changes[:NUM_SHOWN])}{more}" if changes else "its data or code changed"
    return (
        f"{key} would begin at step 0 and abandon its training of {steps:,} steps ({run.uri}), because {why}. To go on "
        "with it, undo the edit; to go on from its weights with the new settings, branch off it: write "
        f"`start: {{run: {key}, step: {steps}}}` into the same section. What it has saved stays either way"
    )


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """`<setting> <old> -> <new>` of every setting that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in sorted({*before, *now}):
            yield from _differences(before.get(name), now.get(name), f"{path}.{name}" if path else str(name))
    elif before != now:
        yield f"{path} {before} -> {now}"
