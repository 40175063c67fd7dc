"""Ends a run that hangs, and reports which rank hangs where.

Every process writes its progress to a small file in the run's folder, and is watched by a second thread. When a run
hangs all processes stop, because each waits for the slowest; so each then writes its position and reads those of the
others. The slowest one is named in the log of all of them.

The watching thread never calls the store: another one writes, and may hang or fail there. While the store of the run
fails, the clock of a stall stands still, for as long as store calls are tried again: who waits for data, or for a rank
that does, does not hang.
"""

import faulthandler
import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from types import TracebackType

from x2vlm.stores.calls import RETRY_SECONDS, StoreFiles, is_final, note_failure, seconds_since_failure
from x2vlm.train.config import START_ALLOWANCE
from x2vlm.train.ranks import Ranks

log = logging.getLogger(__name__)

EXIT_STALLED = 76
STALLED = "stalled.json"
# A heartbeat is a few hundred bytes: a store that takes longer for it does not work.
SLOW_SECONDS = 5.0
WRITE_SECONDS = 5.0  # between two heartbeats
READ_SECONDS = 20.0  # for the last words of all ranks
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
    """Watches this process from a thread inside the `with` block; does nothing if `stall_seconds` is None.

    `seconds_since_wait`: since another process of this machine, a reader, last waited for a store that fails.
    """

    def __init__(
        self,
        folder: str,
        ranks: Ranks,
        stall_seconds: float | None,
        store_retry_seconds: float = RETRY_SECONDS,
        seconds_since_wait: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._files = StoreFiles(folder)
        self._world_size = ranks.world_size
        self._limit, self._patience = stall_seconds, store_retry_seconds
        self._seconds_since_wait = seconds_since_wait
        self._heartbeat = Heartbeat(ranks.rank, socket.gethostname(), os.getpid(), -1, "start")
        self._last_words: Heartbeat | None = None  # written instead, while this process gives up
        self._beat_at = time.monotonic()
        self._first_step: int | None = None
        self._done = threading.Event()
        self._main = threading.get_ident()
        self._threads: list[threading.Thread] = []
        self._writing_since: float | None = None

    def beat(self, step: int, phase: str) -> None:
        """Record that this process is at `step`, in `phase` (one of PHASES)."""
        if self._first_step is None and step >= 0:
            self._first_step = step
        self._heartbeat = replace(self._heartbeat, step=step, phase=phase)
        self._beat_at = time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self._limit is not None:
            for name, work in (("watchdog", self._watch), ("heartbeats", self._write_heartbeats)):
                thread = threading.Thread(target=work, args=(self._limit,), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(SLOW_SECONDS)  # that of the heartbeats may hang in the store

    def _watch(self, stall_seconds: float) -> None:
        while not self._done.wait(min(5.0, stall_seconds / 4)):
            try:
                heartbeat, at = self._heartbeat, self._beat_at
                is_starting = self._first_step is None or heartbeat.step <= self._first_step
                limit = stall_seconds * (START_ALLOWANCE if is_starting else 1)
                idle = time.monotonic() - at
                # At most as long as store calls are tried again a failing store excuses everything.
                if idle > limit and (self._seconds_since_trouble() > limit or idle > limit + self._patience):
                    self._give_up(heartbeat, limit)
            except Exception:  # this thread is the last one to notice anything
                log.exception("watchdog_failed rank=%d", self._heartbeat.rank)

    def _seconds_since_trouble(self) -> float:
        """Seconds since the store last failed, as far as this machine has seen."""
        since = self._writing_since
        hangs = since is not None and time.monotonic() - since > SLOW_SECONDS
        return 0.0 if hangs else min(seconds_since_failure(), self._seconds_since_wait())

    def _write_heartbeats(self, stall_seconds: float) -> None:
        """Write the newest heartbeat every few seconds, whatever becomes of it."""
        while True:
            self._write(self._last_words or self._heartbeat)
            if self._done.wait(min(WRITE_SECONDS, stall_seconds / 4)):
                return

    def _give_up(self, heartbeat: Heartbeat, limit: float) -> None:
        """Write the position of this process, log which rank is behind, and end the process."""
        own = self._last_words = _located(heartbeat, self._main)
        faulthandler.dump_traceback(sys.stderr)
        pool = ThreadPoolExecutor(8, "stalled")
        written = pool.submit(self._write, own)
        if self._done.wait(min(10.0, limit / 2)):  # the others notice at about the same time
            self._last_words = None  # it continued after all
            return
        reads = [pool.submit(self._read, rank) for rank in range(self._world_size)]
        wait([written], READ_SECONDS)
        wait(reads, READ_SECONDS)
        unknown = replace(own, step=-1, phase="start", where="no sign of life")
        others = [read.result() if read.done() else None for read in reads]
        found = [item or replace(unknown, rank=rank) for rank, item in enumerate(others)]
        found[own.rank] = own
        message = describe_stall(found, limit)
        log.error("stalled rank=%d message=%r", own.rank, message)
        stalled = {"message": message, "processes": [asdict(item) for item in found]}
        wait([pool.submit(self._put, STALLED, json.dumps(stalled, indent=1).encode())], READ_SECONDS)
        logging.shutdown()
        os._exit(EXIT_STALLED)  # the main thread may hang in an uninterruptible call

    def _write(self, heartbeat: Heartbeat) -> None:
        self._writing_since = time.monotonic()
        self._put(f"rank-{heartbeat.rank}.json", json.dumps(asdict(heartbeat)).encode())
        self._writing_since = None

    def _put(self, name: str, content: bytes) -> None:
        """Write one file if that works: what is due a moment later is more worth than trying again."""
        try:
            if self._files.is_local:
                self._files.write(name, content)
            else:
                self._files.fs.pipe_file(self._files.path(name), content)
        except Exception as error:
            if not is_final(error):
                note_failure()
            log.warning("heartbeat_not_written file=%s error=%r", name, str(error)[:300])

    def _read(self, rank: int) -> Heartbeat | None:
        try:
            return Heartbeat(**json.loads(self._files.fs.cat_file(self._files.path(f"rank-{rank}.json"))))
        except Exception:
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
