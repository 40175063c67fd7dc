"""The driver's end of the process that brings lineage to MLflow."""

import json
import logging
import os
import subprocess
import sys

from pipelines.flow.store.store import Store
from pipelines.project import PROJECT_ROOT

log = logging.getLogger(__name__)

STOP_SECONDS = 1.0  # how long MLflow is waited for where somebody waits for the process to end
LIVE_SECONDS = 5.0  # between two looks of the sink at the numbers of running nodes


class SinkProcess:
    """The process that delivers a spool while the run goes on (`sink`)."""

    def __init__(self, store: Store, dag_run: str, tracking_uri: str, live_seconds: float = LIVE_SECONDS) -> None:
        self.dag_run = dag_run
        path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.flow.lineage.sink"],
            stdin=subprocess.PIPE,
            # MLflow's notices about its own tables are nothing to a person who waits for a pre-training.
            env={**os.environ, "PYTHONPATH": path, "MLFLOW_LOGGING_LEVEL": "WARNING"},
            start_new_session=True,  # Ctrl-C stops the run; the sink then still says so to MLflow
        )
        job = {
            "store": store.uri,
            "storage_options": store.blobs.storage_options,  # over the pipe: it may hold secrets
            "dag_run": dag_run,
            "tracking_uri": tracking_uri,
            "live_seconds": live_seconds,
        }
        assert self.process.stdin is not None
        self.pipe = self.process.stdin.fileno()
        self._write(json.dumps(job).encode() + b"\n")
        os.set_blocking(self.pipe, False)

    def notify(self) -> None:
        """Say that there is something new. Never blocks; a dead sink is noticed at the end."""
        self._write(b"\n")

    def _write(self, data: bytes) -> None:
        try:
            os.write(self.pipe, data)
        except (BrokenPipeError, BlockingIOError) as error:
            log.debug("event=sink_not_listening dag_run=%s error=%s", self.dag_run, type(error).__name__)

    def close(self, grace_seconds: float) -> bool:
        """Wait for the last delivery; True if MLflow has everything. The process is gone afterwards."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it died; its exit code says so below
        code = -1
        try:
            code = self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:  # Ctrl-C while it is waited for must not leave it behind either
            self.process.kill()
            self.process.wait()
        if code:
            log.log(
                logging.WARNING if grace_seconds > STOP_SECONDS else logging.INFO,  # who stops a run expects it
                "event=lineage_not_delivered dag_run=%s remedy=%r",
                self.dag_run,
                "the records are kept in the store; the next run delivers them",
            )
        return code == 0
