"""Work on many files by all CPUs of this machine, with few tasks in memory at a time."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

FEW = 4  # tasks that are not worth the start of a process
WAITING = 4  # tasks for every process


@contextmanager
def parallel(num_tasks: int) -> Iterator[Run]:
    """A `map` that gives results in the order of the tasks, in this process where there is little to do.

    Tasks are taken from their iterable as processes become free, so they may be many.
    """
    cpus = min(len(os.sched_getaffinity(0)), num_tasks)
    if num_tasks < FEW or cpus == 1:
        yield map
        return
    with ProcessPoolExecutor(cpus, multiprocessing.get_context("spawn")) as pool:

        def run(function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
            left = iter(tasks)
            running: deque[Future[Result]] = deque(pool.submit(function, one) for one in islice(left, WAITING * cpus))
            while running:
                result = running.popleft().result()
                running.extend(pool.submit(function, one) for one in islice(left, 1))
                yield result

        yield run
