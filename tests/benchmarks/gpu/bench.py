"""Device, timing and JSON output of a part of the benchmark."""

import gc
import itertools
import json
import logging
import platform
import shutil
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

NO_GPU = "no GPU: nothing measured"
PACKAGES = ("torch", "timm", "transformers", "safetensors", "pyarrow", "pillow", "pydantic", "numpy")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a step on the device: median, minimum and maximum; null without a GPU."""

    median: float | None = None
    least: float | None = None
    most: float | None = None


@dataclass
class Bench:
    """One part: its device, numbers of repetitions, time limit, and the rows measured so far."""

    part: str
    out: Path
    device: str
    is_tiny: bool
    seconds: float
    warmup: int = 10
    rounds: int = 30
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.facts = device_facts(self.device)
        if self.is_tiny:
            self.warmup, self.rounds = 0, 1

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def path(self) -> Path:
        return self.out / f"part{self.part}.json"

    def measure(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """One row: the result of `work`, or its error; written at once. Skipped after the part's time limit.

        A kernel that refuses a shape, or too little memory, is a finding, so RuntimeError becomes part of the row
        (torch's errors of both kinds are RuntimeErrors); any other exception is a bug of this script and ends it.
        """
        row: dict[str, Any] = {"name": name}
        if time.monotonic() - self.started > self.seconds:
            row["left_out"] = f"the {self.seconds:.0f} seconds of this part were over"
        else:
            try:
                row |= work()
            except RuntimeError as error:
                row["refused"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if self.is_gpu:
            gc.collect()
            torch.cuda.empty_cache()
        self.rows.append(row)
        self.write()
        log.info("measured part=%s name=%r %s", self.part, name, row.get("refused") or row.get("left_out") or "")
        return row

    def compare(self, row: dict[str, Any], baseline: dict[str, Any]) -> None:
        """Adds to the row its speed-up over `baseline`; null if either was not timed."""
        ours, theirs = row.get("ms"), baseline.get("ms")
        row["speedup"] = None if ours is None or theirs is None else round(theirs / ours, 2)
        self.write()

    def write(self) -> None:
        content = {"part": self.part, "tiny": self.is_tiny, "facts": self.facts, "rows": self.rows}
        if not self.is_gpu:
            content["note"] = NO_GPU
        self.path.write_text(json.dumps(content, indent=1))

    def time_steps(self, step: Callable[[], object], warmup: int | None = None, rounds: int | None = None) -> Timing:
        """The step after its warm-up, each round between two CUDA events, one synchronisation at the end."""
        warmup, rounds = (self.warmup if warmup is None else warmup), (self.rounds if rounds is None else rounds)
        for _ in range(min(warmup, 1) if self.is_tiny else warmup):
            step()
        if not self.is_gpu:
            step()
            return Timing()
        torch.cuda.synchronize()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        marks[0].record()
        for mark in marks[1:]:
            step()
            mark.record()
        torch.cuda.synchronize()
        taken = [first.elapsed_time(second) for first, second in itertools.pairwise(marks)]
        return Timing(statistics.median(taken), min(taken), max(taken))

    def count_waits(self, step: Callable[[], object]) -> int | None:
        """The number of synchronisations in one step, by torch's own warning; null without a GPU."""
        if not self.is_gpu:
            step()
            return None
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    @contextmanager
    def peak_memory(self, row: dict[str, Any]) -> Iterator[None]:
        """Puts the peak memory allocated inside the block into the row, in GB; null without a GPU."""
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        yield
        row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.is_gpu else None

    def profile_top(self, name: str, step: Callable[[], object], steps: int = 3) -> str:
        """File name of the table of the 20 operations that take most time on the device."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.is_gpu else [])]
        with profile(activities=activities) as recorded:
            for _ in range(steps if self.is_gpu else 1):
                step()
        averages = recorded.key_averages()
        if self.is_gpu:
            text = averages.table(sort_by="self_device_time_total", row_limit=20)
        else:
            text = "\n".join([NO_GPU, *(f"{event.count:8} {event.key}" for event in averages)])
        path = self.out / f"profile_{name}.txt"
        path.write_text(text + "\n")
        return path.name


def per_second(amount: float, timing: Timing) -> float | None:
    """`amount` per step as a rate; null if nothing was timed."""
    return None if timing.median is None else amount / (timing.median / 1e3)


def rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)


def device_facts(device: str) -> dict[str, Any]:
    """The device, driver and versions."""
    facts: dict[str, Any] = {"python": platform.python_version(), "cpu": platform.machine()}
    facts |= {package: version(package) for package in PACKAGES}
    if device != "cuda":
        return facts | {"device": device, "note": NO_GPU}
    query = [
        "nvidia-smi",
        "--query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit",
        "--format=csv,noheader",
    ]
    return facts | {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nvidia_smi": subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        if shutil.which("nvidia-smi")
        else "not installed",
    }
