"""What happens during a run, as values: progress bars, logs and lineage are made of these and of nothing else."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipelines.flow.store.artifact import Manifest, PartRecord


class Action(StrEnum):
    """What a node needs. PENDING: its inputs are not known yet. BLOCKED: something it reads failed."""

    REUSE = "REUSE"
    RESUME = "RESUME"
    RUN = "RUN"
    PENDING = "PENDING"
    BLOCKED = "BLOCKED"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events. `time` is the driver's clock in seconds since 1970, for people; nothing is ordered by it."""

    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class RunStarted(Event):
    experiment: str
    plan_fingerprint: str
    targets: tuple[str, ...]  # empty: the whole graph
    nodes: tuple[str, ...]  # keys, in order
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class NodePlanned(Event):
    """What the plan said of a node before the run; known parts only."""

    node: str
    action: Action
    reason: str
    fingerprint: str | None
    num_parts: int
    num_done: int


@dataclass(frozen=True, kw_only=True)
class NodeStarted(Event):
    """A node's inputs are there and some of its parts are missing.

    `live_series` is where in the store its numbers grow, step by step, while it runs; "" for a node without, or of
    several parts: their steps share one curve, and only the manifest says in which order.
    """

    node: str
    action: Action  # RESUME or RUN
    fingerprint: str
    num_parts: int
    num_done: int
    live_series: str = ""


@dataclass(frozen=True, kw_only=True)
class PartProgress(Event):
    """What a running part has done so far (see `live.Report`). Some get lost; they change nothing."""

    node: str
    part: str
    counters: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PartDone(Event):
    node: str
    part: str
    record: PartRecord
    num_done: int
    num_parts: int


@dataclass(frozen=True, kw_only=True)
class NodeFinished(Event):
    """A node has its manifest. `produced`: made by this run; `forced`: asked to run although it was there."""

    node: str
    action: Action  # REUSE, RESUME or RUN
    produced: bool
    forced: bool
    manifest: Manifest
    manifest_path: str  # relative to the store
    manifest_sha256: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class NodeFailed(Event):
    node: str
    part: str | None
    error: str  # with the original traceback


@dataclass(frozen=True, kw_only=True)
class NodeBlocked(Event):
    node: str
    by: str  # the failed node upstream


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    ok: bool
    error: str | None
    seconds: float


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class RunResult:
    """What a run did: the last event of every selected node, and how many parts were really run."""

    nodes: Mapping[str, NodeFinished]
    num_parts_run: int

    @property
    def is_noop(self) -> bool:
        return not any(event.produced for event in self.nodes.values())
