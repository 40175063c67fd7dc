"""How long training waits for its data: `fit` on shards of 200,000 samples, by the loop's own metrics.

    python -m tests.benchmarks.data_wait [--samples 200000] [--steps 240] [--readers 2] [--json]

A real run of the training loop on one core, streams of images, regions and clips, with reader processes beside it;
then a shorter one without readers, where every step waits for all of its reading: the cost that prefetching must
overlap, and a check of the metric. The fraction is of wall time, over all steps after the warm-up, in which reader
processes start and open their first shards (the time until the first batch is reported separately).

The model is so small that its step costs only some nine times the CPU of reading it; both are measured. Files were
written just before and come from the page cache: the speed of a disk or an object store is not measured. Nor is a GPU,
which makes a step in less time than a core needs to read it: the number of readers for one follows from `loader`.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import torch

from tests.benchmarks.world_corpus import WorldShards, write_world
from x2vlm.data.loading.config import DataConfig
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.streams import StreamConfig
from x2vlm.data.text.tokenizer import load_tokenizer
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainConfig, TrainRuntime
from x2vlm.train.loop import fit
from x2vlm.train.metrics import read_metrics
from x2vlm.train.ranks import Ranks

VOCABULARY = Path(__file__).resolve().parent.parent.parent / "datasets/sample/vocab.txt"
TOKENIZER = load_tokenizer(VOCABULARY)
ROWS_PER_SHARD = 10_000
WARM_UP = 20
MOST_WAITING = 0.05

# The step on one core then costs nine times the CPU of reading it: without readers 10.5 % of the time was waiting.
SMALL = ModelConfig(
    vision=VisionConfig(image_res=224, patch_size=16, width=64, depth=2, num_heads=2),
    text=TextConfig(width=64, num_layers=1, num_heads=2, intermediate=256, vocab_size=len(TOKENIZER), max_positions=40),
    fusion=FusionConfig(num_layers=1, num_heads=2, intermediate=256),
    embed_dim=64,
    num_frames=3,
)
DATA = DataConfig(
    streams=(
        StreamConfig(kind="image", batch_size=16),
        StreamConfig(kind="region", batch_size=16, num_images=6),
        StreamConfig(kind="video", batch_size=8),
    )
)


@dataclass(frozen=True)
class Run:
    """The metrics of one run after its warm-up. `wait_fraction`: of wall time, waiting for data."""

    readers: int
    steps: int  # that were counted
    wait_fraction: float
    longest_wait_seconds: float
    first_batch_seconds: float
    step_seconds: float  # wall, median
    step_cpu_seconds: float  # of the training process alone, median
    load_average: tuple[float, float]  # of the last minute, before and after


@dataclass(frozen=True)
class Found:
    """Both runs, and the CPU seconds in which one process reads the batches of a step (median)."""

    reading_cpu_seconds: float
    with_readers: Run
    without_readers: Run


def shards_for(samples: int) -> int:
    """The number of shards of a real run: ten thousand rows in each."""
    return -(-samples // ROWS_PER_SHARD)


def measure(
    shards: WorldShards, folder: Path, steps: int, readers: int, model: ModelConfig = SMALL, warm_up: int = WARM_UP
) -> Found:
    """`steps` counted steps with readers, and a quarter as many without; metrics and checkpoints go below `folder`."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    reading = _reading_cpu_seconds(_loader(shards, model), warm_up)
    with_readers = _run(shards, folder / "ahead", model, steps, warm_up, readers)
    return Found(reading, with_readers, _run(shards, folder / "alone", model, max(2, steps // 4), warm_up, readers=0))


def _loader(shards: WorldShards, model: ModelConfig) -> StepLoader:
    return StepLoader(shards.files, DATA, TOKENIZER, model.vision.image_res, model.vision.patch_size)


def _reading_cpu_seconds(loader: StepLoader, warm_up: int) -> float:
    spent = []
    for step in range(2 * warm_up):
        before = time.process_time()
        loader[step]
        spent.append(time.process_time() - before)
    return statistics.median(spent[warm_up:])


def _run(shards: WorldShards, folder: Path, model_config: ModelConfig, steps: int, warm_up: int, readers: int) -> Run:
    torch.manual_seed(0)
    end = warm_up + steps
    config = TrainConfig(steps=end, warmup_steps=warm_up, precision="float32")
    cpu: list[float] = []
    load = os.getloadavg()[0]
    fit(
        build_model(model_config),
        _loader(shards, model_config),
        config,
        Ranks(),
        CheckpointStore(str(folder / "checkpoints"), 1),
        str(folder / "metrics.jsonl"),
        num_workers=readers,
        on_step=lambda _: cpu.append(time.process_time()),
        runtime=TrainRuntime(log_every=end, checkpoint_every=end),
    )
    lines = read_metrics(folder / "metrics.jsonl")
    waits = [line["data_wait_percent"] / 100 * line["seconds"] for line in lines]
    seconds = [line["seconds"] for line in lines]
    return Run(
        readers=readers,
        steps=len(lines) - warm_up,
        wait_fraction=sum(waits[warm_up:]) / sum(seconds[warm_up:]),
        longest_wait_seconds=max(waits[warm_up:]),
        first_batch_seconds=waits[0],
        step_seconds=statistics.median(seconds[warm_up:]),
        # The last step also writes the checkpoint.
        step_cpu_seconds=statistics.median(b - a for a, b in zip(cpu[warm_up - 1 : -2], cpu[warm_up:-1], strict=True)),
        load_average=(load, os.getloadavg()[0]),
    )


def machine() -> dict[str, Any]:
    """The machine and the versions of the measurement."""
    packages = ("torch", "pyarrow", "opencv-python-headless", "numpy")
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def describe(shards: WorldShards, found: Found) -> str:
    """The table."""
    ahead, alone = found.with_readers, found.without_readers
    columns = [ahead, alone]
    rows: Mapping[str, list[str]] = {
        "reader processes": [str(run.readers) for run in columns],
        "steps counted": [str(run.steps) for run in columns],
        "waiting for data": [f"{run.wait_fraction:.2%}" for run in columns],
        "longest wait, ms": [f"{1e3 * run.longest_wait_seconds:.0f}" for run in columns],
        "until the first batch, s": [f"{run.first_batch_seconds:.1f}" for run in columns],
        "a step, ms": [f"{1e3 * run.step_seconds:.0f}" for run in columns],
        "a step, CPU ms of the trainer": [f"{1e3 * run.step_cpu_seconds:.0f}" for run in columns],
        "load average": ["{:.1f} to {:.1f}".format(*run.load_average) for run in columns],
    }
    lines = [
        ", ".join(f"{name} {value}" for name, value in machine().items()),
        ", ".join(f"{name} {value:,}" for name, value in shards.counts.items()),
        f"{shards.num_scenes:,} scenes and {shards.num_clips:,} clips rendered in {shards.render_cpu_seconds:.0f} CPU "
        f"s, written in {shards.write_cpu_seconds:.0f}; {len(shards.files)} shards, {shards.num_bytes / 1e9:.2f} GB",
        f"reading a step: {1e3 * found.reading_cpu_seconds:.0f} CPU ms in one process, "
        f"{found.reading_cpu_seconds / ahead.step_cpu_seconds:.1%} of the step",
        *(f"  {name:32}" + "".join(f"{value:>16}" for value in values) for name, values in rows.items()),
    ]
    return "\n".join(lines)


def to_json(shards: WorldShards, found: Found) -> dict[str, Any]:
    """The same as JSON."""
    corpus = {
        "counts": shards.counts,
        "bytes": shards.num_bytes,
        "shards": len(shards.files),
        "scenes_rendered": shards.num_scenes,
        "clips_rendered": shards.num_clips,
        "render_cpu_seconds": shards.render_cpu_seconds,
        "write_cpu_seconds": shards.write_cpu_seconds,
    }
    return {"machine": machine(), "corpus": corpus, **asdict(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--readers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="x2vlm-data-wait-") as folder:
        (Path(folder) / "shards").mkdir()
        shards = write_world(Path(folder) / "shards", options.samples, shards_for(options.samples))
        found = measure(shards, Path(folder), options.steps, options.readers)
        print(json.dumps(to_json(shards, found)) if options.json else describe(shards, found))


if __name__ == "__main__":
    main()
