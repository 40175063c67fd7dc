"""Work in several processes: results in the order of the tasks, few tasks taken ahead, errors as they are."""

import os
import time
from collections.abc import Iterator

import pytest

from pipelines.why import parallel as module
from pipelines.why.parallel import FEW, WAITING, parallel
from x2vlm.errors import ConfigError

NUM_TASKS = 40


def work(task: int) -> tuple[int, int]:
    """The task and the process that did it; the first takes longest."""
    if task == 0:
        time.sleep(0.2)
    if task < 0:
        raise ConfigError(f"task {task} cannot be done")
    return task, os.getpid()


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0, 1})


def test_processes_give_results_in_order_and_take_few_tasks_ahead() -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for taken in range(1, NUM_TASKS + 1):
            yield taken - 1

    processes = set()
    with parallel(NUM_TASKS) as run:
        for done, (task, process) in enumerate(run(work, tasks())):
            assert task == done
            assert taken <= done + 1 + 2 * WAITING
            processes.add(process)
        assert taken == NUM_TASKS
        with pytest.raises(ConfigError, match="task -1 cannot be done"):
            list(run(work, [*range(1, FEW), -1]))
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_little_work_stays_in_this_process() -> None:
    with parallel(FEW - 1) as run:
        assert {process for _, process in run(work, range(1, FEW))} == {os.getpid()}
