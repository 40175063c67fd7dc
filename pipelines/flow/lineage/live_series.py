"""Numbers of a node in MLflow while it still runs: what its series file gained, every few seconds, into the node's run.

A view ahead of the manifest, by the sink process: the node never waits for it and does not know of it. What is not sent
when the node ends comes then, from the manifest (`facts_writer`), which also has the last word on what was sent.

Of long series MLflow gets a part (`series.shown_numbers`), so that its load stays bounded.

MLflow keeps two points of one step as two, and takes none back. So a line is sent only if its step lies beyond all that
the run holds. Lines are sent in the order of their steps and whole, in one request each or several to a request, which
MLflow stores as one transaction; so the largest step in the run says which lines are there, after any crash. A training
that lost steps in a crash makes them again: MLflow keeps the first making of such a step while the training runs.
Waiting for the checkpoint that makes a step final would send each step's last making only, but the recipes save every
5,000 steps: a curve an hour late is not what a person who watches needs. The sample, killed at step 51 of 120 after a
checkpoint at 30 and run again on CPU, ended with 120 points, every loss equal to the manifest's; speeds differed at 25.
"""

import logging
from collections import deque

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from pipelines.flow.lineage.facts import LineageRecord
from pipelines.flow.lineage.mlflow_client import MAX_METRICS_PER_BATCH, connect, experiment_name, now_ms, search_runs
from pipelines.flow.lineage.series import shown_numbers, step_numbers
from pipelines.flow.lineage.spool import Spool, running_series
from pipelines.flow.store.store import Store
from x2vlm.stores.calls import StoreUnavailable
from x2vlm.stores.segments import HEAD, folder_of, num_segments, segment_name

log = logging.getLogger(__name__)

LAST_RETRY_SECONDS = 300.0
READ_BYTES = 4 << 20  # at a time
MAX_REQUESTS = 20  # in one go: then the sink looks whether there is news of the run itself


class SeriesTail:
    """Reads a growing series of JSON lines in the store: every whole line whose step is beyond `last_step`, once, in
    order.

    The series is a file, or segments (`x2vlm.stores.segments`), or both: a file that segments go on from. A file that
    was cut or rewritten (a training that resumed) is read from its beginning again.
    """

    def __init__(self, store: Store, path: str, last_step: int = -1) -> None:
        self.store, self.path, self.last_step = store, path, last_step
        self._folder = folder_of(path)
        self._segment = -1  # the file comes before all segments
        self._start = 0  # of what was not read yet
        self._before = b""  # the line that ends there: if it does not any more, the file is another one

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """New lines as (step, metric -> value), of some READ_BYTES at most; empty if there are none."""
        found: list[tuple[int, dict[str, float]]] = []
        while not found and (lines := self._lines()):
            for line in lines:
                try:
                    step, numbers = step_numbers(line.decode("utf-8"))
                except (ValueError, KeyError) as error:  # not a series; the end of the node will tell
                    log.warning("event=live_line_skipped path=%s error=%r", self.path, str(error))
                    continue
                if step > self.last_step:
                    self.last_step = step
                    if shown := shown_numbers(step, numbers):
                        found.append((step, shown))
        return found

    def _lines(self) -> list[bytes]:
        """The next lines, from where one segment ends on with the next one; empty if there are none yet."""
        while not (lines := self._lines_of(self._path)):
            if self._segment + 1 >= num_segments(self.store.blobs.read(f"{self._folder}/{HEAD}")):
                return []
            self._segment, self._start, self._before = self._segment + 1, 0, b""
        return lines

    @property
    def _path(self) -> str:
        return self.path if self._segment < 0 else f"{self._folder}/{segment_name(self._segment)}"

    def _lines_of(self, path: str) -> list[bytes]:
        begin = self._start - len(self._before)
        data = self.store.blobs.read_range(path, begin, len(self._before) + READ_BYTES)
        if not data.startswith(self._before):
            self._start, self._before = 0, b""
            data = self.store.blobs.read_range(path, 0, READ_BYTES)
        whole = data[len(self._before) : data.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        if lines:
            self._start += len(whole)
            self._before = lines[-1]
        return lines


class LiveFeed:
    """Sends what running nodes have measured since the last time, to the MLflow runs that `Delivery` made for them."""

    def __init__(self, tracking_uri: str, spool: Spool, seconds: float) -> None:
        self.tracking_uri, self.spool, self.seconds = tracking_uri, spool, seconds
        self._client = connect(tracking_uri)
        self._nodes: dict[str, _LiveNode] = {}  # by run key
        self._pause = seconds

    def send(self) -> float:
        """Seconds until the next call makes sense: 0 if more is there, more and more while MLflow refuses."""
        try:
            is_rest = self._send(MAX_REQUESTS)
        except (MlflowException, OSError, StoreUnavailable) as error:
            self._pause = min(2 * self._pause, LAST_RETRY_SECONDS)
            reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
            log.warning(
                "event=live_series_waits dag_run=%s seconds=%.0f error=%r", self.spool.dag_run, self._pause, reason
            )
            return self._pause
        self._pause = self.seconds
        return 0.0 if is_rest else self.seconds

    def _send(self, num_requests: int) -> bool:
        """Whether there is more than `num_requests` requests could take."""
        for record in running_series(self.spool.read()):
            node = self._nodes.get(record.run_key) or self._open(record)
            while node is not None and node.fill():
                if num_requests == 0:
                    return True
                # Until MLflow has answered the batch stays in line. The very same points again are no second points.
                self._client.log_batch(node.run_id, metrics=node.batches[0])
                node.batches.popleft()
                num_requests -= 1
        return False

    def _open(self, record: LineageRecord) -> "_LiveNode | None":
        """The node's run and how far its curve is; None if its start was not delivered yet."""
        experiment = self._client.get_experiment_by_name(experiment_name(record.experiment))
        query = f"tags.`x2.run_key` = '{record.run_key}'"
        for run in search_runs(self._client, [experiment.experiment_id], query) if experiment else ():
            # Only here does MLflow give the step of each latest value.
            steps = [metric.step for metric in run.to_proto().data.metrics]
            tail = SeriesTail(self.spool.store, record.live_series, max(steps, default=-1))
            self._nodes[record.run_key] = _LiveNode(run.info.run_id, tail)
            return self._nodes[record.run_key]
        return None


class _LiveNode:
    """A running node's MLflow run, its file, and what was read of it but not acknowledged by MLflow."""

    def __init__(self, run_id: str, tail: SeriesTail) -> None:
        self.run_id, self.tail = run_id, tail
        self.batches: deque[list[Metric]] = deque()

    def fill(self) -> bool:
        """Read on if nothing is left; whether there is something to send."""
        if not self.batches:
            time_ms, batch = now_ms(), list[Metric]()
            for step, numbers in self.tail.read():
                line = [Metric(key, value, time_ms, step) for key, value in numbers.items()]
                if batch and len(batch) + len(line) > MAX_METRICS_PER_BATCH:
                    self.batches.append(batch)
                    batch = []
                batch += line[:MAX_METRICS_PER_BATCH]  # what a longer line has beyond them comes with the manifest
            if batch:
                self.batches.append(batch)
        return bool(self.batches)
