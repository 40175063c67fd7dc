"""What lineage says about a run of the graph, as values: the lines of a spool, and manifests without their parts.

No MLflow here, so writing and auditing share one definition.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import pydantic

from pipelines.flow.store.artifact import CountRecord, InputRecord, Manifest, Record
from pipelines.flow.store.layout import file_path

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
                uris.append(f"{store_uri.rstrip('/')}/{file_path(part.record, file)}")
    return uris
