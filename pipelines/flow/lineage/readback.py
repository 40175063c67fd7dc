"""Whether MLflow gives back what was written to it: tags, params, metrics and datasets of one run."""

import json
from dataclasses import dataclass, field

from mlflow.entities import Run

from pipelines.flow.lineage.edges import datasets_of
from pipelines.flow.lineage.facts import LineageRecord
from pipelines.flow.lineage.run_fields import node_params
from x2vlm.errors import X2VLMError


class LineageMismatch(X2VLMError):
    """MLflow does not give back what was written to it."""


@dataclass
class Written:
    """What a run must give back."""

    record: LineageRecord
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)  # the latest value of each


def check_run(run: Run, written: Written) -> None:
    """LineageMismatch unless `run` holds what was written: tags and, for a finished node, params, metrics, datasets."""
    record, tags = written.record, written.tags
    where = f"MLflow run {run.info.run_id} ({record.run_key})"
    _same(where, "tags", tags, {key: run.data.tags.get(key) for key in tags})
    if not record.facts:
        return
    _same(where, "params", node_params(record.facts), dict(run.data.params))
    _same(where, "metrics", written.metrics, {key: run.data.metrics.get(key) for key in written.metrics})
    expected = sorted(edge.identity() for edge in datasets_of(record.facts))
    _same(where, "datasets", expected, sorted(identity for identity, _ in stored_edges(run)))
    roots = {edge.identity(): json.loads(edge.source)["root"] for edge in datasets_of(record.facts)}
    for identity, source in stored_edges(run):
        _same(where, f"source of {identity[0]}", roots[identity], source.get("root"))


def stored_edges(run: Run) -> list[tuple[tuple[str, str, str], dict[str, str]]]:
    """((name, digest, context), source) of every dataset input of `run`."""
    edges = []
    for item in run.inputs.dataset_inputs if run.inputs else []:
        context = next((tag.value for tag in item.tags if tag.key == "mlflow.data.context"), "")
        try:
            source = json.loads(item.dataset.source)
        except ValueError:
            source = {}
        edges.append(((item.dataset.name, item.dataset.digest, context), source))
    return edges


def _same(where: str, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise LineageMismatch(f"{where}: wrote {what} {expected!r}, MLflow gave back {found!r}")
