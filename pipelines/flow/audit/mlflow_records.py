"""Proof of the index: what MLflow says of manifests must be what those manifests say."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.flow.lineage.edges import datasets_of
from pipelines.flow.lineage.facts import LineageRecord, NodeFacts, facts_of, is_model
from pipelines.flow.lineage.mlflow_client import find_model, own_experiment_ids, read_uri, search_runs
from pipelines.flow.lineage.readback import stored_edges
from pipelines.flow.lineage.run_fields import model_tags, node_metrics, node_params, node_tags, tag_seal
from pipelines.flow.lineage.series import series_points
from pipelines.flow.lineage.spool import Spool
from pipelines.flow.store.artifact import SealedManifest
from pipelines.flow.store.store import Store

Note = Callable[[str, str, object, object, str], None]
REBUILD = "run jobs/audit_lineage.py with --rebuild <experiment>: MLflow is told again what the manifests say"
REMEDY = f"MLflow is only an index: delete this run there, then {REBUILD}"


class MlflowAudit:
    """Compares all runs and models about some manifests with them. `note` takes the findings."""

    def __init__(self, client: MlflowClient, store: Store, stored: Sequence[SealedManifest], note: Note) -> None:
        self.client, self.store, self.note = client, store, note
        models = {item.manifest.node for item in stored if is_model(item.manifest)}
        self.facts = {item.path: facts_of(item.manifest, item.path, item.sha256, store.uri, models) for item in stored}
        self.experiment_ids = own_experiment_ids(client)
        self.runs: dict[str, Run] = {run.info.run_id: run for run in search_runs(client, self.experiment_ids)}
        self.num_runs = 0
        self.num_superseded = 0

    def check(self) -> None:
        """Check every run that claims any of the manifests, then that each manifest has its producer and model."""
        produced: set[str] = set()
        jobs: set[str] = set()
        for run in self.runs.values():
            facts = self._facts_of_run(run.data.tags)
            if facts is not None and self._was_superseded(run.data.tags, facts):
                self.num_superseded += 1
            elif facts is not None:
                self.num_runs += 1
                self._check_node_run(run, facts)
                jobs.add(run.data.tags.get("mlflow.parentRunId", ""))
                if run.data.tags.get("x2.producer") == "true":
                    produced.add(facts.manifest_path)
        for run_id in sorted(jobs - {""}):
            self._check_job_run(run_id)
        for path, facts in self.facts.items():
            if path not in produced:
                self.note("mlflow_run_missing", f"{facts.node} ({path})", "a run that produced it", "none", REBUILD)
            if facts.model:
                self._check_model(facts)

    def _facts_of_run(self, tags: Mapping[str, str]) -> NodeFacts | None:
        """The manifest a run is about, found by any one of its marks, so that editing one cannot hide the run."""
        for facts in self.facts.values():
            if (
                tags.get("x2.manifest_path") == facts.manifest_path
                or tags.get("x2.manifest_sha") == facts.manifest_sha256
            ):
                return facts
            if (tags.get("x2.stage_key"), tags.get("x2.node")) == (facts.fingerprint, facts.node):
                return facts
        return None

    def _was_superseded(self, tags: Mapping[str, str], facts: NodeFacts) -> bool:
        """True for an older run that rightly names another manifest: a forced rerun (network, GPU) made other bytes and
        replaced it. The sealed spool of that run proves what its manifest was."""
        seal = tags.get("x2.manifest_sha")
        if seal == facts.manifest_sha256 or not tags.get("x2.dag_run"):
            return False
        records = Spool(self.store, tags["x2.dag_run"]).read()
        told = {r.facts.manifest_sha256 for r in records if r.facts and r.run_key == tags.get("x2.run_key")}
        return seal in told

    def _check_node_run(self, run: Run, facts: NodeFacts) -> None:
        tags, params = run.data.tags, dict(run.data.params)
        where = f"MLflow run {run.info.run_id} ({facts.node})"
        cache: Any = tags.get("x2.cache", "")
        record = LineageRecord.model_construct(
            type="node_finished",
            dag_run=tags.get("x2.dag_run", ""),
            experiment=tags.get("x2.experiment", ""),
            time_ms=0,
            node=facts.node,
            cache=cache,
            message="",
            tags={"x2.plan_sha": tags.get("x2.plan_sha", "")},
            facts=facts,
        )
        for key, value in node_tags(record).items():
            self._same("mlflow_tag_differs", f"{where}, tag {key}", value, tags.get(key))
        self._check_seal(run, where)
        self._same("mlflow_param_differs", where, node_params(facts), params)
        self._same("mlflow_status_differs", where, "FINISHED", run.info.status)
        self._check_datasets(run, facts, where)
        self._check_metrics(run, facts, where, cache)
        if cache == "hit":
            self._check_producer(run, facts, where)

    def _check_seal(self, run: Run, where: str) -> None:
        expected = tag_seal(run.data.tags, run.data.params)
        self._same("mlflow_tags_edited", f"{where}, tag x2.seal", expected, run.data.tags.get("x2.seal"))

    def _check_job_run(self, run_id: str) -> None:
        where = f"MLflow run {run_id}"
        run = self.runs.get(run_id)
        if run is None:
            self.note("mlflow_run_missing", where, "the run of the job", "none, or deleted", REMEDY)
            return
        self._check_seal(run, where)
        self._same("mlflow_tag_differs", f"{where}, tag x2.kind", "job", run.data.tags.get("x2.kind"))

    def _check_datasets(self, run: Run, facts: NodeFacts, where: str) -> None:
        edges = {edge.identity(): edge for edge in datasets_of(facts)}
        found = dict(stored_edges(run))
        self._same("mlflow_inputs_differ", where, sorted(edges), sorted(found))
        for identity, source in found.items():
            if identity in edges:
                root = json.loads(edges[identity].source)["root"]
                self._same("mlflow_source_differs", f"{where}, input {identity[0]}", root, source.get("root"))
        for item in run.inputs.dataset_inputs if run.inputs else []:
            tags = {tag.key: tag.value for tag in item.tags}
            edge = edges.get((item.dataset.name, item.dataset.digest, tags.pop("mlflow.data.context", "")))
            if edge:
                self._same("mlflow_input_tag_differs", f"{where}, input {edge.name}", dict(edge.tags), tags)

    def _check_metrics(self, run: Run, facts: NodeFacts, where: str, cache: str) -> None:
        expected = node_metrics(facts)
        if cache != "hit":
            expected |= self._last_of_series(facts)
        found = {key: run.data.metrics.get(key) for key in expected}
        for key, value in expected.items():
            if not (cache == "hit" and found[key] is None):
                self._same("mlflow_metric_differs", f"{where}, metric {key}", value, found[key])

    def _last_of_series(self, facts: NodeFacts) -> dict[str, float]:
        last: dict[str, float] = {}
        for uri in facts.series_uris:
            try:
                points = series_points(read_uri(self.store, uri).decode("utf-8"))
            except (OSError, ValueError):
                continue  # the audit of files has already said that this one is gone or changed
            last |= {key: series[max(series)] for key, series in points.items()}
        return last

    def _check_producer(self, run: Run, facts: NodeFacts, where: str) -> None:
        producer = self.runs.get(run.data.tags.get("x2.produced_by", ""))
        if producer is None:
            found = run.data.tags.get("x2.produced_by")
            self.note("mlflow_producer_missing", where, "x2.produced_by to name an existing run", found, REMEDY)
            return
        tags = producer.data.tags
        found_pair = (tags.get("x2.manifest_sha"), tags.get("x2.producer"))
        self._same("mlflow_producer_differs", where, (facts.manifest_sha256, "true"), found_pair)

    def _check_model(self, facts: NodeFacts) -> None:
        model = find_model(self.client, self.experiment_ids, facts.manifest_sha256) if self.experiment_ids else None
        if model is None:
            self.note("mlflow_model_missing", facts.node, "a logged model with this manifest", "none", REBUILD)
            return
        self._check_model_tags(model, facts)

    def _check_model_tags(self, model: LoggedModel, facts: NodeFacts) -> None:
        where = f"MLflow model {model.model_id} ({facts.node})"
        record = LineageRecord(type="node_finished", dag_run=model.tags.get("x2.dag_run", ""), experiment="", time_ms=0)
        for key, value in model_tags(record, facts).items():
            self._same("mlflow_model_tag_differs", f"{where}, tag {key}", value, model.tags.get(key))
        run = self.runs.get(model.source_run_id or "")
        if run is None:
            self.note("mlflow_model_orphaned", where, "its source run", f"no run {model.source_run_id}", REMEDY)
            return
        self._same("mlflow_model_run_differs", where, facts.manifest_sha256, run.data.tags.get("x2.manifest_sha"))
        dag_run = run.data.tags.get("x2.dag_run")
        self._same("mlflow_model_tag_differs", f"{where}, tag x2.dag_run", dag_run, model.tags.get("x2.dag_run"))
        outputs = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        if model.model_id not in outputs:
            self.note("mlflow_output_missing", where, f"an output of run {run.info.run_id}", outputs, REMEDY)

    def _same(self, kind: str, where: str, expected: object, found: object) -> None:
        if expected != found:
            self.note(kind, where, expected, found, REMEDY)


def manifests_of(client: MlflowClient, target: str) -> list[tuple[str, str]]:
    """(path, seal) of the manifests that a run id, model id or models:/ URI stands for; empty if there is none."""
    try:
        if target.startswith("models:/") and "@" in target:
            name, alias = target.removeprefix("models:/").split("@", 1)
            target = str(client.get_model_version_by_alias(name, alias).source)
        target = target.removeprefix("models:/")
        if target.startswith("m-"):
            tags = client.get_logged_model(target).tags
            return [(tags["x2.manifest_path"], tags.get("x2.manifest_sha", ""))]
        run = client.get_run(target)
    except (MlflowException, KeyError):
        return []
    runs = [run]
    if run.data.tags.get("x2.kind") == "job":
        query = f"tags.`mlflow.parentRunId` = '{target}'"
        runs = list(search_runs(client, [run.info.experiment_id], query))
    return [
        (run.data.tags["x2.manifest_path"], run.data.tags.get("x2.manifest_sha", ""))
        for run in runs
        if "x2.manifest_path" in run.data.tags
    ]
