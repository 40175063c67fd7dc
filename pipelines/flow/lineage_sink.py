"""The process beside a run that brings its spool to MLflow. Started by `lineage`; its stdin is the only control.

The first line is the job as JSON, every further byte means "there is something new", the end of the stream means that
the run is over, or that its driver died: then the run is closed as KILLED in MLflow too.
"""

import json
import logging
import os
import select
import sys
import time
from typing import Any

from pipelines.flow.lineage_facts import LineageRecord
from pipelines.flow.lineage_page import write_page_to_store
from pipelines.flow.lineage_spool import Spool, spools
from pipelines.flow.store import Store

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5.0
LAST_RETRY_SECONDS = 300.0
STDIN = 0


def main() -> int:
    """Exit code: 0 if MLflow has everything, 1 if records are left in the spool."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    head = _read_job()
    store = Store(head["store"], head["storage_options"])
    spool = Spool(store, head["dag_run"])
    with spool.exclusive() as mine:
        if not mine:
            return 1
        _follow(spool, head["tracking_uri"])
        if spool.read():  # empty: the plan was busy, or the driver died at once
            _close(spool)
            write_page_to_store(store, spool)
        delivered = try_to_deliver(spool, head["tracking_uri"])
    if delivered:
        # What earlier runs could not deliver; newest work first, so that a long backlog cannot starve it.
        for older in spools(store):
            if older.dag_run != spool.dag_run:
                with older.exclusive() as mine:
                    if mine and not try_to_deliver(older, head["tracking_uri"]):
                        break
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


def _follow(spool: Spool, tracking_uri: str) -> None:
    """Deliver while the run goes on; after a failure wait longer and longer."""
    pause, next_try, pending, open_ = FIRST_RETRY_SECONDS, 0.0, False, True
    while open_:
        timeout = max(0.0, next_try - time.monotonic()) if pending else None
        if select.select([STDIN], [], [], timeout)[0]:
            open_ = bool(os.read(STDIN, 65536))
            pending = True
        if open_ and pending and time.monotonic() >= next_try:
            pending = not try_to_deliver(spool, tracking_uri)
            pause = min(pause * 2, LAST_RETRY_SECONDS) if pending else FIRST_RETRY_SECONDS
            next_try = time.monotonic() + pause if pending else 0.0


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

    from pipelines.flow.lineage_mlflow import Delivery, LineageMismatch

    try:
        Delivery(spool.store, tracking_uri, spool).deliver()
    except (MlflowException, LineageMismatch, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        log.warning("event=delivery_failed dag_run=%s error=%r", spool.dag_run, reason)
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
