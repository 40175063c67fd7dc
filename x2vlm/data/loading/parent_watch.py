"""Loader workers must not outlive their trainer, and where one of them dies the trainer says which and why.

Python's forkserver exits when a pipe to its parent closes, but its children inherit the write end of that pipe, so it
never closes; and torch's workers only check that the forkserver is alive. After a trainer was killed with SIGKILL, both
kept running with half a gigabyte each: measured with Python 3.11 and torch 2.13.
"""

import functools
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from x2vlm.errors import ReaderLost

POLL_SECONDS = 5.0
SEEN_SECONDS = 2.0  # for a killed process to be seen as one

T = TypeVar("T")


def exit_with_this_process() -> Callable[[int], None]:
    """A `worker_init_fn` for a DataLoader: the worker exits when this process has ended."""
    return functools.partial(_watch, os.getpid())


def _watch(parent_pid: int, worker: int) -> None:
    threading.Thread(target=_end_with, args=(parent_pid,), name=f"ends-with-{parent_pid}", daemon=True).start()


def _end_with(parent_pid: int) -> None:
    try:
        handle = os.pidfd_open(parent_pid)  # refers to this very process even if its pid is reused
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError):  # not Linux, or an old kernel
        handle = None
    if handle is not None:
        select.select([handle], [], [])
        os._exit(1)
    while _is_alive(parent_pid):
        threading.Event().wait(POLL_SECONDS)
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def naming_lost_readers(items: Iterator[T], readers: Sequence[BaseProcess], rank: int = 0) -> Iterator[T]:
    """The items. ReaderLost, with pid, signal and likely cause, for an error that comes from a dead one of `readers`.

    A reader that dies while it sends breaks a pipe or a socket, so the error itself may be any.
    """
    try:
        yield from items
    except (RuntimeError, OSError, EOFError) as error:
        wait([reader.sentinel for reader in readers], timeout=SEEN_SECONDS)  # its socket may break before it is gone
        lost = [reader for reader in readers if reader.exitcode]
        if not lost:
            raise
        words = ", ".join(f"pid {reader.pid} {_how(reader.exitcode or 0)}" for reader in lost)
        raise ReaderLost(
            f"a process that reads samples for rank {rank} died: {words}. {_why(lost)} Nothing is lost: the same "
            "command goes on from the last checkpoint"
        ) from error


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _why(lost: Sequence[BaseProcess]) -> str:
    if any(reader.exitcode == -signal.SIGKILL for reader in lost):
        return (
            "Unless somebody sent it, SIGKILL comes from the kernel or the container when memory runs out (`dmesg` "
            "names the process): set fewer `train_runtime.readers` or a smaller `data.window_shards`, or give the "
            "machine more memory."
        )
    if any(reader.exitcode in (-signal.SIGBUS, -signal.SIGSEGV) for reader in lost):
        return (
            "SIGBUS comes when shared memory is full (/dev/shm: in a container raise --shm-size), SIGSEGV from a "
            "library; set fewer `train_runtime.readers`."
        )
    return "The log above has what it said."
