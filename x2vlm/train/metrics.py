"""Metrics of a run, one JSON line per step, each step exactly once however often the run was resumed."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

log = logging.getLogger(__name__)


class MetricsLog:
    """A JSON-lines file below a URI (local or object store). Only one process may write it.

    Lines are on disk when `write` returns; an object store gets them with `sync`, which the loop calls before each
    checkpoint. So the file always reaches at least as far as the newest checkpoint.
    """

    def __init__(self, uri: str, first_step: int = 0) -> None:
        """Opens the file to continue at `first_step`: later lines, that of the step and incomplete ones are removed."""
        self._fs, self._target = fsspec.core.url_to_fs(uri)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        if self._is_local:
            self.path = Path(self._target)
            self.path.parent.mkdir(parents=True, exist_ok=True)
        else:
            self.path = Path(tempfile.mkdtemp(prefix="x2vlm-metrics-")) / "metrics.jsonl"
            if self._fs.exists(self._target):
                self._fs.get_file(self._target, str(self.path))
        kept = [line for line in read_metrics(self.path) if line["step"] < first_step]
        if len(kept) < first_step:
            log.warning("metrics_incomplete path=%s lines=%d first_step=%d", self.path, len(kept), first_step)
        rewritten = self.path.with_name(f".{self.path.name}.tmp")
        rewritten.write_text("".join(_line(values) for values in kept), encoding="utf-8")
        rewritten.replace(self.path)
        self._stream = self.path.open("a", encoding="utf-8")
        self._notes: dict[str, Any] = {}

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
        self._stream.write(_line({**values, **self._notes}))
        self._stream.flush()
        self._notes = {}

    def sync(self) -> None:
        """Upload the lines written so far to the object store."""
        self._stream.flush()
        if not self._is_local:
            self._fs.put_file(str(self.path), self._target)

    def close(self) -> None:
        self.sync()
        self._stream.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file in order; an incomplete last line is ignored, a missing file has none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is incomplete or empty


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False) + "\n"
