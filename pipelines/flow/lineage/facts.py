"""What lineage says about a run of the graph, as values: the lines of a spool, and manifests without their parts.

No MLflow here, so writing and auditing share one definition.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

from pipelines.flow.store.artifact import CountRecord, InputRecord, Manifest, Record
from pipelines.flow.store.layout import file_path
from pipelines.flow.store.manifests.paged import PagedParts

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
        num_bytes=_bytes_of(manifest),
        dag_run=str(manifest.provenance.get("dag_run", "")),
    )


def _summaries(manifest: Manifest, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Summaries that may have `key`: the node's own first, then every part's."""
    yield "", manifest.summary
    if isinstance(manifest.parts, PagedParts):
        yield from manifest.parts.summaries(f'"{key}":')
    else:
        yield from ((part.name, part.record.summary) for part in manifest.parts)


def _model_of(manifest: Manifest) -> dict[str, Any]:
    for _, summary in _summaries(manifest, "model"):
        if isinstance(model := summary.get("model"), Mapping) and "name" in model:
            return dict(model)
    return {}


def _metrics_of(manifest: Manifest) -> dict[str, float]:
    """The node's own metrics. Of what its parts measured: the value, or where they differ mean, sum and range.

    So a node has the same few metrics however many parts it has; those of each part are in the manifest.
    """
    own = {key: float(value) for key, value in (manifest.summary.get("metrics") or {}).items()}
    found: dict[str, Spread] = {}
    for name, summary in _summaries(manifest, "metrics"):
        for key, value in (summary.get("metrics") or {}).items() if name else ():
            found.setdefault(key, Spread()).add(float(value))
    metrics = dict(own)
    for key, spread in found.items():
        if spread.least == spread.most and own.get(key, spread.least) == spread.least:
            metrics[key] = spread.least
        else:
            numbers = {"mean": spread.total / spread.number, "sum": spread.total}
            numbers |= {"min": spread.least, "max": spread.most}
            metrics |= {f"{key}/parts_{what}": number for what, number in numbers.items()}
    return metrics


@dataclass
class Spread:
    """Numbers of parts, added up."""

    number: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: float) -> None:
        """Count one more."""
        self.number += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)


def _series_of(manifest: Manifest, store_uri: str) -> list[str]:
    """The series of all parts; there are none, or few parts."""
    uris = []
    named = {name: summary.get("metric_series") for name, summary in _summaries(manifest, "metric_series")}
    own = named.pop("", None)
    if own is None and not any(named.values()):
        return []
    for part in manifest.parts:
        wanted = named.get(part.name) or own
        for file in part.record.files:
            if file.path == wanted:
                uris.append(f"{store_uri.rstrip('/')}/{file_path(part.record, file)}")
    return uris


def _bytes_of(manifest: Manifest) -> int:
    if isinstance(manifest.parts, PagedParts):
        return manifest.parts.num_bytes
    return sum(file.bytes for part in manifest.parts for file in part.record.files)
