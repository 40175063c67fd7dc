"""A torch profile of a few steps of a real run: a trace for a viewer and a table of the 20 most expensive operators."""

import gzip
import logging
import tempfile
import threading
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile

from x2vlm.stores.calls import StoreFiles

log = logging.getLogger(__name__)

NUM_ROWS = 20


class StepProfile:
    """Profiles the steps first..last into `folder`: `trace.json.gz` (Perfetto, chrome://tracing) and `top20.txt`.

    A thread writes both files; the end of the `with` block waits for it, and an error there is logged.
    """

    def __init__(self, folder: str, steps: tuple[int, int] | None) -> None:
        self._folder, self._steps = folder, steps
        self._profile: profile | None = None
        self._thread: threading.Thread | None = None

    def before(self, step: int) -> None:
        if self._steps and step == self._steps[0]:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profile = profile(activities=activities)
            self._profile.start()

    def after(self, step: int) -> None:
        if self._profile is not None and self._steps and step >= self._steps[1]:
            self._finish()

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._profile is not None:  # the run ended first
            self._finish()
        if self._thread is not None:
            self._thread.join()

    def _finish(self) -> None:
        assert self._profile is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=key, row_limit=NUM_ROWS)
        with tempfile.TemporaryDirectory() as scratch:
            trace = Path(scratch) / "trace.json"
            self._profile.export_chrome_trace(str(trace))
            files = {f"top{NUM_ROWS}.txt": table.encode(), "trace.json.gz": gzip.compress(trace.read_bytes())}
        self._profile = None
        self._thread = threading.Thread(target=self._write, args=(files,), name="profile")
        self._thread.start()

    def _write(self, files: dict[str, bytes]) -> None:
        try:
            store = StoreFiles(self._folder)
            for name, content in files.items():
                store.write(name, content)
            log.info("profile_written folder=%s steps=%s", self._folder, self._steps)
        except Exception as error:
            log.error("profile_not_written folder=%s error=%r", self._folder, str(error))
