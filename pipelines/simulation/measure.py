"""Drives a scenario and measures what the driver spends on it, node by node; and a second time, with nothing to do."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.flow.run.events import Event, NodeFinished, NodeStarted, PartDone
from pipelines.flow.run.executor import run
from pipelines.flow.run.finishing import reused
from pipelines.flow.run.planner import explain, plan
from pipelines.flow.store.manifests.paged import PagedParts
from pipelines.flow.store.store import Store
from pipelines.simulation.object_store import PROTOCOL
from pipelines.simulation.outputs import Outputs
from pipelines.simulation.parts import SimulatedRunner
from pipelines.simulation.scenario import Scenario

NAME = "simulation"  # of the experiment in references and leases


@dataclass
class NodeCost:
    """What one node cost. Seconds are CPU seconds of the driver, without those of made-up parts and of the store.

    `peak_bytes` is the largest memory of the process while it planned, drove and finished the node.
    """

    node: str
    parts: int = 0
    planning: float = 0.0
    driving: float = 0.0
    finishing: float = 0.0
    peak_bytes: int = 0
    manifest_bytes: int = 0
    output_bytes: int = 0
    largest_pickle: int = 0
    driver_requests: Mapping[str, int] = field(default_factory=dict)
    worker_requests: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Measurement:
    """One size. `rerun_*` are of a process of its own that finds everything finished."""

    parts: int
    rows: int
    shards: int
    nodes: list[NodeCost]
    start_bytes: int  # memory of the process before anything was planned
    rerun_seconds: float = 0.0
    rerun_start_bytes: int = 0
    rerun_peak_bytes: int = 0
    rerun_requests: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Measurement":
        """From `as_json`."""
        return cls(**{**values, "nodes": [NodeCost(**node) for node in values["nodes"]]})


class _Watch:
    """Attributes what happened since the last event to the node of the next one."""

    def __init__(self, store: Store, runner: SimulatedRunner) -> None:
        self.nodes: dict[str, NodeCost] = {}
        self._fs, self._runner, self._bucket_path = store.blobs.fs, runner, store.blobs.path_of
        self._seconds, self._requests = self._used(), self._asked()
        reset_peak()

    def __call__(self, event: Event) -> None:
        seconds, requests = self._used(), self._asked()
        spent, asked = seconds - self._seconds, requests - self._requests
        self._seconds, self._requests = seconds, requests
        key = getattr(event, "node", None)
        if key is None:
            return
        node = self.nodes.setdefault(key, NodeCost(key))
        node.driver_requests = dict(Counter(node.driver_requests) + asked)
        match event:
            case NodeStarted():
                node.planning, node.parts = spent, event.num_parts
            case PartDone():
                node.driving += spent
            case NodeFinished():
                node.finishing += spent
                node.manifest_bytes = self._fs.stored_bytes(self._bucket_path(event.manifest_path.removesuffix("json")))
                node.output_bytes = _output_bytes(event)
                node.worker_requests = dict(self._runner.requests[key])
                node.largest_pickle = self._runner.largest_pickle[key]
        if isinstance(event, NodeStarted | NodeFinished):
            node.peak_bytes = max(node.peak_bytes, peak_bytes())
            reset_peak()

    def _asked(self) -> Counter[str]:
        return Counter(self._fs.requests) - self._runner.all_requests

    def _used(self) -> float:
        return float(time.process_time() - self._fs.seconds - self._runner.seconds)


def store_of(folder: Path) -> Store:
    """The store of a simulation in `folder`."""
    return Store(f"{PROTOCOL}://store/x2vlm", {"database": str(folder / "objects.sqlite")})


def drive(scenario: Scenario, folder: Path) -> Measurement:
    """Run every node of a scenario into an empty store in `folder`."""
    graph, store = scenario.graph(), store_of(folder)
    scenario.lay_upstream(graph, store)
    runner = SimulatedRunner(store, Outputs(scenario.rows_of_cards, scenario.key_ranges(graph)))
    start = peak_bytes()
    planned = plan(graph, store, NAME)
    watch = _Watch(store, runner)
    try:
        run(graph, planned, store, runner, watch)
    finally:
        runner.close()
    nodes = _few(scenario, [watch.nodes[key] for key in graph])
    return Measurement(scenario.parts, scenario.rows, scenario.num_shards, nodes, start)


def _few(scenario: Scenario, nodes: Sequence[NodeCost]) -> list[NodeCost]:
    """The nodes of the large source and of all sources together; those of every other source added up in the first."""
    others = {name for name in scenario.experiment.sources if name != scenario.source}
    rest = NodeCost("other sources")
    kept = []
    for node in nodes:
        if node.node.partition("/")[2] not in others:
            kept.append(node)
            continue
        for name in ("parts", "planning", "driving", "finishing", "manifest_bytes", "output_bytes"):
            setattr(rest, name, getattr(rest, name) + getattr(node, name))
        for name in ("peak_bytes", "largest_pickle"):
            setattr(rest, name, max(getattr(rest, name), getattr(node, name)))
        for name in ("driver_requests", "worker_requests"):
            setattr(rest, name, dict(Counter(getattr(rest, name)) + Counter(getattr(node, name))))
    return [rest, *kept]


def rerun(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """The fields `rerun_*` of a measurement: of a plan that finds everything finished."""
    graph, store = scenario.graph(), store_of(folder)
    fs = store.blobs.fs
    reset_peak()
    start = peak_bytes()
    started, before = time.process_time() - fs.seconds, Counter(fs.requests)
    planned = plan(graph, store, NAME)
    assert planned.is_noop, "\n".join(explain(planned))
    assert reused(planned, store) is not None
    seconds = time.process_time() - fs.seconds - started
    return {
        "rerun_seconds": seconds,
        "rerun_start_bytes": start,
        "rerun_peak_bytes": peak_bytes(),
        "rerun_requests": dict(Counter(fs.requests) - before),
    }


def reset_peak() -> None:
    """Let `peak_bytes` begin anew, where the kernel can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """The largest resident memory since `reset_peak`, or since the process began; 0 where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _output_bytes(event: NodeFinished) -> int:
    parts = event.manifest.parts
    if isinstance(parts, PagedParts):
        return parts.num_bytes
    return sum(file.bytes for part in parts for file in part.record.files)
