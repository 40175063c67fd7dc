"""What a run would do and why, node by node. Planning writes nothing but remembered hashes of upstream files."""

import difflib
import gc
import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipelines.flow.fingerprint import sha256_of
from pipelines.flow.run.events import Action
from pipelines.flow.run.reasons import config_changes, why_it_runs
from pipelines.flow.stage import Graph, Input, Inputs, Node, Part, artifact_fingerprint, part_fingerprints
from pipelines.flow.store.artifact import InputRecord, Manifest, SealedManifest
from pipelines.flow.store.layout import manifest_path
from pipelines.flow.store.source_trees import tree_uri
from pipelines.flow.store.sources import SourceHashes
from pipelines.flow.store.store import Store
from x2vlm.errors import ConfigError, CorruptArtifact, StageFailed, X2VLMError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeWork:
    """A node whose inputs are known: its parts with their fingerprints, and what the store has of them."""

    node: Node
    inputs: tuple[InputRecord, ...]
    parts: tuple[Part, ...]
    fingerprints: tuple[str, ...]  # of the parts, in their order
    fingerprint: str
    done: frozenset[str]  # fingerprints of committed parts
    finished: SealedManifest | None  # the manifest, if it was written

    @property
    def is_complete(self) -> bool:
        """The manifest is there, and so is every part it names."""
        return self.finished is not None and self.done.issuperset(self.fingerprints)


@dataclass(frozen=True)
class PlannedPart:
    name: str
    fingerprint: str
    done: bool


@dataclass(frozen=True)
class PlannedNode:
    """What a node needs. `parts` and `fingerprint` are known only once all inputs are; `manifest` if it is finished."""

    key: str
    action: Action
    reason: str
    parts: tuple[PlannedPart, ...] = ()
    fingerprint: str | None = None
    finished: SealedManifest | None = None
    selected: bool = True
    forced: bool = False

    @property
    def manifest(self) -> Manifest | None:
        return self.finished.manifest if self.finished else None

    @property
    def num_done(self) -> int:
        return sum(part.done for part in self.parts)


@dataclass(frozen=True)
class Plan:
    """All nodes in order; those not `selected` are finished ancestors that the selected ones read."""

    experiment: str
    targets: tuple[str, ...]  # empty: the whole graph
    nodes: tuple[PlannedNode, ...]

    @property
    def selected(self) -> tuple[PlannedNode, ...]:
        return tuple(node for node in self.nodes if node.selected)

    @property
    def is_noop(self) -> bool:
        """Nothing has to run."""
        return all(node.action is Action.REUSE for node in self.selected)

    @property
    def fingerprint(self) -> str:
        """Hash of the experiment, the targets and everything known of the nodes."""
        return sha256_of([self.experiment, list(self.targets), [[n.key, n.fingerprint] for n in self.nodes]])

    @property
    def lease_name(self) -> str:
        """One driver at a time works on an experiment's set of targets."""
        return f"{self.experiment}-{hashlib.sha256(chr(10).join(self.targets).encode()).hexdigest()[:12]}"

    def __getitem__(self, key: str) -> PlannedNode:
        return next(node for node in self.nodes if node.key == key)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Python does not look for cycles among the objects of a plan: there are many, all are needed until its end, and
    looking at them again and again costs time for nothing (docs/scale.md)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_without_collection()
def plan(
    graph: Graph, store: Store, experiment: str, targets: Iterable[str] | None = None, force: Collection[str] = ()
) -> Plan:
    """What `run` would do now. `targets` and `force` are node keys or globs ("score/*").

    With targets only those nodes run: ConfigError names an ancestor that is not finished. SourceUnavailable if an
    upstream file is missing or not as published; CorruptArtifact if a manifest in use was damaged.
    """
    globs = tuple(sorted(set(targets or ())))
    selected = _matching(graph, globs, "target") if globs else set(graph)
    forced = _matching(graph, tuple(force), "force")
    if extra := forced - selected:
        raise ConfigError(f"force names {sorted(extra)}, which the targets {list(globs)} leave out; add them there")
    needed = graph.with_ancestors(selected)
    sources = SourceHashes(store)
    fingerprint_sources(graph, needed, sources)
    planned: dict[str, PlannedNode] = {}
    for key, node in graph.items():
        if key in needed:
            unfinished = [up for up in node.upstream() if planned[up].action is not Action.REUSE]
            if unfinished and key not in selected:
                planned[key] = PlannedNode(key, Action.PENDING, f"inputs unknown until {unfinished[0]} has run")
            elif unfinished:
                planned[key] = _without_inputs(store, experiment, node, unfinished[0], key in forced)
            else:
                finished = {up: done for up in node.upstream() if (done := planned[up].finished)}
                planned[key] = _with_inputs(store, experiment, node, finished, sources, key in forced)
    if globs:
        _require_finished_ancestors(planned, selected, experiment)
    nodes = [_marked(planned[key], key in selected) for key in graph if key in needed]
    return Plan(experiment, globs, tuple(nodes))


def fingerprint_sources(graph: Graph, keys: Collection[str], sources: SourceHashes) -> None:
    """Hash every upstream file of the named nodes; SourceUnavailable before anything runs."""
    for key in keys:
        for items in graph[key].inputs.values():
            for item in items:
                if not isinstance(item, str):
                    sources.fingerprint(item)


@_without_collection()
def work_of(
    node: Node,
    store: Store,
    finished: Mapping[str, SealedManifest],
    sources: SourceHashes,
    as_inputs: "InputCache | None" = None,
) -> NodeWork:
    """The parts of a node whose upstream nodes are all in `finished`, and what the store has of them.

    The planner and the executor both go through here, so what is planned is what runs.
    """
    cache = as_inputs if as_inputs is not None else {}
    inputs, records = _resolve(node, store, finished, sources, cache)
    try:
        parts = tuple(node.stage.plan_parts(node.config, inputs))
    except X2VLMError as error:
        raise type(error)(f"{node.key}: {error}") from error
    except Exception as error:
        raise StageFailed(f"{node.key}: planning its parts failed: {type(error).__name__}: {error}") from error
    names = [part.name for part in parts]
    if len(set(names)) != len(names):
        twice = sorted(name for name, number in Counter(names).items() if number > 1)
        raise StageFailed(f"{node.key}: plan_parts gave several parts the name {twice}; this is a bug in the stage")
    fingerprints = tuple(part_fingerprints(node.stage, node.config, parts))
    identity = artifact_fingerprint(node.stage, node.config, list(zip(names, fingerprints, strict=True)))
    path = manifest_path(node.stage.name, node.name, identity)
    stored = store.read_manifest(path)
    return NodeWork(
        node=node,
        inputs=records,
        parts=parts,
        fingerprints=fingerprints,
        fingerprint=identity,
        done=frozenset(store.has_parts(node.stage.name, fingerprints)),
        finished=None if stored is None else SealedManifest(stored[0], path, stored[1]),
    )


InputCache = dict[str, Input]


def _resolve(
    node: Node, store: Store, finished: Mapping[str, SealedManifest], sources: SourceHashes, cache: InputCache
) -> tuple[Inputs, tuple[InputRecord, ...]]:
    inputs: dict[str, tuple[Input, ...]] = {}
    records: list[InputRecord] = []
    for slot in node.stage.slots:
        values = []
        for item in node.inputs[slot]:
            if isinstance(item, str):
                upstream = finished[item]
                if item not in cache:
                    cache[item] = store.as_input(upstream.manifest, upstream.sha256)
                value = cache[item]
                record = InputRecord(
                    slot=slot,
                    node=value.node,
                    root=value.root,
                    manifest_sha256=upstream.sha256,
                    manifest_path=upstream.path,
                )
                records.append(record)
            else:
                value = sources.fingerprint(item)
                files = value.parts[0].files
                uri = tree_uri(item) if item.patterns else files[0].uri
                num_bytes = sum(file.bytes for file in files)
                records.append(InputRecord(slot=slot, node=value.node, root=value.root, uri=uri, bytes=num_bytes))
            values.append(value)
        inputs[slot] = tuple(values)
    return inputs, tuple(records)


def _with_inputs(
    store: Store,
    experiment: str,
    node: Node,
    finished: Mapping[str, SealedManifest],
    sources: SourceHashes,
    forced: bool,
) -> PlannedNode:
    work = work_of(node, store, finished, sources)
    parts = tuple(PlannedPart(p.name, fp, fp in work.done) for p, fp in zip(work.parts, work.fingerprints, strict=True))
    num_done, num_parts = sum(part.done for part in parts), len(parts)
    kept = f"{num_done} of {num_parts} parts are there"
    if forced:
        action, reason = Action.RUN, "forced"
    elif work.is_complete:
        action, reason = Action.REUSE, "finished, and nothing it depends on has changed"
    elif work.finished is not None:
        action, reason = Action.RESUME, f"{num_parts - num_done} of its {num_parts} parts are gone from the store"
    else:
        earlier = nearest_manifest(store, experiment, node)
        change = "no earlier run" if earlier is None else why_it_runs(node, work.inputs, earlier)
        action = Action.RESUME if num_done else Action.RUN
        reason = change if not num_done else kept if earlier is None else f"{change}; {kept}"
    return PlannedNode(node.key, action, reason, parts, work.fingerprint, work.finished, forced=forced)


def _without_inputs(store: Store, experiment: str, node: Node, upstream: str, forced: bool) -> PlannedNode:
    if nearest_manifest(store, experiment, node) is None:
        return PlannedNode(node.key, Action.PENDING, f"inputs unknown until {upstream} has run", forced=forced)
    reason = f"input {upstream} will be rerun; parts whose input bytes stay equal are kept"
    return PlannedNode(node.key, Action.RUN, reason, forced=forced)


def nearest_manifest(store: Store, experiment: str, node: Node) -> Manifest | None:
    """The manifest to compare with: this experiment's, else of any experiment the one with fewest changed fields."""
    own = store.read_ref(experiment, node.key)
    refs = [own] if own is not None else store.refs_of_node(node.key)
    candidates = []
    for path in dict.fromkeys(ref.manifest_path for ref in refs):
        try:
            stored = store.read_manifest(path)
        except CorruptArtifact as error:  # only a reason is lost; an audit reports the damage
            log.warning("event=earlier_manifest_damaged node=%s error=%s", node.key, error)
            continue
        if stored is not None:
            candidates.append(stored[0])
    return min(candidates, key=lambda manifest: len(config_changes(node, manifest)), default=None)


def explain(plan: Plan) -> list[str]:
    """The plan as lines of text: action, node, parts, reason."""
    width = max((len(node.key) for node in plan.selected), default=0)
    lines = []
    for node in plan.selected:
        parts = f"{node.num_done}/{len(node.parts)}" if node.fingerprint else "?"
        lines.append(f"{node.action:<7} {node.key:<{width}} {parts:>9} parts  {node.reason}")
    return lines


def check_due(graph: Graph, plan: Plan) -> None:
    """Ask the stage of every node that is due what would stop it later (`Stage.check`); raises the first answer."""
    for planned in plan.selected:
        node = graph[planned.key]
        if node.stage.check is not None and planned.action is not Action.REUSE:
            node.stage.check(node.config, node.key, node.sources)


def _matching(graph: Graph, globs: Sequence[str], what: str) -> set[str]:
    found: set[str] = set()
    for glob in globs:
        keys = {key for key in graph if fnmatchcase(key, glob)}
        if not keys:
            stages = [f"{key.partition('/')[0]}/*" for key in graph] if "*" in glob else []
            nearest = difflib.get_close_matches(glob, [*stages, *graph], n=1)
            hint = f"did you mean `{nearest[0]}`?" if nearest else f"the nodes are {', '.join(graph)}"
            raise ConfigError(f"{what} {glob!r} matches no node; {hint}")
        found |= keys
    return found


def _require_finished_ancestors(planned: Mapping[str, PlannedNode], selected: Collection[str], experiment: str) -> None:
    for key, node in planned.items():
        if key not in selected and node.action is not Action.REUSE:
            raise ConfigError(
                f"{key} is not finished ({node.action}: {node.reason}), but the targets read it. Run it first: "
                f"python jobs/run_stage.py {experiment} --only '{key}', or leave out --only to run everything due"
            )


def _marked(node: PlannedNode, selected: bool) -> PlannedNode:
    if selected:
        return node
    return PlannedNode(node.key, node.action, node.reason, node.parts, node.fingerprint, node.finished, selected=False)
