"""The MLflow runs of one run of the graph: found, begun, taken over from an earlier job, ended and read back.

Every MLflow run carries `x2.run_key`; whatever crashed between a request and its answer is found by it and completed,
never written twice.
"""

import logging

from mlflow.entities import Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipelines.flow.lineage.facts import LineageRecord
from pipelines.flow.lineage.mlflow_client import MAX_PARAMS_PER_BATCH, batches, experiment_name, search_runs
from pipelines.flow.lineage.readback import LineageMismatch, Written, check_run
from pipelines.flow.lineage.run_fields import MAX_TAG_LENGTH
from pipelines.flow.lineage.spool import Spool
from pipelines.flow.store.store import Store

log = logging.getLogger(__name__)

# Working notes of runs whose numbers come while their node runs. Not `x2.`: they claim nothing, so no seal covers them.
LIVE_KEY = "live.key"  # the node's fingerprint
LIVE_EARLIER = "live.earlier"  # run keys of the jobs that began the run


class DagRuns:
    """The MLflow runs of the job `dag_run` and of its nodes."""

    def __init__(self, client: MlflowClient, store: Store, dag_run: str) -> None:
        self.client, self.store, self.dag_run = client, store, dag_run
        self.experiment_id = ""
        self.ids: dict[str, str] = {}  # run key -> MLflow run id
        self.finished: set[str] = set()  # ids of runs that have ended
        self.found: set[str] = set()  # ids of runs that a former delivery began
        self.written: dict[str, Written] = {}  # to be read back, by run id
        self.taken_over: dict[str, str] = {}  # run key -> run keys of the earlier jobs that began that run

    def load(self, experiment: str, artifact_location: str | None) -> None:
        """Find what a former delivery left, and remove runs that a request repeated on the wire made twice.

        LineageMismatch if the experiment was deleted in MLflow.
        """
        self.experiment_id = self._ensure_experiment(experiment, artifact_location)
        for run in search_runs(self.client, [self.experiment_id], self._query()):
            key, run_id = run.data.tags.get("x2.run_key", ""), run.info.run_id
            if key in self.ids:
                log.warning("event=duplicate_run_removed run_key=%s run_id=%s", key, run_id)
                self.client.delete_run(run_id)
                continue
            self.ids[key] = run_id
            self.found.add(run_id)
            if run.info.status != "RUNNING":
                self.finished.add(run_id)

    def _ensure_experiment(self, experiment: str, artifact_location: str | None) -> str:
        name = experiment_name(experiment)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, artifact_location=artifact_location))
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

    def ensure(self, record: LineageRecord, key: str, name: str, tags: dict[str, str], start_ms: int) -> str:
        """The id of the MLflow run of `key`, begun with these tags or given them."""
        run_id = self.ids.get(key)
        if run_id is None:
            run = self.client.create_run(self.experiment_id, start_time=start_ms, tags=tags, run_name=name)
            run_id = self.ids[key] = run.info.run_id
        else:
            for batch in batches([RunTag(k, v) for k, v in tags.items()], MAX_PARAMS_PER_BATCH):
                self.client.log_batch(run_id, tags=batch)
        self.written[run_id] = Written(record, tags)
        return run_id

    def take_over(self, record: LineageRecord) -> bool:
        """Give the run of a node that an earlier job of this store could not finish to the job of `record`.

        The curve of a training then stays one curve, however often it was stopped. False where it is the other way
        round: a later job goes on with this node, and what `record` tells of it is no news any more.
        """
        if record.run_key in self.ids:
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
            self.ids[record.run_key] = run_id
            self.found.add(run_id)
        return True

    def terminate(self, run_id: str, record: LineageRecord) -> None:
        """End a run, unless it has ended."""
        if run_id not in self.finished:
            self.client.set_terminated(run_id, record.status or "FINISHED", end_time=record.time_ms)
            self.finished.add(run_id)

    def end_open_nodes(self, record: LineageRecord) -> None:
        """Mark the nodes under way when their driver was stopped or died; `record` tells of the end of the job."""
        for key, run_id in self.ids.items():
            if key.startswith(f"{record.dag_run}:") and key != record.run_key:
                self.terminate(run_id, record.model_copy(update={"status": "KILLED"}))

    def renew(self, run_id: str, record: LineageRecord, only_timings: bool = False) -> str:
        """The id of a run in place of `run_id`, whose curves (`only_timings`: of speeds) cannot be made the manifest's.

        MLflow takes no point back, and what a run holds as a metric's last value must be right. Rare: a training lost
        the very last steps of a curve in a crash, and they came out different when it made them again.
        """
        tags = self.written.pop(run_id).tags
        level = logging.INFO if only_timings else logging.WARNING
        log.log(
            level, "event=run_written_anew run_key=%s run_id=%s reason=curve_ends_otherwise", record.run_key, run_id
        )
        self.client.delete_run(run_id)
        del self.ids[record.run_key]
        return self.ensure(record, record.run_key, record.node, tags, record.started_ms or record.time_ms)

    def read_back(self) -> None:
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
        return f"tags.`x2.dag_run` = '{self.dag_run}'"
