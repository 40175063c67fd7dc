"""What a stage, a node and a part are: values that describe work. Building them runs nothing."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pydantic

from pipelines.flow.conservation import Count as Count
from pipelines.flow.fingerprint import canonical_json, plain_json, sha256_of
from pipelines.flow.live import Report
from pipelines.flow.runtime import Runtime as Runtime
from pipelines.flow.runtime import Workers as Workers
from x2vlm.errors import ConfigError, StageFailed

Json = Any  # anything `canonical_json` accepts


@dataclass(frozen=True)
class InputFile:
    """One committed file that a part may read, or a segment of one. `uri` says where it lies now and never enters a
    fingerprint.

    Nor does `detail`, what the planner took from the summary of the file's part for whoever reads the file. A segment
    has a `start`: where its bytes begin in the file at `uri`; `bytes`, `sha256` and `rows` are its own.
    """

    path: str  # name inside its part ("rows.parquet"), or the file name of an upstream source
    bytes: int
    sha256: str
    uri: str
    rows: int | None = None
    detail: Mapping[str, Json] = field(default_factory=dict, hash=False)
    start: int | None = None  # of a segment; None: the whole file


@dataclass(frozen=True)
class InputPart:
    """One part of an input artifact, as a consumer sees it."""

    name: str
    files: tuple[InputFile, ...]
    summary: Mapping[str, Json] = field(default_factory=dict)
    open_segments: Callable[[InputFile], Mapping[str, InputFile]] | None = field(default=None, compare=False)

    def segments(self, path: str) -> Mapping[str, InputFile]:
        """The segments of the file called `path` by name, in the file's order; StageFailed if it has none."""
        if self.open_segments is None:
            raise StageFailed(f"part {self.name}: {path} is no file of segments")
        return self.open_segments(self.file(path))

    def file(self, path: str) -> InputFile:
        """The file called `path`; StageFailed if the part has none."""
        for candidate in self.files:
            if candidate.path == path:
                return candidate
        raise StageFailed(f"part {self.name} has no file {path}; it has {', '.join(f.path for f in self.files)}")


@dataclass(frozen=True)
class ArtifactReference:
    """An artifact by its manifest: with this a worker finds the artifact's files, however many there are."""

    node: str  # producing node's key
    manifest_path: str  # relative to the store
    manifest_sha256: str  # the manifest's seal


@dataclass(frozen=True)
class Input:
    """One input artifact (or upstream file) of a node, as `plan_parts` and `run_part` see it.

    `parts` of a large artifact are made when they are asked for and not kept: iterate over them, or take one by name.
    """

    node: str  # producing node's key, or "source:<id>" for upstream files
    root: str  # Merkle root over the parts' contents
    parts: Sequence[InputPart]
    summary: Mapping[str, Json] = field(default_factory=dict)
    manifest_path: str = ""  # relative to the store; "" for upstream files
    manifest_sha256: str = ""  # the manifest's seal

    @property
    def reference(self) -> ArtifactReference:
        """What a part names to look things up in this artifact (`Part.lookup_artifacts`)."""
        return ArtifactReference(self.node, self.manifest_path, self.manifest_sha256)

    def find(self, path: str) -> InputFile | None:
        """The file called `path` of the first part that has one; None if none has."""
        return self._files.get(path)

    def has_part(self, name: str) -> bool:
        """Whether a part is called `name`."""
        return name in self._places

    def part(self, name: str) -> InputPart:
        """The part called `name`; StageFailed if there is none."""
        if name not in self._places:
            raise StageFailed(f"{self.node} has no part {name}; it has {len(self.parts)} parts")
        return self.parts[self._places[name]]

    @cached_property
    def _files(self) -> Mapping[str, InputFile]:
        found: dict[str, InputFile] = {}
        for part in self.parts:
            for file in part.files:
                found.setdefault(file.path, file)
        return found

    @cached_property
    def _places(self) -> Mapping[str, int]:
        names = getattr(self.parts, "names", None) or (part.name for part in self.parts)
        return {name: place for place, name in enumerate(names)}


Inputs = Mapping[str, tuple[Input, ...]]  # slot -> artifacts


@dataclass(frozen=True)
class Read:
    """A file that a part reads through a slot; its sha256 is part of the part's fingerprint."""

    slot: str
    file: InputFile


@dataclass(frozen=True)
class Lookup:
    """A whole artifact in which a part may look up bytes that something in its `reads` names by sha256."""

    slot: str
    artifact: ArtifactReference


@dataclass(frozen=True)
class Part:
    """One resumable slice of a node.

    `reads` and `spec` determine the bytes that come out, and so the fingerprint. `lookups` are files the part may also
    open but only to fetch bytes that something in `reads` names by sha256 (media packs): they cannot change the result,
    so they do not count. Neither do `lookup_artifacts`, the same for all files of an artifact: a part that names every
    file of 130,000 parts would be a message of 60 MB.
    """

    name: str  # unique within the node and stable, for example "00003"
    reads: tuple[Read, ...] = ()
    spec: Mapping[str, Json] = field(default_factory=dict)
    lookups: tuple[Read, ...] = ()
    lookup_artifacts: tuple[Lookup, ...] = ()


@dataclass(frozen=True)
class PartResult:
    """What `run_part` says about what it wrote. `counts` must have the unit "rows".

    `file_rows` gives the number of rows of output files where that makes sense. `summary` is small JSON that later
    stages and reports read; the engine itself understands three optional keys of it: "metrics" {name: number},
    "metric_series" (name of a JSON-lines output file with a "step" per line) and "model" {"name", "type"}.
    """

    counts: Mapping[str, Count]
    file_rows: Mapping[str, int] = field(default_factory=dict)
    summary: Mapping[str, Json] = field(default_factory=dict)


class PartReader(Protocol):
    """How a part opens its inputs. Every file is checked against its recorded sha256 before its first use."""

    def open(self, file: InputFile) -> BinaryIO: ...

    def local_path(self, file: InputFile) -> Path: ...

    def read_range(self, file: InputFile, start: int, num_bytes: int) -> bytes:
        """So many bytes from `start` on, NOT checked: whoever asks knows the sha256 of what lies there."""
        ...

    def artifact(self, reference: ArtifactReference) -> Input:
        """The artifact that one of the part's `lookup_artifacts` names; its manifest is read once per process."""
        ...


class PartWriter(Protocol):
    """Where a part writes: `path` is an empty local folder; every file left below it is an output."""

    @property
    def path(self) -> Path: ...

    @property
    def state_uri(self) -> str:
        """A folder of the store that survives a crash of this part and is keyed by its fingerprint (checkpoints)."""
        ...

    @property
    def report(self) -> Report:
        """Says how far the part is, for whoever watches; call it with a function that counts, about once a second."""
        ...


@dataclass(frozen=True)
class SourceFile:
    """An upstream file named by a card. Missing or changed files stop the plan before anything remote happens.

    With `patterns` it is all files below the folder `uri` that match one of them (`pipelines.flow.store.source_trees`).
    """

    uri: str
    card: str  # id of the card that names it
    sha256: str | None = None  # where the source publishes it
    patterns: tuple[str, ...] = ()


Sources = Mapping[str, tuple[SourceFile, ...]]  # slot -> the upstream files in it


@dataclass(frozen=True)
class Stage:
    """A kind of work. `run_part` reads its inputs, writes only below `out`, and is pure apart from the network (s1) and
    floating point on a GPU (s3, s5, s6).

    Bump `version` whenever the same config and inputs may give other bytes, and when a default or a meaning changes.
    """

    name: str
    version: int
    config_type: type[pydantic.BaseModel]
    slots: tuple[str, ...]
    plan_parts: Callable[[Any, Inputs], Sequence[Part]]  # (config, inputs): cheap, deterministic, order-stable
    run_part: Callable[[Any, PartReader, Part, PartWriter], PartResult]
    finish: Callable[[Any, Sequence["PartSummary"]], Mapping[str, Json]] | None = None
    allow_zero_rows: bool = False
    # A JSON-lines file, or segments in its place (`x2vlm.stores.segments`), that a running part lets grow in its state
    # folder, with a "step" per line, and whose final form is its "metric_series": whoever watches may show it before
    # the part is done.
    live_series: str | None = None
    # Called as (config, key of the node, its upstream files) for every node that is due, before anything runs: raises
    # an X2VLMError for what would stop its parts later. Neither this nor `on_driver` is part of a fingerprint.
    check: Callable[[Any, str, Sources], None] | None = None
    # (config) -> the share of one GPU that a part uses where there are GPUs; None: it uses none.
    gpu_share: Callable[[Any], float] | None = None
    on_driver: bool = False  # parts run in the driver: they start Ray actors of their own (Ray Train)


@dataclass(frozen=True)
class PartSummary:
    """What `finish` sees of a part: enough to add up, nothing to read."""

    name: str
    counts: Mapping[str, Count]
    summary: Mapping[str, Json]


@dataclass(frozen=True)
class Node:
    """A stage bound to a config and inputs. Inputs are keys of other nodes or upstream files, per slot."""

    key: str  # "<stage>/<name>", for example "filter/coco"
    stage: Stage
    config: pydantic.BaseModel
    inputs: Mapping[str, tuple[str | SourceFile, ...]]
    runtime: Runtime = Runtime()
    workers: Workers | None = None

    @property
    def name(self) -> str:
        """The part of the key after the stage name."""
        return self.key.split("/", 1)[1]

    @property
    def sources(self) -> Sources:
        """The upstream files that this one reads, by slot."""
        return {
            slot: tuple(item for item in items if isinstance(item, SourceFile)) for slot, items in self.inputs.items()
        }

    def upstream(self) -> list[str]:
        """Keys of the nodes this one reads, in slot order, without repeats."""
        keys = [item for items in self.inputs.values() for item in items if isinstance(item, str)]
        return list(dict.fromkeys(keys))


class Graph(Mapping[str, Node]):
    """Nodes by key, in an order where every node comes after what it reads."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes: dict[str, Node] = {}
        for node in nodes:
            if node.key in self._nodes:
                raise ConfigError(f"two nodes are called {node.key}")
            if unknown := set(node.inputs) ^ set(node.stage.slots):
                raise ConfigError(f"{node.key}: slots {sorted(unknown)} do not fit stage {node.stage.name}")
            if missing := [key for key in node.upstream() if key not in self._nodes]:
                raise ConfigError(f"{node.key}: reads {missing}, which must come before it in the graph")
            self._nodes[node.key] = node

    def __getitem__(self, key: str) -> Node:
        return self._nodes[key]

    def __iter__(self) -> Any:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def with_ancestors(self, keys: Iterable[str]) -> set[str]:
        """`keys`, and all nodes that they read directly or through others."""
        needed: set[str] = set()
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in needed:
                needed.add(key)
                waiting += self[key].upstream()
        return needed


def part_fingerprint(stage: Stage, config: pydantic.BaseModel, part: Part) -> str:
    """Identity of a part: stage name and version, config, spec and the sha256 of everything it reads, in order."""
    return part_fingerprints(stage, config, [part])[0]


def part_fingerprints(stage: Stage, config: pydantic.BaseModel, parts: Iterable[Part]) -> list[str]:
    """The identities of many parts: sha256 of the canonical JSON of what `part_fingerprint` says.

    Config, stage and version are written once; keys of canonical JSON are in alphabetical order.
    """
    head = hashlib.sha256(b'{"config":' + canonical_json(config) + b',"reads":')
    tail = b',"stage":' + canonical_json(stage.name) + b',"version":' + canonical_json(stage.version) + b"}"
    found = []
    for part in parts:
        digest = head.copy()
        digest.update(plain_json([(read.slot, read.file.sha256) for read in part.reads]))
        digest.update(b',"spec":' + canonical_json(part.spec) + tail)
        found.append(digest.hexdigest())
    return found


def artifact_fingerprint(stage: Stage, config: pydantic.BaseModel, parts: Sequence[tuple[str, str]]) -> str:
    """Identity of a node's output before it exists: stage, config and the (name, fingerprint) of every part."""
    return sha256_of(
        {"stage": stage.name, "version": stage.version, "config": config, "parts": [list(part) for part in parts]}
    )
