"""What lineage says about a run of the graph, as values: no MLflow here, so writing and auditing share one definition.

A dataset in MLflow is *content*: its name is the node that made it and its digest the first 32 hex digits of the Merkle
root (MLflow keeps at most 36). MLflow keeps the first source it ever saw for a name and digest and silently ignores
later ones; that is harmless here because every source written for them resolves to a manifest with that very root. The
exact manifest that was read is not a property of the dataset but of the edge, so it stands in the input's tags.
"""

import hashlib
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pydantic

from pipelines.flow.fingerprint import merkle_root, sha256_of
from pipelines.flow.store.artifact import CountRecord, InputRecord, Manifest, Record

DIGEST_LENGTH = 32  # MLflow's column holds 36; 128 bits are enough to name content
MAX_PARAM_LENGTH = 6_000
MAX_TAG_LENGTH = 5_000  # MLflow's own limit is 8,000 on the server and cuts silently; some databases hold 5,000
MAX_INPUT_TAG_LENGTH = 500
MAX_KEY_LENGTH = 250
CONTEXTS = ("source", "input", "output", "training", "validation", "evaluation")

Cache = Literal["hit", "miss", "forced", ""]
RecordType = Literal["run_started", "node_started", "node_finished", "node_failed", "node_blocked", "run_finished"]


class NodeFacts(Record):
    """A manifest without its parts: all that MLflow is told, small enough for one spool line."""

    node: str
    stage: str
    version: int
    fingerprint: str
    root: str
    manifest_path: str
    manifest_sha256: str
    manifest_uri: str
    config: dict[str, Any]
    inputs: list[InputRecord]
    model_nodes: list[str]  # those inputs that are models
    counts: dict[str, CountRecord]
    metrics: dict[str, float]
    series_uris: list[str]  # JSON-lines files with a "step" per line
    model: dict[str, Any]  # {} where the node made no model
    num_parts: int
    num_bytes: int
    dag_run: str = ""  # that produced the manifest, where its provenance says so


class LineageRecord(Record):
    """One line of the spool: something that happened in a run of the graph. `key` makes delivery idempotent."""

    format: Literal[1] = 1
    type: RecordType
    dag_run: str
    experiment: str
    time_ms: int
    started_ms: int = 0
    node: str = ""
    cache: Cache = ""
    message: str = ""  # why a node failed or is blocked
    status: Literal["", "FINISHED", "FAILED", "KILLED"] = ""
    tags: dict[str, str] = pydantic.Field(default_factory=dict)  # of the whole run
    # Of nodes whose numbers are sent while they run: the file below the store, and the node's fingerprint, by which a
    # later job finds the MLflow run that an interrupted one began.
    live_series: str = ""
    live_key: str = ""
    facts: NodeFacts | None = None

    @property
    def run_key(self) -> str:
        """Which MLflow run this is about: one per job, one per node and job."""
        return f"{self.dag_run}:{self.node or 'job'}"


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


def is_model(manifest: Manifest) -> bool:
    """True where the node made a model."""
    return bool(_model_of(manifest))


def facts_of(manifest: Manifest, path: str, sha256: str, store_uri: str, model_nodes: Collection[str]) -> NodeFacts:
    """The facts of `manifest`, stored at `path` below `store_uri` with seal `sha256`.

    `model_nodes` are the keys of nodes known to make models.
    """
    return NodeFacts(
        node=manifest.node,
        stage=manifest.stage,
        version=manifest.version,
        fingerprint=manifest.fingerprint,
        root=manifest.root,
        manifest_path=path,
        manifest_sha256=sha256,
        manifest_uri=f"{store_uri.rstrip('/')}/{path}",
        config=manifest.config,
        inputs=manifest.inputs,
        model_nodes=sorted({i.node for i in manifest.inputs} & set(model_nodes)),
        counts=manifest.counts,
        metrics=_metrics_of(manifest),
        series_uris=_series_of(manifest, store_uri),
        model=_model_of(manifest),
        num_parts=len(manifest.parts),
        num_bytes=sum(file.bytes for part in manifest.parts for file in part.record.files),
        dag_run=str(manifest.provenance.get("dag_run", "")),
    )


def _summaries(manifest: Manifest) -> list[tuple[str, Mapping[str, Any]]]:
    """Summaries that may carry metrics: the node's own first, then every part's."""
    return [("", manifest.summary), *((part.name, part.record.summary) for part in manifest.parts)]


def _model_of(manifest: Manifest) -> dict[str, Any]:
    for _, summary in _summaries(manifest):
        if isinstance(model := summary.get("model"), Mapping) and "name" in model:
            return dict(model)
    return {}


def _metrics_of(manifest: Manifest) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, summary in _summaries(manifest):
        for key, value in (summary.get("metrics") or {}).items():
            number = float(value)
            if metrics.setdefault(key, number) != number and name:
                metrics[f"{name}/{key}"] = number  # two parts measured the same thing
    return metrics


def _series_of(manifest: Manifest, store_uri: str) -> list[str]:
    uris = []
    for part in manifest.parts:
        wanted = part.record.summary.get("metric_series") or manifest.summary.get("metric_series")
        for file in part.record.files:
            if file.path == wanted:
                folder = f"parts/{part.record.stage}/{part.record.fingerprint[:2]}/{part.record.fingerprint}"
                uris.append(f"{store_uri.rstrip('/')}/{folder}/{file.location or file.path}")
    return uris


def node_tags(record: LineageRecord) -> dict[str, str]:
    """Tags of a node's run, `x2.seal` included: any single edited tag or param of ours then shows in an audit."""
    tags = {
        "x2.kind": "node",
        "x2.run_key": record.run_key,
        "x2.dag_run": record.dag_run,
        "x2.experiment": record.experiment,
        "x2.plan_sha": record.tags.get("x2.plan_sha", ""),
        "x2.node": record.node,
        "x2.stage": record.node.split("/", 1)[0],
    }
    if record.message:
        tags["x2.message"] = cut(record.message, MAX_TAG_LENGTH)
    if record.cache:
        tags["x2.cache"] = record.cache
    if facts := record.facts:
        tags |= {
            "x2.stage_key": facts.fingerprint,
            "x2.manifest_sha": facts.manifest_sha256,
            "x2.manifest_path": facts.manifest_path,
            "x2.root": facts.root,
            "x2.producer": "false" if record.cache == "hit" else "true",
        }
    return tags


def job_tags(record: LineageRecord) -> dict[str, str]:
    """Tags of a job's run."""
    own = {
        "x2.kind": "job",
        "x2.run_key": record.run_key,
        "x2.dag_run": record.dag_run,
        "x2.experiment": record.experiment,
    }
    return own | {key: cut(value, MAX_TAG_LENGTH) for key, value in record.tags.items()}


def sealed(tags: Mapping[str, str], params: Mapping[str, str]) -> dict[str, str]:
    """`tags` with `x2.seal`, a hash over all our tags and params."""
    return {**tags, "x2.seal": tag_seal(tags, params)}


def tag_seal(tags: Mapping[str, str], params: Mapping[str, str]) -> str:
    """What `x2.seal` must be for these tags and params; tags that are not ours do not count."""
    ours = {key: value for key, value in tags.items() if key.startswith("x2.") and key != "x2.seal"}
    return sha256_of({"tags": ours, "params": dict(params)})


def node_params(facts: NodeFacts) -> dict[str, str]:
    """Params of a node's run: only what the plan fixes, since MLflow refuses to change a param on resume."""
    params = {"stage_version": str(facts.version)}
    for key, value in _flat("config", facts.config):
        params[metric_name(key)] = cut(value, MAX_PARAM_LENGTH)
    return params


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for key in sorted(value) for pair in _flat(f"{prefix}.{key}", value[key])]
    return [(prefix, value if isinstance(value, str) else json.dumps(value, sort_keys=True))]


def node_metrics(facts: NodeFacts) -> dict[str, float]:
    """Final numbers of a node: its own metrics, and counts by unit and drop reason."""
    metrics: dict[str, float] = {}
    for key, value in facts.metrics.items():
        name = metric_name(key)
        # "tr@1" and "tr_1" look alike to MLflow; the second is told apart by its hash.
        metrics[name if name not in metrics else f"{name}_{sha256_of(key)[:8]}"] = value
    metrics |= {"parts": float(facts.num_parts), "bytes": float(facts.num_bytes)}
    for unit, count in facts.counts.items():
        metrics[metric_name(f"{unit}.in")] = float(count.num_in)
        metrics[metric_name(f"{unit}.out")] = float(count.num_out)
        metrics |= {metric_name(f"{unit}.dropped.{reason}"): float(n) for reason, n in count.dropped.items()}
    return metrics


def series_points(text: str) -> dict[str, dict[int, float]]:
    """Metric -> step -> value from JSON lines. A step written twice (a resumed training) counts once: the last wins."""
    points: dict[str, dict[int, float]] = {}
    for line in text.splitlines():
        step, numbers = step_numbers(line)
        for key, value in numbers.items():
            points.setdefault(key, {})[step] = value
    return points


def step_numbers(line: str) -> tuple[int, dict[str, float]]:
    """The step of one line of a series, and metric -> value of whatever in it is a finite number.

    ValueError if it is not JSON, KeyError if it has no step.
    """
    row = json.loads(line)
    step = int(row.pop("step"))
    numbers = {
        metric_name(key): float(value)
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    return step, numbers


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


def cut(text: str, limit: int) -> str:
    """`text`, or its beginning with a mark that says what was cut and the hash of the whole."""
    if len(text) <= limit:
        return text
    mark = f"... [cut, {len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()}]"
    return text[: limit - len(mark)] + mark


def metric_name(name: str) -> str:
    """`name` as MLflow takes it for metrics and params: allowed characters only, no odd path, at most 250 characters.

    A name that had to be shortened ends in the beginning of the hash of the whole.
    """
    clean = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)
    clean = "/".join(step for step in clean.split("/") if step not in ("", ".", "..")) or "_"
    if len(clean) > MAX_KEY_LENGTH:
        clean = f"{clean[: MAX_KEY_LENGTH - 13]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return clean
