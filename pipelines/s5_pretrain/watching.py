"""How far a training is, for whoever watches: read from its growing metrics file, wherever its processes run."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

from pipelines.flow.live import Counters, Report
from x2vlm.stores.calls import StoreFiles
from x2vlm.stores.segments import last_line

LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 20.0  # between two looks; a remote series grows once a minute


@contextlib.contextmanager
def watched(metrics_uri: str, steps: int, report: Report) -> Iterator[None]:
    """Inside the block `report` gets step, loss and speed of the newest line of the metrics, once a second.

    Nothing depends on it: what cannot be read is not reported.
    """
    folder, _, series = metrics_uri.rpartition("/")
    files = StoreFiles(folder, retry_seconds=0.0)  # the next look is the next try
    seconds = LOCAL_SECONDS if files.is_local else REMOTE_SECONDS
    is_over = threading.Event()

    def look() -> None:
        pace = _Pace()
        report(lambda: {"step": 0.0, "steps": float(steps)})
        while not is_over.wait(seconds):
            with contextlib.suppress(Exception):
                newest = newest_line(files, series)
                if newest is not None:
                    counters = {**newest, **pace(newest["step"]), "steps": float(steps)}
                    report(lambda counters=counters: counters)  # type: ignore[misc]

    thread = threading.Thread(target=look, name="watch-training", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(2 * seconds)


def newest_line(files: StoreFiles, series: str) -> Counters | None:
    """Finished steps, loss and speed from the last whole line of a series of metrics; None if there is none yet."""
    content = last_line(files, series)
    if content is None:
        return None
    line = json.loads(content)
    shown = {name: float(line[name]) for name in ("loss", "texts_per_second") if name in line}
    return {"step": line["step"] + 1.0, **shown}


class _Pace:
    """Steps per second since the first look at this run's own steps: what an earlier run made took no time here."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def __call__(self, step: float) -> Counters:
        now = time.monotonic()
        if self._first is None or step < self._first[0]:
            self._first = (step, now)
        then, began = self._first
        return {"steps_per_second": (step - then) / (now - began)} if step > then and now > began else {}
