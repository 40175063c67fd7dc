"""Datasets of an MLflow run: what a node read and wrote, as edges between its run and named content.

A dataset in MLflow is *content*: its name is the node that made it and its digest the first 32 hex digits of the Merkle
root (MLflow keeps at most 36). MLflow keeps the first source it ever saw for a name and digest and silently ignores
later ones; that is harmless here because every source written for them resolves to a manifest with that very root. The
exact manifest that was read is not a property of the dataset but of the edge, so it stands in the input's tags.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.flow.fingerprint import merkle_root
from pipelines.flow.lineage.facts import NodeFacts
from pipelines.flow.lineage.run_fields import cut
from pipelines.flow.store.artifact import InputRecord

DIGEST_LENGTH = 32  # MLflow's column holds 36; 128 bits are enough to name content
MAX_INPUT_TAG_LENGTH = 500
CONTEXTS = ("source", "input", "output", "training", "validation", "evaluation")


@dataclass(frozen=True)
class DatasetEdge:
    """One dataset input of an MLflow run."""

    name: str
    digest: str
    context: str
    source_type: str
    source: str  # JSON
    tags: Mapping[str, str] = field(default_factory=dict)

    def identity(self) -> tuple[str, str, str]:
        return self.name, self.digest, self.context


def datasets_of(facts: NodeFacts) -> list[DatasetEdge]:
    """Every dataset edge of a node: upstream files by card, input artifacts, and the output.

    MLflow keeps one row per run, name and digest, with the first context only. Where content plays two roles in a run
    its names are told apart: `<name>@in`, `<name>@out`, `<name>@<context>`.
    """
    edges = [*_source_edges(facts), *_input_edges(facts), _output_edge(facts)]
    contexts: dict[str, set[str]] = {}
    for edge in edges:
        contexts.setdefault(edge.digest, set()).add(edge.context)
    role = {"input": "in", "output": "out"}
    return [
        edge
        if len(contexts[edge.digest]) == 1
        else DatasetEdge(
            f"{edge.name}@{role.get(edge.context, edge.context)}",
            edge.digest,
            edge.context,
            edge.source_type,
            edge.source,
            edge.tags,
        )
        for edge in edges
    ]


def _source_edges(facts: NodeFacts) -> list[DatasetEdge]:
    groups: dict[tuple[str, str], list[InputRecord]] = {}
    for item in facts.inputs:
        if not item.manifest_path:
            groups.setdefault((item.node, item.slot), []).append(item)
    edges: dict[tuple[str, str], DatasetEdge] = {}
    for (name, slot), items in groups.items():
        root = items[0].root if len(items) == 1 else merkle_root(item.root for item in items)
        # One edge per card: MLflow gets slow with hundreds of inputs, so many files point at the manifest listing them.
        uri = items[0].uri if len(items) == 1 else facts.manifest_uri
        source = {"uri": uri, "root": root, "num_files": len(items)}
        tags = {"x2.slot": slot, "x2.root": root, "x2.num_files": str(len(items))}
        edges.setdefault((name, root), _edge(name, root, "source", source, tags))
    return list(edges.values())


def _input_edges(facts: NodeFacts) -> list[DatasetEdge]:
    edges: dict[tuple[str, str, str], DatasetEdge] = {}
    slots: dict[tuple[str, str, str], list[str]] = {}
    for item in facts.inputs:
        if not item.manifest_path:
            continue
        key = (item.node, item.root, context_of(item, facts))
        slots.setdefault(key, []).append(item.slot)
        source = _manifest_source(facts, item.manifest_path, item.manifest_sha256, item.root)
        tags = {
            "x2.slot": ",".join(dict.fromkeys(slots[key])),
            "x2.root": item.root,
            "x2.manifest_sha": item.manifest_sha256,
            "x2.manifest_path": item.manifest_path,
        }
        edges[key] = _edge(item.node, item.root, key[2], source, tags)
    return list(edges.values())


def _output_edge(facts: NodeFacts) -> DatasetEdge:
    source = _manifest_source(facts, facts.manifest_path, facts.manifest_sha256, facts.root)
    tags = {
        "x2.root": facts.root,
        "x2.manifest_sha": facts.manifest_sha256,
        "x2.manifest_path": facts.manifest_path,
    }
    return _edge(facts.node, facts.root, "output", source, tags)


def _manifest_source(facts: NodeFacts, path: str, sha256: str, root: str) -> dict[str, Any]:
    store_uri = facts.manifest_uri.removesuffix(facts.manifest_path)
    return {"uri": f"{store_uri}{path}", "manifest_path": path, "manifest_sha256": sha256, "root": root}


def _edge(name: str, root: str, context: str, source: dict[str, Any], tags: Mapping[str, str]) -> DatasetEdge:
    return DatasetEdge(
        name=name,
        digest=digest_of(root),
        context=context,
        source_type=source_type_of(str(source["uri"])),
        source=json.dumps(source, sort_keys=True),
        tags={key: cut(value, MAX_INPUT_TAG_LENGTH) for key, value in tags.items()},
    )


def context_of(item: InputRecord, facts: NodeFacts) -> str:
    """The role of an input artifact: a slot named after a role wins; then what the node does decides."""
    if item.slot in CONTEXTS:
        return item.slot
    if facts.model:
        return "training"
    if facts.model_nodes and item.node not in facts.model_nodes:
        return "evaluation"
    return "input"


def digest_of(root: str) -> str:
    """The MLflow digest of content with Merkle root `root`."""
    return root[:DIGEST_LENGTH]


def source_type_of(uri: str) -> str:
    """A source type that every MLflow resolves without plug-ins."""
    scheme = uri.split("://", 1)[0] if "://" in uri else ""
    if scheme in ("s3", "gs", "hdfs", "ftp", "sftp"):
        return scheme
    return "http" if scheme in ("http", "https") else "local"
