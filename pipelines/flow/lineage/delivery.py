"""Delivery of spooled lineage to MLflow: idempotent, read back, through `MlflowClient` only.

Every MLflow run carries `x2.run_key`; whatever crashed between a request and its answer is found by it and completed,
never written twice. Everything written is read back and compared.
"""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.exceptions import MlflowException

from pipelines.flow.lineage.facts import (
    MAX_TAG_LENGTH,
    DatasetEdge,
    LineageRecord,
    NodeFacts,
    cut,
    datasets_of,
    job_tags,
    metric_name,
    node_metrics,
    node_params,
    node_tags,
    sealed,
    series_points,
)
from pipelines.flow.lineage.mlflow_client import (
    connect,
    experiment_name,
    find_model,
    own_experiment_ids,
    read_uri,
    search_runs,
)
from pipelines.flow.lineage.page import write_page
from pipelines.flow.lineage.readback import LineageMismatch, Written, check_run
from pipelines.flow.lineage.spool import Spool
from pipelines.flow.store.store import Store

log = logging.getLogger(__name__)

MAX_METRICS_PER_BATCH = 900  # MLflow takes 1,000 entities a request
MAX_PARAMS_PER_BATCH = 90
# Working notes of runs whose numbers come while their node runs. Not `x2.`: they claim nothing, so no seal covers them.
LIVE_KEY = "live.key"  # the node's fingerprint
LIVE_EARLIER = "live.earlier"  # run keys of the jobs that began the run
LIVE_DIFFERS = "live.differs"  # metric: steps at which MLflow has another value than the manifest's series
MARK_SECONDS = 5.0  # progress is noted this often, so that a long delivery cut short goes on instead of starting again
T = TypeVar("T")


class Delivery:
    """Delivers the records of one spool to one server, in order. After an error make a new one: it looks up afresh."""

    def __init__(self, store: Store, tracking_uri: str, spool: Spool) -> None:
        self.store, self.tracking_uri, self.spool = store, tracking_uri, spool
        self.client = connect(tracking_uri)
        self.experiment_id = ""
        self.runs: dict[str, str] = {}  # run key -> MLflow run id
        self.finished: set[str] = set()  # ids of runs that have ended
        self.found: set[str] = set()  # ids of runs that a former delivery began
        self.written: dict[str, Written] = {}  # to be read back, by run id
        self.taken_over: dict[str, str] = {}  # run key -> run keys of the earlier jobs that began that run

    def deliver(self) -> int:
        """Deliver what is new; the number of records delivered. Raises MlflowException, OSError or LineageMismatch."""
        records = self.spool.read()
        done = self.spool.num_delivered(self.tracking_uri)
        if done >= len(records):
            return 0
        if not self.experiment_id:
            self.experiment_id = self._ensure_experiment(records[0].experiment)
            self._load_runs()
        producers = self._find_producers(records[done:])
        marked = time.monotonic()
        for number, record in enumerate(records[done:], start=done + 1):
            self._apply(record, producers)
            if time.monotonic() - marked > MARK_SECONDS:
                self._read_back()
                self.spool.mark_delivered(self.tracking_uri, number)
                marked = time.monotonic()
        self._read_back()
        if records[-1].type == "run_finished":
            self._log_page(records)
        self.spool.mark_delivered(self.tracking_uri, len(records))
        return len(records) - done

    # ---- runs

    def _ensure_experiment(self, experiment: str) -> str:
        name = experiment_name(experiment)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=self._artifact_location()))
            except MlflowException:  # another job was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise LineageMismatch(
                f"MLflow experiment {name} is deleted; restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        return str(found.experiment_id)

    def _artifact_location(self) -> str | None:
        """Beside a local store for a local database; a server knows better by itself."""
        root = self.store.blobs.local_root
        return (root / "mlflow-artifacts").as_uri() if root and self.tracking_uri.startswith("sqlite:") else None

    def _load_runs(self) -> None:
        """Find what a former delivery left, and remove runs that a request repeated on the wire made twice."""
        query = f"tags.`x2.dag_run` = '{self.spool.dag_run}'"
        for run in search_runs(self.client, [self.experiment_id], query):
            key, run_id = run.data.tags.get("x2.run_key", ""), run.info.run_id
            if key in self.runs:
                log.warning("event=duplicate_run_removed run_key=%s run_id=%s", key, run_id)
                self.client.delete_run(run_id)
                continue
            self.runs[key] = run_id
            self.found.add(run_id)
            if run.info.status != "RUNNING":
                self.finished.add(run_id)

    def _ensure_run(self, record: LineageRecord, key: str, name: str, tags: dict[str, str], start_ms: int) -> str:
        run_id = self.runs.get(key)
        if run_id is None:
            run = self.client.create_run(self.experiment_id, start_time=start_ms, tags=tags, run_name=name)
            run_id = self.runs[key] = run.info.run_id
        else:
            for batch in _batches([RunTag(k, v) for k, v in tags.items()], MAX_PARAMS_PER_BATCH):
                self.client.log_batch(run_id, tags=batch)
        self.written[run_id] = Written(record, tags)
        return run_id

    def _apply(self, record: LineageRecord, producers: dict[str, str]) -> None:
        if record.type == "run_started":
            tags = sealed(job_tags(record), {})
            if commit := record.tags.get("x2.git_sha"):
                tags["mlflow.source.git.commit"] = commit
            self._ensure_run(record, record.run_key, record.dag_run, tags, record.time_ms)
        elif record.type == "run_finished":
            for key, run_id in self.runs.items():  # nodes under way when their driver was stopped or died
                if key.startswith(f"{record.dag_run}:") and key != record.run_key:
                    self._terminate(run_id, record.model_copy(update={"status": "KILLED"}))
            self._terminate(self.runs[record.run_key], record)
        else:
            self._apply_node(record, producers)

    def _apply_node(self, record: LineageRecord, producers: dict[str, str]) -> None:
        facts = record.facts
        if record.live_key and not facts and not self._take_over(record):
            return
        tags = node_tags(record)
        if facts and record.cache == "hit":
            tags["x2.produced_by"] = producers.get(facts.manifest_sha256) or self._rebuild_producer(record)
            producers[facts.manifest_sha256] = tags["x2.produced_by"]
        params = node_params(facts) if facts else {}
        tags = sealed(tags, params)
        parent = self.runs.get(f"{record.dag_run}:job")
        if parent:
            tags["mlflow.parentRunId"] = parent
        if record.live_key:
            tags[LIVE_KEY] = record.live_key
        if record.run_key in self.taken_over:
            tags[LIVE_EARLIER] = self.taken_over[record.run_key]
        run_id = self._ensure_run(record, record.run_key, record.node, tags, record.started_ms or record.time_ms)
        if facts:
            run_id = self._log_facts(run_id, record, facts, params)
        if record.type != "node_started":
            self._terminate(run_id, record)

    def _take_over(self, record: LineageRecord) -> bool:
        """Give the run of a node that an earlier job of this store could not finish to the job of `record`.

        The curve of a training then stays one curve, however often it was stopped. False where it is the other way
        round: a later job goes on with this node, and what `record` tells of it is no news any more.
        """
        if record.run_key in self.runs:
            return True
        query = f"tags.`{LIVE_KEY}` = '{record.live_key}' AND tags.`x2.node` = '{record.node}'"
        found: Run | None = None
        for run in search_runs(self.client, [self.experiment_id], query):
            dag_run = run.data.tags.get("x2.dag_run", "")
            told = Spool(self.store, dag_run).read() if dag_run else []
            if not told:  # a job of another store, which may well be alive: no business of ours
                continue
            if dag_run > record.dag_run:
                return False
            is_done = any(item.facts and item.node == record.node for item in told)
            if record.type == "node_started" and run.info.status != "FINISHED" and not is_done:
                found = run
        if found is not None:
            run_id, tags = found.info.run_id, found.data.tags
            log.info("event=run_taken_over run_key=%s from=%s run_id=%s", record.run_key, tags["x2.run_key"], run_id)
            if "x2.message" in tags:  # why it failed then; that job's lineage page still tells
                self.client.delete_tag(run_id, "x2.message")
            self.client.update_run(run_id, status="RUNNING")
            earlier = f"{tags.get(LIVE_EARLIER, '')} {tags['x2.run_key']}".strip()
            self.taken_over[record.run_key] = earlier[-MAX_TAG_LENGTH:]
            self.runs[record.run_key] = run_id
            self.found.add(run_id)
        return True

    def _terminate(self, run_id: str, record: LineageRecord) -> None:
        if run_id not in self.finished:
            self.client.set_terminated(run_id, record.status or "FINISHED", end_time=record.time_ms)
            self.finished.add(run_id)

    # ---- what a node read, wrote and measured

    def _log_facts(self, run_id: str, record: LineageRecord, facts: NodeFacts, params: dict[str, str]) -> str:
        """Tell all that a manifest says; the id of the run, which is a new one where `_renewed` had to make one."""
        edges = datasets_of(facts)
        models = [model.model_id for node in facts.model_nodes if (model := self._model_of_node(facts, node))]
        produced = record.cache != "hit"
        dataset = _measured_on(edges) if models and produced else None
        series = self._series(facts) if produced else {}
        there = {key: self._points_there(run_id, key) for key in series}
        if run_id not in self.finished and any(_ends_otherwise(there[key], series[key]) for key in series):
            run_id, there = self._renewed(run_id, record), {}
        self._note_differences(run_id, there, series)
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
        self.written[run_id].metrics = final | {key: points[max(points)] for key, points in series.items()}
        param_batches = _batches([Param(k, v) for k, v in params.items()], MAX_PARAMS_PER_BATCH)
        metric_batches = _batches(metrics, MAX_METRICS_PER_BATCH)
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
        if run_id not in self.found:
            return []
        return sorted((point.step, point.value) for point in self.client.get_metric_history(run_id, key))

    def _renewed(self, run_id: str, record: LineageRecord) -> str:
        """The id of a run in place of `run_id`, whose curves cannot be made those of the manifest.

        MLflow takes no point back, and what a run holds as a metric's last value must be right. Rare: a training lost
        the very last steps of a curve in a crash, and they came out different when it made them again.
        """
        tags = self.written.pop(run_id).tags
        log.warning("event=run_written_anew run_key=%s run_id=%s reason=curve_ends_otherwise", record.run_key, run_id)
        self.client.delete_run(run_id)
        del self.runs[record.run_key]
        return self._ensure_run(record, record.run_key, record.node, tags, record.started_ms or record.time_ms)

    def _note_differences(
        self, run_id: str, there: Mapping[str, Sequence[tuple[int, float]]], series: Mapping[str, Mapping[int, float]]
    ) -> None:
        """Say in a tag at how many steps a curve differs from the manifest's: steps that were made twice."""
        numbers = {
            key: sum(series[key].get(step) != value for step, value in points) for key, points in sorted(there.items())
        }
        told = ", ".join(f"{key}: {number}" for key, number in numbers.items() if number)
        if told:
            log.warning("event=curves_differ run_id=%s num_steps=%r", run_id, told)
            self.client.set_tag(run_id, LIVE_DIFFERS, cut(told, MAX_TAG_LENGTH))

    def _log_model(self, run_id: str, record: LineageRecord, facts: NodeFacts) -> None:
        """The node's model as a logged model and output of its run, once however often this is called."""
        model = find_model(self.client, [self.experiment_id], facts.manifest_sha256)
        if model is None:
            model = self.client.create_logged_model(
                self.experiment_id,
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

    # ---- producers of reused artifacts

    def _find_producers(self, records: Sequence[LineageRecord]) -> dict[str, str]:
        """Manifest seal -> id of the run that produced it, for those that `records` reuse."""
        wanted = {r.facts.manifest_sha256 for r in records if r.facts and r.cache == "hit"}
        found: dict[str, str] = {}
        if wanted:
            for run in search_runs(self.client, own_experiment_ids(self.client), "tags.`x2.producer` = 'true'"):
                if (seal := run.data.tags.get("x2.manifest_sha", "")) in wanted:
                    found.setdefault(seal, run.info.run_id)
                    if len(found) == len(wanted):
                        break
        return found

    def _rebuild_producer(self, record: LineageRecord) -> str:
        """A producing run made from the manifest alone, where MLflow lost or never had it: the walk must not break."""
        facts = record.facts
        assert facts is not None
        dag_run = facts.dag_run or "unrecorded"
        rebuilt = record.model_copy(
            update={"cache": "miss", "dag_run": f"rebuilt-{dag_run}-{facts.manifest_sha256[:12]}", "tags": {}}
        )
        params = node_params(facts)
        tags = sealed(node_tags(rebuilt) | {"x2.rebuilt": "true"}, params)
        log.warning("event=producer_rebuilt node=%s manifest=%s", record.node, facts.manifest_path)
        query = f"tags.`x2.run_key` = '{rebuilt.run_key}'"
        for run in search_runs(self.client, [self.experiment_id], query):
            self.runs[rebuilt.run_key] = run.info.run_id
        run_id = self._ensure_run(rebuilt, rebuilt.run_key, record.node, tags, record.started_ms or record.time_ms)
        run_id = self._log_facts(run_id, rebuilt, facts, params)
        self.client.set_terminated(run_id, "FINISHED", end_time=record.time_ms)
        return run_id

    # ---- proof

    def _read_back(self) -> None:
        """Compare everything written since the last time with what MLflow now holds; LineageMismatch names the first
        difference."""
        if len(self.written) > 3:
            found = {run.info.run_id: run for run in search_runs(self.client, [self.experiment_id], self._query())}
        else:
            found = {}
        for run_id, written in self.written.items():
            check_run(found.get(run_id) or self.client.get_run(run_id), written)
        self.written.clear()

    def _query(self) -> str:
        return f"tags.`x2.dag_run` = '{self.spool.dag_run}'"

    def _log_page(self, records: Sequence[LineageRecord]) -> None:
        """The graph of this run as an artifact of its MLflow run, where artifacts are files of this machine."""
        run = self.client.get_run(self.runs[f"{self.spool.dag_run}:job"])
        uri = urlsplit(run.info.artifact_uri)
        if uri.scheme not in ("", "file"):
            return
        with tempfile.TemporaryDirectory() as folder:
            page = write_page(records, Path(folder) / "lineage.html", self.store.uri)
            self.client.log_artifact(run.info.run_id, str(page))


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


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def model_tags(record: LineageRecord, facts: NodeFacts) -> dict[str, str]:
    """Tags of a logged model: which bytes it is and who made it."""
    return {
        "x2.artifact_sha": facts.root,
        "x2.manifest_sha": facts.manifest_sha256,
        "x2.manifest_path": facts.manifest_path,
        "x2.node": facts.node,
        "x2.stage_key": facts.fingerprint,
        "x2.dag_run": record.dag_run,
    }
