"""Carries out a plan: nodes as their inputs become known, parts as there is room, manifests when all parts are there.

Scheduling, retries and placement are the runner's. This module decides only what is due next, and it decides it from
the store, so a plan that is a day old does no harm.
"""

import logging
import time
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from pipelines.flow.live import Counters
from pipelines.flow.run.events import (
    Action,
    Event,
    NodeBlocked,
    NodeFailed,
    NodeFinished,
    NodePlanned,
    NodeStarted,
    OnEvent,
    PartDone,
    PartProgress,
    RunFinished,
    RunResult,
    RunStarted,
)
from pipelines.flow.run.finishing import make_manifest
from pipelines.flow.run.part_task import PartOutcome, try_part
from pipelines.flow.run.planner import InputCache, NodeWork, Plan, PlannedNode, fingerprint_sources, work_of
from pipelines.flow.run.runner import Runner
from pipelines.flow.stage import Graph, Node, Part
from pipelines.flow.store.artifact import SealedManifest
from pipelines.flow.store.layout import state_folder
from pipelines.flow.store.lease import TTL_SECONDS, Lease, acquire
from pipelines.flow.store.manifests.journal import HeldRecords, Journal, journalled, known_records, open_journal
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store, make_ref
from x2vlm.errors import LeaseLost, StageFailed, X2VLMError

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 512  # parts of all nodes submitted at a time


def no_op(event: Event) -> None:
    """Does nothing with an event."""


def run(
    graph: Graph,
    plan: Plan,
    store: Store,
    runner: Runner,
    on_event: OnEvent = no_op,
    provenance: Mapping[str, Any] | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
    lease_seconds: float = TTL_SECONDS,
) -> RunResult:
    """Do what is due of the plan's selected nodes.

    PlanBusy if another driver holds the plan, LeaseLost if one has taken it over. When a part fails, whatever does not
    depend on it still finishes; then the first failure is raised as StageFailed with node, part and message, the
    original traceback as its note.
    """
    provenance = dict(provenance or {})
    started = time.monotonic()
    with acquire(store, plan.lease_name, lease_seconds) as lease:
        store.clean_scratch()
        keys = tuple(node.key for node in plan.selected)
        on_event(
            RunStarted(
                experiment=plan.experiment,
                plan_fingerprint=plan.fingerprint,
                targets=plan.targets,
                nodes=keys,
                provenance=provenance,
            )
        )
        error: BaseException | None = None
        try:
            state = _Run(graph, plan, store, runner, on_event, provenance, max_in_flight, lease)
            try:
                state.work()
            finally:
                state.note_done()
            if state.first_failure is not None:
                raise state.first_failure
        except BaseException as cause:
            error = cause
            raise
        finally:
            words = None if error is None else f"{type(error).__name__}: {error}"
            on_event(RunFinished(ok=error is None, error=words, seconds=time.monotonic() - started))
    return RunResult(state.outcomes, state.num_parts_run)


@dataclass
class _ActiveNode:
    """A node some of whose parts are still missing."""

    planned: PlannedNode
    work: NodeWork
    action: Action
    queue: deque[tuple[Part, str]]  # to submit
    records: HeldRecords  # by part fingerprint
    restore: HeldRecords
    num_distinct: int
    journal: Journal | None  # of a node of many parts
    in_flight: int = 0
    started: float = field(default_factory=time.monotonic)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class _Run:
    """The state of one run of a plan."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        store: Store,
        runner: Runner,
        on_event: OnEvent,
        provenance: Mapping[str, Any],
        max_in_flight: int,
        lease: Lease,
    ) -> None:
        self.graph, self.plan, self.store, self.runner = graph, plan, store, runner
        self.on_event, self.provenance, self.max_in_flight, self.lease = on_event, provenance, max_in_flight, lease
        self.sources = SourceHashes(store)
        self.inputs: InputCache = {}
        self.finished = {n.key: n.finished for n in plan.nodes if not n.selected and n.finished is not None}
        self.waiting = {node.key: node for node in plan.selected}
        self.active: dict[str, _ActiveNode] = {}
        self.handles: dict[Hashable, tuple[str, Part]] = {}
        self.unusable: dict[str, str] = {}  # failed or blocked node -> the failed node
        self.first_failure: StageFailed | None = None
        self.outcomes: dict[str, NodeFinished] = {}
        self.num_parts_run = 0

    def work(self) -> None:
        """Go on until nothing is left that can run."""
        fingerprint_sources(self.graph, self.waiting, self.sources)
        if self.on_event is not no_op:
            self.runner.listen(self._on_progress)
        for node in self.waiting.values():
            self.on_event(
                NodePlanned(
                    node=node.key,
                    action=node.action,
                    reason=node.reason,
                    fingerprint=node.fingerprint,
                    num_parts=len(node.parts),
                    num_done=node.num_done,
                )
            )
        while True:
            self.lease.check()
            self._start_what_is_ready()
            self._submit()
            if not self.handles:
                return
            for handle in self.runner.wait(list(self.handles)):
                self._collect(handle)

    def note_done(self) -> None:
        """Write down which parts of unfinished nodes are done, for whoever goes on."""
        for active in self.active.values():
            if active.journal is not None:
                active.journal.flush()

    def _start_what_is_ready(self) -> None:
        # Graph order: a node comes after all it reads, so one pass sees every node whose inputs are finished by now.
        for key in list(self.waiting):
            upstream = self.graph[key].upstream()
            if failed_inputs := [self.unusable[up] for up in upstream if up in self.unusable]:
                del self.waiting[key]
                self.unusable[key] = failed_inputs[0]
                self.on_event(NodeBlocked(node=key, by=failed_inputs[0]))
            elif all(up in self.finished for up in upstream):
                planned = self.waiting.pop(key)
                try:
                    self._start(planned)
                except X2VLMError as error:
                    self._fail(key, None, str(error), cause=error)

    def _start(self, planned: PlannedNode) -> None:
        node = self.graph[planned.key]
        upstream = {up: self.finished[up] for up in node.upstream()}
        work = work_of(node, self.store, upstream, self.sources, self.inputs)
        if work.is_complete and not planned.forced:
            assert work.finished is not None
            self._conclude(planned, work.finished, Action.REUSE, produced=False, seconds=0.0)
            return
        distinct = dict(zip(work.fingerprints, work.parts, strict=True))
        done = [fp for fp in distinct if fp in work.done and not planned.forced]
        parts = () if work.finished is None else work.finished.manifest.parts
        journal = open_journal(self.store, node.stage.name, work.fingerprint, len(distinct))
        noted = journalled(journal, done) if journal is not None and work.finished is None else iter(())
        records = known_records(self.store, node.stage.name, done, chain((part.record for part in parts), noted))
        missing = set(distinct).difference(records)
        restore = HeldRecords(part.record for part in parts if part.record.fingerprint in missing)
        queue = deque((part, fp) for fp, part in distinct.items() if fp not in records)
        action = Action.RESUME if records else Action.RUN
        active = _ActiveNode(planned, work, action, queue, records, restore, len(distinct), journal)
        self.on_event(
            NodeStarted(
                node=node.key,
                action=action,
                fingerprint=work.fingerprint,
                num_parts=len(distinct),
                num_done=len(records),
                live_series=self._live_series(node, list(distinct)),
            )
        )
        self.active[node.key] = active
        if not queue:
            self._finish(active)

    def _live_series(self, node: Node, fingerprints: list[str]) -> str:
        """Where in the store the node's numbers grow while it runs; "" if nowhere, or in several parts at once."""
        if node.stage.live_series is None or len(fingerprints) != 1:
            return ""
        return f"{state_folder(node.stage.name, fingerprints[0])}/{node.stage.live_series}"

    def _submit(self) -> None:
        for active in list(self.active.values()):
            node = active.work.node
            while active.queue and active.in_flight < node.runtime.max_in_flight:
                if len(self.handles) >= self.max_in_flight:
                    return
                part, fp = active.queue.popleft()
                arguments = (self.store, node.stage, node.config, part, active.restore.get(fp), active.planned.forced)
                try:
                    report = self.runner.reporter(node, part.name)
                    handle = self.runner.submit(node, try_part, *arguments, report)
                except X2VLMError as error:  # the runner has no place for it
                    self._fail(node.key, part.name, str(error), cause=error)
                    break
                self.handles[handle] = (node.key, part)
                active.in_flight += 1

    def _on_progress(self, key: str, part: str, counters: Counters) -> None:
        if key in self.active:
            self.on_event(PartProgress(node=key, part=part, counters=counters))

    def _collect(self, handle: Hashable) -> None:
        key, part = self.handles.pop(handle)
        active = self.active.get(key)
        try:
            outcome = self.runner.result(handle)
        except LeaseLost:
            raise
        except X2VLMError as error:
            outcome = PartOutcome(None, f"{type(error).__name__}: {error}")
        if outcome.record is not None:
            self.num_parts_run += 1
        if active is None:  # the node has failed meanwhile; what this part committed stays for the next run
            return
        active.in_flight -= 1
        if outcome.record is None:
            self._fail(key, part.name, outcome.error, outcome.trace)
            return
        active.records.add(outcome.record)
        if active.journal is not None:
            active.journal.add(outcome.record)
        self.on_event(
            PartDone(
                node=key,
                part=part.name,
                record=outcome.record,
                num_done=len(active.records),
                num_parts=active.num_distinct,
            )
        )
        if len(active.records) == active.num_distinct:
            try:
                self._finish(active)
            except X2VLMError as error:
                self._fail(key, None, str(error), cause=error)

    def _finish(self, active: _ActiveNode) -> None:
        work, seconds = active.work, time.monotonic() - active.started
        self.lease.check()
        times = {
            "started_at": active.started_at,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
        }
        manifest = make_manifest(work, active.records, {**self.provenance, **times})
        finished = SealedManifest(*self.store.write_manifest(manifest))
        if active.journal is not None:
            active.journal.clear()
        self.active.pop(work.node.key, None)
        self._conclude(active.planned, finished, active.action, produced=True, seconds=seconds)

    def _conclude(
        self, planned: PlannedNode, finished: SealedManifest, action: Action, produced: bool, seconds: float
    ) -> None:
        key = planned.key
        self.lease.check()
        self.store.write_ref(
            make_ref(self.plan.experiment, self.graph[key], finished.manifest, finished.path, finished.sha256)
        )
        self.finished[key] = finished
        event = NodeFinished(
            node=key,
            action=action,
            produced=produced,
            forced=planned.forced,
            manifest=finished.manifest,
            manifest_path=finished.path,
            manifest_sha256=finished.sha256,
            seconds=seconds,
        )
        self.outcomes[key] = event
        self.on_event(event)

    def _fail(self, key: str, part: str | None, error: str, trace: str = "", cause: X2VLMError | None = None) -> None:
        if (active := self.active.pop(key, None)) is not None and active.journal is not None:
            active.journal.flush()
        self.unusable[key] = key
        where = key if part is None else f"{key}, part {part}"
        log.error("event=node_failed node=%s part=%s error=%s", key, part, error)
        self.on_event(NodeFailed(node=key, part=part, error=f"{error}\n{trace}".rstrip()))
        if self.first_failure is None:
            self.first_failure = StageFailed(f"{where}: {error.removeprefix(f'{key}: ')}")
            self.first_failure.__cause__ = cause
            if trace:
                self.first_failure.add_note(f"Traceback of {where}:\n{trace}")
