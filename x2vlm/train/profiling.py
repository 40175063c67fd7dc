"""A torch profile of a few steps of a real run: a trace for a viewer and a table of the 20 most expensive operators."""

import gzip
import logging
import tempfile
from pathlib import Path
from types import TracebackType

import fsspec
import torch
from torch.profiler import ProfilerActivity, profile

log = logging.getLogger(__name__)

NUM_ROWS = 20


class StepProfile:
    """Profiles the steps first..last into `folder`: `trace.json.gz` (Perfetto, chrome://tracing) and `top20.txt`."""

    def __init__(self, folder: str, steps: tuple[int, int] | None) -> None:
        self._folder, self._steps = folder, steps
        self._profile: profile | None = None

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

    def _finish(self) -> None:
        assert self._profile is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profile.stop()
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=key, row_limit=NUM_ROWS)
        fs, path = fsspec.core.url_to_fs(self._folder)
        fs.makedirs(path, exist_ok=True)
        fs.pipe_file(f"{path}/top{NUM_ROWS}.txt", table.encode())
        with tempfile.TemporaryDirectory() as scratch:
            trace = Path(scratch) / "trace.json"
            self._profile.export_chrome_trace(str(trace))
            fs.pipe_file(f"{path}/trace.json.gz", gzip.compress(trace.read_bytes()))
        log.info("profile_written folder=%s steps=%s", self._folder, self._steps)
        self._profile = None
