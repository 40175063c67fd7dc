"""Stopping or saving a run early on a signal, and its exit code then."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from x2vlm.errors import Stopped

log = logging.getLogger(__name__)

# Exit code of a process that was asked to stop and saved its state: EX_TEMPFAIL, "try again later".
EXIT_STOPPED = 75


class TrainingStopped(Stopped):
    """The training was asked to stop: `step` steps are finished and saved; the same command continues from there."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped as asked after {step} steps, which are saved; the same command goes on from there")
        self.step = step

    def __reduce__(self) -> tuple[type["TrainingStopped"], tuple[int]]:
        return TrainingStopped, (self.step,)


class StopOnSignal:
    """Inside the `with` block SIGTERM requests a stop instead of killing the process.

    Only the main thread of a process can do that; in others (a Ray Train worker's thread) signals are unchanged.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None
        self._is_installed = False

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
            self._is_installed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._is_installed:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
        log.warning("stop_asked signal=%d", number)
