"""Delivery of spooled lineage to MLflow: idempotent, read back, through `MlflowClient` only.

The records of a spool are delivered in order, and everything written is read back and compared.
"""

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.flow.lineage.dag_runs import LIVE_EARLIER, LIVE_KEY, DagRuns
from pipelines.flow.lineage.facts import LineageRecord
from pipelines.flow.lineage.facts_writer import FactsWriter
from pipelines.flow.lineage.mlflow_client import connect, own_experiment_ids, search_runs
from pipelines.flow.lineage.page import write_page
from pipelines.flow.lineage.run_fields import job_tags, node_params, node_tags, sealed
from pipelines.flow.lineage.spool import Spool
from pipelines.flow.store.store import Store

log = logging.getLogger(__name__)

MARK_SECONDS = 5.0  # progress is noted this often, so that a long delivery cut short goes on instead of starting again


class Delivery:
    """Delivers the records of one spool to one server, in order. After an error make a new one: it looks up afresh."""

    def __init__(self, store: Store, tracking_uri: str, spool: Spool) -> None:
        self.store, self.tracking_uri, self.spool = store, tracking_uri, spool
        self.client = connect(tracking_uri)
        self.runs = DagRuns(self.client, store, spool.dag_run)
        self.facts = FactsWriter(self.runs)

    def deliver(self) -> int:
        """Deliver what is new; the number of records delivered. Raises MlflowException, OSError or LineageMismatch."""
        records = self.spool.read()
        done = self.spool.num_delivered(self.tracking_uri)
        if done >= len(records):
            return 0
        if not self.runs.experiment_id:
            self.runs.load(records[0].experiment, self._artifact_location())
        producers = self._find_producers(records[done:])
        marked = time.monotonic()
        for number, record in enumerate(records[done:], start=done + 1):
            self._apply(record, producers)
            if time.monotonic() - marked > MARK_SECONDS:
                self.runs.read_back()
                self.spool.mark_delivered(self.tracking_uri, number)
                marked = time.monotonic()
        self.runs.read_back()
        if records[-1].type == "run_finished":
            self._log_page(records)
        self.spool.mark_delivered(self.tracking_uri, len(records))
        return len(records) - done

    def _artifact_location(self) -> str | None:
        """Beside a local store for a local database; a server knows better by itself."""
        root = self.store.blobs.local_root
        return (root / "mlflow-artifacts").as_uri() if root and self.tracking_uri.startswith("sqlite:") else None

    def _apply(self, record: LineageRecord, producers: dict[str, str]) -> None:
        if record.type == "run_started":
            tags = sealed(job_tags(record), {})
            if commit := record.tags.get("x2.git_sha"):
                tags["mlflow.source.git.commit"] = commit
            self.runs.ensure(record, record.run_key, record.dag_run, tags, record.time_ms)
        elif record.type == "run_finished":
            self.runs.end_open_nodes(record)
            self.runs.terminate(self.runs.ids[record.run_key], record)
        else:
            self._apply_node(record, producers)

    def _apply_node(self, record: LineageRecord, producers: dict[str, str]) -> None:
        facts = record.facts
        if record.live_key and not facts and not self.runs.take_over(record):
            return
        tags = node_tags(record)
        if facts and record.cache == "hit":
            tags["x2.produced_by"] = producers.get(facts.manifest_sha256) or self._rebuild_producer(record)
            producers[facts.manifest_sha256] = tags["x2.produced_by"]
        params = node_params(facts) if facts else {}
        tags = sealed(tags, params)
        parent = self.runs.ids.get(f"{record.dag_run}:job")
        if parent:
            tags["mlflow.parentRunId"] = parent
        if record.live_key:
            tags[LIVE_KEY] = record.live_key
        if record.run_key in self.runs.taken_over:
            tags[LIVE_EARLIER] = self.runs.taken_over[record.run_key]
        run_id = self.runs.ensure(record, record.run_key, record.node, tags, record.started_ms or record.time_ms)
        if facts:
            run_id = self.facts.write(run_id, record, facts, params)
        if record.type != "node_started":
            self.runs.terminate(run_id, record)

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
        for run in search_runs(self.client, [self.runs.experiment_id], query):
            self.runs.ids[rebuilt.run_key] = run.info.run_id
        run_id = self.runs.ensure(rebuilt, rebuilt.run_key, record.node, tags, record.started_ms or record.time_ms)
        run_id = self.facts.write(run_id, rebuilt, facts, params)
        self.client.set_terminated(run_id, "FINISHED", end_time=record.time_ms)
        return run_id

    def _log_page(self, records: Sequence[LineageRecord]) -> None:
        """The graph of this run as an artifact of its MLflow run, where artifacts are files of this machine."""
        run = self.client.get_run(self.runs.ids[f"{self.spool.dag_run}:job"])
        uri = urlsplit(run.info.artifact_uri)
        if uri.scheme not in ("", "file"):
            return
        with tempfile.TemporaryDirectory() as folder:
            page = write_page(records, Path(folder) / "lineage.html", self.store.uri)
            self.client.log_artifact(run.info.run_id, str(page))
