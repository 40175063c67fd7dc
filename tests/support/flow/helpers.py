"""Runs of the toy graph and views of a store, for tests of the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.flow.run.events import Event
from pipelines.flow.run.executor import RunResult, run
from pipelines.flow.run.planner import Plan, plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Graph
from pipelines.flow.store.store import Store


def run_all(graph: Graph, store: Store, experiment: str = "exp", **options: Any) -> RunResult:
    """Plan and run a graph in this process."""
    planning = {name: options.pop(name) for name in ("targets", "force") if name in options}
    return run(
        graph, plan(graph, store, experiment, **planning), store, options.pop("runner", InlineRunner()), **options
    )


def actions(planned: Plan) -> dict[str, str]:
    return {node.key: str(node.action) for node in planned.selected}


def roots(result: RunResult) -> dict[str, str]:
    return {key: event.manifest.root for key, event in result.nodes.items()}


def committed_tree(root: Path) -> dict[str, bytes]:
    """Every file of committed parts except part.json, whose `seconds` differ between runs."""
    parts = root / "parts"
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(parts.rglob("*"))
        if path.is_file() and path.name != "part.json"
    }


def snapshot(root: Path, *folders: str) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file below the folders of a store."""
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }


class Recorder:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def counting(store: Store) -> tuple[Store, dict[str, int]]:
    """The store, and how often each of its primitive operations was called from now on."""
    counts: dict[str, int] = {}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return function(*args, **kwargs)

        return call

    for name in ("read", "write", "create", "exists", "find", "delete"):
        setattr(store.blobs, name, counted(name, getattr(store.blobs, name)))
    return store, counts
