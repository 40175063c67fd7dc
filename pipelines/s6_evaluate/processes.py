"""One evaluation shared by several processes of this machine: each computes its batches, the first one's result counts.

A task shares whole batches (`x2vlm.tasks.sharing`), so the result does not depend on the number of processes.
"""

import logging
import pickle
import traceback
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.s6_evaluate.config import EvaluationFiles
from x2vlm.data.loading.parent_watch import exit_with_this_process
from x2vlm.errors import StageFailed, X2VLMError
from x2vlm.tasks.task import TaskResult

log = logging.getLogger(__name__)

# A process may wait in a collective for the slowest, which may decode thousands of images more.
COLLECTIVE_TIMEOUT = timedelta(hours=12)
RESULT, PROBLEM = "result", "problem"


def measure_together(files: EvaluationFiles, number: int) -> TaskResult:
    """The result of `number` processes. What one of them raises ends all; StageFailed for one that dies."""
    context = get_context("spawn")  # a forked process cannot use a GPU that its parent has touched
    ends_with_us = exit_with_this_process()
    with TemporaryDirectory(prefix="x2vlm-evaluation-") as folder:
        processes: list[BaseProcess] = [
            context.Process(target=_work, args=(files, rank, number, folder, ends_with_us), daemon=True)
            for rank in range(number)
        ]
        log.info("event=evaluation_shared task=%s processes=%d", files.config.task, number)
        try:
            for process in processes:
                process.start()
            _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.join()
        if failed := [rank for rank, process in enumerate(processes) if process.exitcode]:
            raise _problem(Path(folder), failed, processes)
        result: TaskResult = pickle.loads(Path(folder, RESULT).read_bytes())
        return result


def _wait(processes: list[BaseProcess]) -> None:
    """Until all have ended, or one has failed: the others would wait for it for ever."""
    running = list(processes)
    while running and not any(process.exitcode for process in processes):
        wait([process.sentinel for process in running])
        running = [process for process in running if process.is_alive()]
    for process in processes:
        if not process.is_alive():
            process.join()


def _problem(folder: Path, failed: list[int], processes: list[BaseProcess]) -> BaseException:
    """The error of the first process that told one; those that were ended because of it told nothing."""
    for rank in failed:
        if (told := folder / f"{PROBLEM}-{rank}").is_file():
            error, trace = pickle.loads(told.read_bytes())
            if isinstance(error, X2VLMError):
                return error
            return StageFailed(f"evaluate: process {rank} failed: {trace}")
    codes = ", ".join(f"{rank}: {processes[rank].exitcode}" for rank in failed)
    return StageFailed(
        f"evaluate: processes died without a word (exit codes {codes}). -9 often means that the machine ran out of "
        "memory: give the evaluation fewer CPUs or GPUs in `runtime`, or a smaller batch_size"
    )


def _work(files: EvaluationFiles, rank: int, number: int, folder: str, ends_with_parent: object) -> None:
    import torch
    import torch.distributed as dist

    from pipelines.s6_evaluate.measuring import device_of, measure, prepare
    from x2vlm.train.ranks import Ranks

    assert callable(ends_with_parent)
    ends_with_parent(rank)
    try:
        torch.set_num_threads(1)
        device = device_of(rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{folder}/meet",
            rank=rank,
            world_size=number,
            timeout=COLLECTIVE_TIMEOUT,
        )
        result = measure(prepare(files), files, Ranks(rank, number, device))
        if rank == 0:
            Path(folder, RESULT).write_bytes(pickle.dumps(result))
        dist.destroy_process_group()
    except Exception as error:
        told = error if isinstance(error, X2VLMError) else None
        Path(folder, f"{PROBLEM}-{rank}.draft").write_bytes(pickle.dumps((told, traceback.format_exc())))
        Path(folder, f"{PROBLEM}-{rank}.draft").rename(Path(folder, f"{PROBLEM}-{rank}"))
        raise SystemExit(1) from None
