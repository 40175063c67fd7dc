"""The process beside a run that brings its spool to MLflow. Started by `recorder`; its stdin is the only control.

While nodes run that have a live series it also sends what they measured (`live_series`), for which nobody waits.
The first line is the job as JSON, every further byte means "there is something new", the end of the stream means that
the run is over, or that its driver died: then the run is closed as KILLED in MLflow too.
"""

import json
import logging
import math
import os
import select
import sys
import time
from typing import TYPE_CHECKING, Any

from pipelines.flow.lineage.facts import LineageRecord
from pipelines.flow.lineage.page import write_page_to_store
from pipelines.flow.lineage.spool import Spool, running_series, spools
from pipelines.flow.safe_text import hide, protect_logs
from pipelines.flow.store.identity import Identity
from pipelines.flow.store.store import Store
from x2vlm.stores.calls import StoreUnavailable

if TYPE_CHECKING:
    from pipelines.flow.lineage.live_series import LiveFeed

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0
STDIN = 0


def main() -> int:
    """Exit code: 0 if MLflow has everything, 1 if records are left in the spool."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    protect_logs()
    head = _read_job()
    hide(head["tracking_uri"])
    store = Store(head["store"], head["storage_options"])
    spool = Spool(store, head["dag_run"])
    with spool.exclusive() as mine:
        if not mine:
            return 1
        # Older runs first: what this run reuses then has its producer in MLflow.
        deliver_backlog(spool, head["tracking_uri"], patient=False)
        _follow(spool, head["tracking_uri"], head["live_seconds"])
        if spool.read():  # empty: the plan was busy, or the driver died at once
            _close(spool)
            write_page_to_store(store, spool)
        delivered = try_to_deliver(spool, head["tracking_uri"])
    if delivered:
        deliver_backlog(spool, head["tracking_uri"], patient=True)
    return 0 if delivered else 1


def _read_job() -> dict[str, Any]:
    data = b""
    while b"\n" not in data:
        chunk = os.read(STDIN, 1)
        if not chunk:
            raise SystemExit(1)
        data += chunk
    job: dict[str, Any] = json.loads(data)
    return job


def _follow(spool: Spool, tracking_uri: str, live_seconds: float) -> None:
    """Deliver while the run goes on, and send what running nodes measure; after a failure wait longer and longer."""
    pause, next_try, pending, open_ = FIRST_RETRY_SECONDS, 0.0, False, True
    live = LiveSeries(spool, tracking_uri, live_seconds)
    while open_:
        due = next_try if pending else live.next_time
        timeout = None if due == math.inf else max(0.0, due - time.monotonic())
        if select.select([STDIN], [], [], timeout)[0]:
            open_ = bool(os.read(STDIN, 65536))
            pending = True
        if open_ and pending and time.monotonic() >= next_try:
            pending = not try_to_deliver(spool, tracking_uri)
            pause = min(pause * 2, LAST_RETRY_SECONDS) if pending else FIRST_RETRY_SECONDS
            next_try = time.monotonic() + pause if pending else 0.0
            live.look()
        if open_ and not pending and time.monotonic() >= live.next_time:
            live.send()


class LiveSeries:
    """When to send the numbers of running nodes; the sending itself needs MLflow's imports, so it waits for a node."""

    def __init__(self, spool: Spool, tracking_uri: str, seconds: float) -> None:
        self.spool, self.tracking_uri, self.seconds = spool, tracking_uri, seconds
        self.next_time = math.inf  # of the monotonic clock
        self._feed: LiveFeed | None = None

    def look(self) -> None:
        """See whether a node with live numbers runs."""
        is_running = bool(running_series(self.spool.read()))
        self.next_time = min(self.next_time, time.monotonic()) if is_running else math.inf

    def send(self) -> None:
        """Send what is there."""
        from pipelines.flow.lineage.live_series import LiveFeed

        self._feed = self._feed or LiveFeed(self.tracking_uri, self.spool, self.seconds)
        self.next_time = time.monotonic() + self._feed.send()


def deliver_backlog(own: Spool, tracking_uri: str, patient: bool) -> None:
    """Bring what earlier runs could not. Unless `patient`, the first failure ends it: the server may be dead.

    Spools that another live sink holds are left to it.
    """
    for spool in spools(own.store):
        if spool.dag_run == own.dag_run:
            continue
        with spool.exclusive() as mine:
            if mine:
                if _driver_is_dead(spool):
                    _close(spool)
                if not try_to_deliver(spool, tracking_uri) and not patient:
                    return


def _driver_is_dead(spool: Spool) -> bool:
    """Whether the spool's driver is known to be gone; its own sink may have died with it, in a power failure say."""
    records = spool.read()
    driver = Identity.from_token(records[0].tags.get("x2.driver", "")) if records else None
    return driver is not None and driver.is_alive() is False


def _close(spool: Spool) -> None:
    """End a run whose driver died before it could."""
    records = spool.read()
    if records and records[-1].type != "run_finished":
        first = records[0]
        spool.append(
            LineageRecord(
                type="run_finished",
                dag_run=first.dag_run,
                experiment=first.experiment,
                time_ms=int(time.time() * 1000),
                tags=first.tags,
                status="KILLED",
                message="the driver died before the run was over",
            )
        )


def try_to_deliver(spool: Spool, tracking_uri: str) -> bool:
    """Whether MLflow now has every record of `spool`; why not is logged."""
    if spool.num_delivered(tracking_uri) >= len(spool.read()):
        return True
    from mlflow.exceptions import MlflowException  # seconds of imports: only once there is something to deliver

    from pipelines.flow.lineage.delivery import Delivery
    from pipelines.flow.lineage.readback import LineageMismatch

    try:
        Delivery(spool.store, tracking_uri, spool).deliver()
    except (MlflowException, LineageMismatch, OSError, StoreUnavailable, ValueError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        log.warning("event=delivery_failed dag_run=%s error=%r", spool.dag_run, reason)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
