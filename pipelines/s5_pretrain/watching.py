"""How far a training is, for whoever watches: read from its growing metrics file, wherever its processes run."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipelines.flow.live import Counters, Report

LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 20.0  # between two looks; a remote file grows with checkpoints only
TAIL_BYTES = 65536


@contextlib.contextmanager
def watched(metrics_uri: str, steps: int, report: Report) -> Iterator[None]:
    """Inside the block `report` gets step, loss and speed of the newest line of the metrics, once a second.

    Nothing depends on it: what cannot be read is not reported.
    """
    fs, path = fsspec.core.url_to_fs(metrics_uri)
    seconds = LOCAL_SECONDS if isinstance(fs, LocalFileSystem) else REMOTE_SECONDS
    is_over = threading.Event()

    def look() -> None:
        pace = _Pace()
        report(lambda: {"step": 0.0, "steps": float(steps)})
        while not is_over.wait(seconds):
            with contextlib.suppress(Exception):
                newest = newest_line(fs, path)
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


def newest_line(fs: fsspec.AbstractFileSystem, path: str) -> Counters | None:
    """Finished steps, loss and speed from the last whole line of a metrics file; None if there is none yet."""
    fs.invalidate_cache()
    if not fs.exists(path):
        return None
    size = fs.size(path)
    tail = fs.cat_file(path, start=max(0, size - TAIL_BYTES), end=size)
    lines = tail.rpartition(b"\n")[0].splitlines()
    if not lines:
        return None
    line = json.loads(lines[-1])
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
