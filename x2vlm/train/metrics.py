"""Metrics of a run, one JSON line per step, each step exactly once however often the run was resumed."""

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from x2vlm.stores.calls import RETRY_SECONDS, StoreFiles
from x2vlm.stores.segments import HEAD, folder_of, head_of, num_segments, read_lines, segment_name

log = logging.getLogger(__name__)

UPLOAD_SECONDS = 60.0


class MetricsLog:
    """A series of JSON lines (`x2vlm.stores.segments`) at the URI `<folder>/metrics.jsonl`. One process may write it.

    Opening begins a new segment and reads nothing but the head of the series. On a local disk lines are readable when
    `write` returns. For an object store a thread uploads them as segments every `upload_seconds`, and `flush` at once;
    `write` never waits for the store. The first line written decides which lines of earlier segments are replaced.
    """

    def __init__(self, uri: str, retry_seconds: float = RETRY_SECONDS, upload_seconds: float = UPLOAD_SECONDS) -> None:
        self._files = StoreFiles(folder_of(uri), retry_seconds)
        self._num_segments = num_segments(self._files.read(HEAD))
        self._notes: dict[str, Any] = {}
        self._pending: list[str] = []
        self._lock = threading.Lock()  # of `_pending`
        self._uploads = threading.Lock()  # one upload at a time, in order
        self._is_closed = threading.Event()
        self._stream: TextIO | None = None
        self._thread: threading.Thread | None = None
        if self._files.is_local:
            path = Path(self._files.path(segment_name(self._num_segments)))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = path.open("w", encoding="utf-8")
            self._files.write(HEAD, head_of(self._num_segments + 1))
        else:
            self._thread = threading.Thread(target=self._upload, args=(upload_seconds,), name="metrics", daemon=True)
            self._thread.start()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def note(self, **values: Any) -> None:
        """Values that belong to no step: they are added to the next line."""
        self._notes |= values

    def write(self, values: Mapping[str, Any]) -> None:
        """Append the line of one step; `values` must hold "step"."""
        if "step" not in values:
            raise ValueError("a metrics line needs its step")
        line = json.dumps({**values, **self._notes}, sort_keys=True, allow_nan=False) + "\n"
        self._notes = {}
        if self._stream is not None:
            self._stream.write(line)
            self._stream.flush()
            return
        with self._lock:
            self._pending.append(line)

    def flush(self) -> None:
        """Have the store hold every line written so far. StoreUnavailable if it fails for longer than it is retried."""
        if self._stream is not None:
            return
        with self._uploads:
            with self._lock:
                lines = list(self._pending)
            if not lines:
                return
            # The segment comes first: what the head does not tell of is written again.
            self._files.write(segment_name(self._num_segments), "".join(lines).encode())
            self._files.write(HEAD, head_of(self._num_segments + 1))
            self._num_segments += 1
            with self._lock:
                del self._pending[: len(lines)]

    def close(self) -> None:
        """`flush` and end; calling it again does nothing."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        if self._stream is not None:
            self._stream.close()
            return
        self.flush()

    def _upload(self, seconds: float) -> None:
        while not self._is_closed.wait(seconds):
            try:
                self.flush()
            except Exception as error:  # the next turn tries again, and the next checkpoint says it
                log.error("metrics_not_uploaded uri=%s error=%r", self._files.uri, str(error))


def iterate_metrics(series: Path | str) -> Iterator[dict[str, Any]]:
    """The lines of `<folder>/metrics.jsonl`, a finished file or the segments of a run, in the order of steps."""
    for line in read_lines(str(series)):
        yield json.loads(line)


def read_metrics(series: Path | str) -> list[dict[str, Any]]:
    """All of `iterate_metrics`; empty where there is no such file."""
    return list(iterate_metrics(series))
