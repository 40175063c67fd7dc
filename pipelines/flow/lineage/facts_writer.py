"""What a finished node read, wrote and measured, written into its MLflow run: datasets, models, params and metrics."""

import logging
from collections.abc import Mapping, Sequence

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
)

from pipelines.flow.lineage.dag_runs import DagRuns
from pipelines.flow.lineage.edges import DatasetEdge, datasets_of
from pipelines.flow.lineage.facts import LineageRecord, NodeFacts
from pipelines.flow.lineage.mlflow_client import (
    MAX_METRICS_PER_BATCH,
    MAX_PARAMS_PER_BATCH,
    batches,
    find_model,
    own_experiment_ids,
    read_uri,
)
from pipelines.flow.lineage.readback import LineageMismatch
from pipelines.flow.lineage.run_fields import MAX_TAG_LENGTH, cut, metric_name, model_tags, node_metrics
from pipelines.flow.lineage.series import is_timing, series_points, thinned

log = logging.getLogger(__name__)

# metric: steps at which MLflow has another value than the manifest's series. A note as those of `dag_runs`.
LIVE_DIFFERS = "live.differs"
# What was left out of long curves; a note too.
THINNED = "series.thinned"


class FactsWriter:
    """Writes the facts of finished nodes into the runs of one run of the graph."""

    def __init__(self, runs: DagRuns) -> None:
        self.runs, self.client, self.store = runs, runs.client, runs.store

    def write(self, run_id: str, record: LineageRecord, facts: NodeFacts, params: dict[str, str]) -> str:
        """Tell all that a manifest says; the id of the run: a new one where `DagRuns.renew` had to make one."""
        edges = datasets_of(facts)
        models = [model.model_id for node in facts.model_nodes if (model := self._model_of_node(facts, node))]
        produced = record.cache != "hit"
        dataset = _measured_on(edges) if models and produced else None
        series = self._series(facts) if produced else {}
        there = {key: self._points_there(run_id, key) for key in series}
        otherwise = [key for key in series if _ends_otherwise(there[key], series[key])]
        if run_id not in self.runs.finished and otherwise:
            run_id, there = self.runs.renew(run_id, record, all(map(is_timing, otherwise))), {}
        self._note_differences(run_id, there, series)
        if told := thinned(series):
            self.client.set_tag(run_id, THINNED, told)
        final = {key: value for key, value in node_metrics(facts).items() if key not in series}
        about = {"model_id": models[0] if models and produced else None}
        if dataset:
            about |= {"dataset_name": dataset.name, "dataset_digest": dataset.digest}
        own = {metric_name(key) for key in facts.metrics}
        # Times come from the record, so a repeated delivery writes the very same points, which MLflow keeps once.
        metrics = [
            Metric(key, value, record.time_ms, 0, **(about if key in own else {})) for key, value in final.items()
        ]
        for key, points in series.items():
            known = {step for step, _ in there.get(key, ())}
            metrics += [
                Metric(key, value, record.time_ms, step) for step, value in sorted(points.items()) if step not in known
            ]
        self.runs.written[run_id].metrics = final | {key: points[max(points)] for key, points in series.items()}
        param_batches = batches([Param(k, v) for k, v in params.items()], MAX_PARAMS_PER_BATCH)
        metric_batches = batches(metrics, MAX_METRICS_PER_BATCH)
        for index in range(max(len(param_batches), len(metric_batches))):
            self.client.log_batch(
                run_id,
                params=param_batches[index] if index < len(param_batches) else (),
                metrics=metric_batches[index] if index < len(metric_batches) else (),
            )
        self.client.log_inputs(
            run_id,
            datasets=[_dataset_input(edge) for edge in edges],
            models=[LoggedModelInput(model_id) for model_id in models] or None,
        )
        if facts.model and produced:
            self._log_model(run_id, record, facts)
        return run_id

    def _series(self, facts: NodeFacts) -> dict[str, dict[int, float]]:
        series: dict[str, dict[int, float]] = {}
        for uri in facts.series_uris:
            for key, points in series_points(read_uri(self.store, uri).decode("utf-8")).items():
                series.setdefault(key, {}).update(points)
        return series

    def _points_there(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of a curve that came while the node ran or by a former delivery, in the order of steps."""
        if run_id not in self.runs.found:
            return []
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, key))

    def _note_differences(
        self, run_id: str, there: Mapping[str, Sequence[tuple[int, float]]], series: Mapping[str, Mapping[int, float]]
    ) -> None:
        """Say in a tag at how many steps a curve differs from the manifest's: steps that were made twice."""
        numbers = {
            key: sum(series[key].get(step) != value for step, value in points) for key, points in sorted(there.items())
        }
        told = ", ".join(f"{key}: {number}" for key, number in numbers.items() if number)
        if told:
            level = logging.INFO if all(is_timing(key) for key in numbers if numbers[key]) else logging.WARNING
            log.log(level, "event=curves_differ run_id=%s num_steps=%r", run_id, told)
            self.client.set_tag(run_id, LIVE_DIFFERS, cut(told, MAX_TAG_LENGTH))

    def _log_model(self, run_id: str, record: LineageRecord, facts: NodeFacts) -> None:
        """The node's model as a logged model and output of its run, once however often this is called."""
        model = find_model(self.client, [self.runs.experiment_id], facts.manifest_sha256)
        if model is None:
            model = self.client.create_logged_model(
                self.runs.experiment_id,
                name=metric_name(str(facts.model["name"])).replace("/", "_").replace(".", "_"),
                source_run_id=run_id,
                model_type=str(facts.model.get("type", "")) or None,
                tags=model_tags(record, facts),
            )
        if model.status != "READY":
            self.client.finalize_logged_model(model.model_id, "READY")
        outputs = self.client.get_run(run_id).outputs
        if model.model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            self.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        stored = self.client.get_logged_model(model.model_id)
        expected = model_tags(record, facts)
        if model.source_run_id != run_id:  # a forced rerun made the same bytes again: the model stays the first run's
            expected["x2.dag_run"] = stored.tags.get("x2.dag_run", "")
        if {key: stored.tags.get(key) for key in expected} != expected:
            raise LineageMismatch(f"model {model.model_id}: MLflow gave back tags {stored.tags}, written {expected}")

    def _model_of_node(self, facts: NodeFacts, node: str) -> LoggedModel | None:
        seal = next(item.manifest_sha256 for item in facts.inputs if item.node == node)
        return find_model(self.client, own_experiment_ids(self.client), seal)


def _ends_otherwise(there: Sequence[tuple[int, float]], points: Mapping[int, float]) -> bool:
    """Whether a curve in MLflow, once it has all of `points`, would not end as they do, or has a step twice."""
    steps = [step for step, _ in there]
    last = max(points)
    return len(set(steps)) < len(steps) or any(
        step > last or (step == last and value != points[last]) for step, value in there
    )


def _measured_on(edges: Sequence[DatasetEdge]) -> DatasetEdge | None:
    """The dataset that a node's metrics are about, where there is just one it can be."""
    measured = [edge for edge in edges if edge.context == "evaluation"]
    return measured[0] if len(measured) == 1 else None


def _dataset_input(edge: DatasetEdge) -> DatasetInput:
    tags = [InputTag("mlflow.data.context", edge.context), *(InputTag(k, v) for k, v in edge.tags.items())]
    return DatasetInput(Dataset(edge.name, edge.digest, edge.source_type, edge.source), tags)
