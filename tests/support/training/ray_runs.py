"""A training on a Ray of several nodes: what its record says so far, and the same run without a disturbance."""

import time
from pathlib import Path

from tests.support.training.processes import CONTEXT, _train_job
from x2vlm.train.metrics import read_metrics
from x2vlm.train.progress import CLOCK_NAMES

LOOK_SECONDS = 5.0  # of Ray at its cluster, to grow a run: a minute by itself


def lines_of(state: str | Path) -> list[dict]:
    """The metrics of every step, without clock times."""
    return [{k: v for k, v in line.items() if k not in CLOCK_NAMES} for line in read_metrics(f"{state}/metrics.jsonl")]


def wait_for(state: str | Path, steps: int, world_size: int | None = None, seconds: float = 600) -> None:
    """Wait until there are `steps` steps, the last 5 of them made by `world_size` processes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        sizes = [line["world_size"] for line in read_metrics(f"{state}/metrics.jsonl")]
        if len(sizes) >= steps and (world_size is None or sizes[-5:] == [world_size] * 5):
            return
        time.sleep(0.5)
    raise AssertionError(f"{steps} steps of {world_size} processes were not made: {len(sizes)}, {sizes[-5:]}")


def undisturbed(job: dict, folder: Path, steps: int) -> list[dict]:
    """The first lines of the same run by four processes that nothing happens to; the rest of it is not waited for."""
    folder.mkdir()
    own = {**job, "state_uri": str(folder)}
    processes = [CONTEXT.Process(target=_train_job, args=(own, rank, 4, f"{folder}/meet")) for rank in range(4)]
    for process in processes:
        process.start()
    wait_for(folder, steps)
    for process in processes:
        process.kill()
        process.join()
    return lines_of(folder)
