"""Ends a run that hangs, and reports which rank hangs where.

Every process writes its progress to a small file in the run's folder, and is watched by a second thread. When a run
hangs all processes stop, because each waits for the slowest; so each then writes its position and reads those of the
others. The slowest one is named in the log of all of them.
"""

import contextlib
import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, replace
from types import TracebackType

import fsspec

from x2vlm.train.config import START_ALLOWANCE
from x2vlm.train.ranks import Ranks

log = logging.getLogger(__name__)

EXIT_STALLED = 76
STALLED = "stalled.json"
# The phases of a step in their order: a rank in an earlier one is behind.
PHASES = ("start", "wait for data", "train", "read numbers", "validate", "save")


@dataclass(frozen=True)
class Heartbeat:
    """The progress of a process. `where` is its innermost frame, known once it has detected the stall."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    where: str = ""
    waits_for_others: bool = False
    stack: str = ""

    def progress(self) -> tuple[int, int, bool]:
        """Sort key of processes by progress; if equal, one that waits for others is further."""
        return self.step, PHASES.index(self.phase), self.waits_for_others


class Watchdog:
    """Watches this process from a thread inside the `with` block; does nothing if `stall_seconds` is None."""

    def __init__(self, folder: str, ranks: Ranks, stall_seconds: float | None) -> None:
        self._fs, self._folder = fsspec.core.url_to_fs(folder)
        self._world_size = ranks.world_size
        self._limit = stall_seconds
        self._heartbeat = Heartbeat(ranks.rank, socket.gethostname(), os.getpid(), -1, "start")
        self._beat_at = time.monotonic()
        self._first_step: int | None = None
        self._done = threading.Event()
        self._main = threading.get_ident()
        self._thread: threading.Thread | None = None

    def beat(self, step: int, phase: str) -> None:
        """Record that this process is at `step`, in `phase` (one of PHASES)."""
        if self._first_step is None and step >= 0:
            self._first_step = step
        self._heartbeat = replace(self._heartbeat, step=step, phase=phase)
        self._beat_at = time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self._limit is not None:
            self._write(self._heartbeat)  # replaces that of an earlier start
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self._limit is not None
        written = self._heartbeat
        while not self._done.wait(min(5.0, self._limit / 4)):
            heartbeat, at = self._heartbeat, self._beat_at
            is_starting = self._first_step is None or heartbeat.step <= self._first_step
            limit = self._limit * (START_ALLOWANCE if is_starting else 1)
            if heartbeat is not written:
                self._write(heartbeat)
                written = heartbeat
            if time.monotonic() - at > limit:
                self._give_up(heartbeat, limit)

    def _give_up(self, heartbeat: Heartbeat, limit: float) -> None:
        """Write the position of this process, log which rank is behind, and end the process."""
        own = _located(heartbeat, self._main)
        self._write(own)
        faulthandler.dump_traceback(sys.stderr)
        if self._done.wait(min(10.0, limit / 2)):  # the others notice at about the same time
            return  # it continued after all
        found = [self._read(rank) or replace(own, rank=rank, step=-1, phase="start", where="no sign of life")
                 for rank in range(self._world_size)]  # fmt: skip
        message = describe_stall(found, limit)
        log.error("stalled rank=%d message=%r", own.rank, message)
        with contextlib.suppress(OSError):
            stalled = {"message": message, "processes": [asdict(item) for item in found]}
            self._fs.pipe_file(f"{self._folder}/{STALLED}", json.dumps(stalled, indent=1).encode())
        logging.shutdown()
        os._exit(EXIT_STALLED)  # the main thread may hang in an uninterruptible call

    def _path(self, rank: int) -> str:
        return f"{self._folder}/rank-{rank}.json"

    def _write(self, heartbeat: Heartbeat) -> None:
        try:
            self._fs.makedirs(self._folder, exist_ok=True)
            self._fs.pipe_file(self._path(heartbeat.rank), json.dumps(asdict(heartbeat)).encode())
        except OSError as error:
            log.warning("heartbeat_not_written rank=%d error=%r", heartbeat.rank, str(error))

    def _read(self, rank: int) -> Heartbeat | None:
        try:
            return Heartbeat(**json.loads(self._fs.cat_file(self._path(rank))))
        except (OSError, ValueError, TypeError):
            return None


def describe_stall(found: list[Heartbeat], limit: float) -> str:
    """The rank behind all others, its step, and where it hangs; several if they are equally far."""
    least = min(item.progress() for item in found)
    behind = [item for item in found if item.progress() == least]
    places = [
        f"rank {item.rank} (host {item.host}, pid {item.pid}) at step {item.step}, phase '{item.phase}'"
        f"{f', in {item.where}' if item.where else ', which does not answer'}"
        for item in behind
    ]
    return (
        f"no progress for {limit:.0f} s. Behind: {'; '.join(places)}. The stacks of all {len(found)} processes are in "
        "their logs and beside the heartbeats; the same command goes on from the last checkpoint"
    )


def _located(heartbeat: Heartbeat, thread: int) -> Heartbeat:
    frame = sys._current_frames().get(thread)
    if frame is None:
        return heartbeat
    stack = traceback.extract_stack(frame)
    inner = stack[-1]
    return replace(
        heartbeat,
        where=f"{inner.name} ({inner.filename}:{inner.lineno})",
        waits_for_others=any("/torch/distributed/" in item.filename for item in stack),
        stack="".join(traceback.format_list(stack)),
    )
