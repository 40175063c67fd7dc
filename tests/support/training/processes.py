"""Real training processes over gloo, that can be killed at any moment.

They are forked from a server that has imported the model's libraries once (about 8 CPU seconds), so that a test may
start and kill dozens.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.training.corpus import DATA, MODEL, TOKENIZER
from x2vlm.data.loading.config import DataConfig
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.train.config import TrainConfig, TrainRuntime

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["x2vlm.models.x2vlm", "x2vlm.train.loop", "pipelines.s5_pretrain.worker", "tests.support.training.processes"]
)

BASE: dict[str, Any] = {
    "steps": 8,
    "warmup_steps": 2,
    "precision": "float32",
    "optimizer": {"lr": 2e-3},
}
BASE_RUNTIME: dict[str, Any] = {"log_every": 1, "checkpoint_every": 3}


@dataclass(frozen=True)
class Start:
    """One start of a run: all of it is plain data, which travels to the processes.

    Process `kill_rank` kills itself with SIGKILL after step `kill_after`, as soon as the checkpoint folder
    `kill_when_there` exists, if one is named; or inside the writing of a checkpoint, at its `kill_in_write`-th call.
    `nan_steps`: images of the first stream on the first rank are NaN there.
    """

    folder: str
    shards: tuple[str, ...]
    world_size: int = 1
    train: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=dict)
    num_workers: int = 0
    kill_rank: int = 0
    kill_after: int | None = None
    kill_when_there: str = ""
    kill_in_write: int | None = None
    nan_steps: tuple[int, ...] = ()
    hang_at: int | None = None  # the last rank sleeps for ever in this step
    name: str = "start"

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.model_validate({**BASE, **self.train})

    @property
    def runtime_config(self) -> TrainRuntime:
        return TrainRuntime.model_validate({**BASE_RUNTIME, **self.runtime})

    @property
    def data_config(self) -> DataConfig:
        return DataConfig.model_validate({**DATA.model_dump(), **self.data})


def run(start: Start, on_started: Callable[[list[Any]], None] | None = None, timeout: float = 900) -> list[int]:
    """Exit codes of the processes. Once one was killed, the others are too: their machine is gone."""
    Path(start.folder).mkdir(parents=True, exist_ok=True)
    meet = Path(start.folder) / f"meet-{time.monotonic_ns()}"
    processes = [CONTEXT.Process(target=_train, args=(start, rank, str(meet))) for rank in range(start.world_size)]
    for process in processes:
        process.start()
    if on_started:
        on_started(processes)
    deadline = time.monotonic() + timeout
    while any(process.is_alive() for process in processes):
        multiprocessing.connection.wait(
            [p.sentinel for p in processes if p.is_alive()], timeout=deadline - time.monotonic()
        )
        is_dead = any(process.exitcode == -signal.SIGKILL for process in processes) or time.monotonic() > deadline
        if is_dead:
            for process in processes:
                process.kill()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


def train_job(job: dict[str, Any], world_size: int) -> list[int]:
    """Exit codes of `world_size` processes that train the job of a pretrain part, as torchrun's processes do."""
    meet = f"{job['state_uri']}/meet-{time.monotonic_ns()}"
    processes = [CONTEXT.Process(target=_train_job, args=(job, rank, world_size, meet)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        process.kill()
        process.join()
    return [process.exitcode or 0 for process in processes]


def _train_job(job: dict[str, Any], rank: int, world_size: int, meet: str) -> None:
    import torch
    import torch.distributed as dist

    from pipelines.s5_pretrain.worker import train_worker

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world_size)
    train_worker(job)


def on_ranks(work: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `work(rank, world_size, *arguments)` gave on each process; as `rank_worker`, but forked."""
    import torch
    import torch.multiprocessing

    with TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _work, args=(world_size, folder, work, arguments), nprocs=world_size, start_method="forkserver"
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _work(rank: int, world_size: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(work(rank, world_size, *arguments), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _train(start: Start, rank: int, meet: str) -> None:
    """What one process does: the loop itself, with hooks that kill, poison and take notes around it."""
    import faulthandler
    import sys

    import torch
    import torch.distributed as dist

    from x2vlm.data.loading.loader import StepLoader
    from x2vlm.models.x2vlm import build_model
    from x2vlm.train import loop
    from x2vlm.train.checkpoint import CheckpointStore
    from x2vlm.train.ranks import current_ranks
    from x2vlm.train.stopping import EXIT_STOPPED, TrainingStopped
    from x2vlm.train.validation.held_out import split_shards

    log_path = Path(start.folder) / f"{start.name}-rank-{rank}.log"
    output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    import logging

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    torch.set_num_threads(1)
    if start.world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=start.world_size)
    files = [ShardFiles(Path(tar), Path(tar).with_suffix(".parquet")) for tar in start.shards]
    config, data, runtime = start.config, start.data_config, start.runtime_config
    trained, held_out = split_shards(files, data.validation_share)

    def loader(shards: Sequence[ShardFiles]) -> StepLoader:
        return StepLoader(shards, data, TOKENIZER, 32, 16, rank, start.world_size)

    torch.manual_seed(0)
    model = build_model(MODEL)
    store = CheckpointStore(f"{start.folder}/checkpoints", runtime.keep_checkpoints)
    loop.iterate_steps = _noted(loop.iterate_steps, start, rank)
    if rank == start.kill_rank and start.kill_in_write is not None:
        _kill_in_write(start.kill_in_write)
    try:
        loop.fit(
            model,
            loader(trained),
            config,
            current_ranks(),
            store,
            f"{start.folder}/metrics.jsonl",
            {"shards_root": "toy"},
            start.num_workers,
            lambda step: _after_step(start, rank, step),
            runtime=runtime,
            held_out=loader(held_out) if runtime.validate_every else None,
        )
    except TrainingStopped:
        sys.exit(EXIT_STOPPED)
    if start.world_size > 1:
        dist.destroy_process_group()


def _after_step(start: Start, rank: int, step: int) -> None:
    if rank == start.kill_rank and step == start.kill_after:
        while start.kill_when_there and not (Path(start.folder) / "checkpoints" / start.kill_when_there).is_dir():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def _noted(iterate: Callable[..., Any], start: Start, rank: int) -> Callable[..., Any]:
    """`iterate_steps`, writing down which samples each step gave this rank, and poisoning some."""

    def noted(loader: Any, *arguments: Any, **options: Any) -> Any:
        from dataclasses import replace

        path = Path(start.folder) / f"keys-{start.name}-{rank}.jsonl"
        for data in iterate(loader, *arguments, **options):
            keys = {name: batch.keys for name, batch in data.batches.items()}
            with path.open("a") as stream:
                stream.write(json.dumps({"step": data.step, "keys": keys}) + "\n")
            if data.step in start.nan_steps and rank == 0:
                name = next(iter(data.batches))
                batch = data.batches[name]
                poisoned = replace(batch, pixels=batch.float_pixels() * float("nan"), operations=None)
                data = replace(data, batches={**data.batches, name: poisoned})
            if data.step == start.hang_at and rank == start.world_size - 1:
                _hang_here()
            yield data

    return noted


def _hang_here() -> None:
    time.sleep(100_000)


def _kill_in_write(call: int) -> None:
    """SIGKILL before the `call`-th thing that writing checkpoints does to the disk, counted from the start."""
    from x2vlm.train import checkpoint

    done = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def before(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return before

    class CountedOs:
        """`os` as the store sees it."""

        rename = staticmethod(counted(os.rename))

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    checkpoint.save_file = counted(checkpoint.save_file)
    checkpoint._sha256_of = counted(checkpoint._sha256_of)
    checkpoint._sync = counted(checkpoint._sync)
    checkpoint.os = CountedOs()  # type: ignore[assignment]


def keys_by_step(folder: Path | str, name: str = "*") -> dict[int, dict[str, list[str]]]:
    """Which samples each step read over all ranks, sorted; a step made twice must have read the same both times."""
    found: dict[tuple[str, int], dict[str, list[str]]] = {}
    for path in sorted(Path(folder).glob(f"keys-{name}-*.jsonl")):
        start = path.stem.rsplit("-", 1)[0]
        for line in path.read_text().splitlines():
            row = json.loads(line)
            streams = found.setdefault((start, row["step"]), {})
            for stream, keys in row["keys"].items():
                streams[stream] = sorted([*streams.get(stream, []), *keys])
    return {step: streams for (_, step), streams in found.items()}
