"""Metrics and checkpoints as the first rank writes them: the training thread hands them over and never waits for long.

While the store fails, lines gather in memory and checkpoints that are due are put off until the one under way is
written. Only the last checkpoint of a start is waited for (`settle`), whatever it takes.
"""

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from x2vlm.errors import StageFailed
from x2vlm.models.checkpoints.weights import own_tensors
from x2vlm.stores.calls import seconds_since_failure
from x2vlm.train.background_saves import BackgroundSaves
from x2vlm.train.checkpoint import Checkpoint, CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.metrics import MetricsLog
from x2vlm.train.optim import optimizer_tensors
from x2vlm.train.progress import console_line
from x2vlm.train.recording.event_files import EventFiles
from x2vlm.train.step import Trainer

log = logging.getLogger(__name__)

EVENTS = "tensorboard"  # folder beside the metrics
SAVE_WAIT_SECONDS = 30.0  # for the checkpoint under way, before the next one is put off
NUM_TIMED = 50  # steps whose mean time the remaining time is estimated from


class Writer:
    """Metrics and checkpoints of a start. On leaving the `with` block both are complete, or the error was logged."""

    def __init__(
        self, metrics_uri: str, first_step: int, num_steps: int, checkpoints: CheckpointStore, runtime: TrainRuntime
    ) -> None:
        self._num_steps, self._log_every = num_steps, runtime.log_every
        retry = runtime.store_retry_seconds
        folder = f"{metrics_uri.rpartition('/')[0]}/{EVENTS}"
        self._events = EventFiles(folder, first_step, retry) if runtime.tensorboard else None
        self._metrics = MetricsLog(metrics_uri, retry)
        self._saves = BackgroundSaves(checkpoints, self._flush)
        self._seconds: deque[float] = deque(maxlen=NUM_TIMED)
        self._last: Callable[[], Checkpoint] | None = None
        self._is_owed = False
        minutes = runtime.checkpoint_minutes
        self._interval = math.inf if minutes is None else 60 * minutes
        self._saved_at = time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._saves.__exit__(kind, error, at)
        finally:
            if error is None:
                self._close()
            else:
                try:  # the first error is the one to report
                    self._close()
                except Exception as other:
                    log.error("metrics_not_written error=%r", str(other))

    @property
    def wants_save(self) -> bool:
        """Whether a checkpoint was put off, or is due by time, and could be written now.

        All ranks save at the same step: the answer goes with the numbers of the step, which they all read.
        """
        is_due = self._is_owed or time.monotonic() - self._saved_at >= self._interval
        return is_due and not self._saves.is_busy

    @property
    def _patience(self) -> float:
        """Seconds to wait for the checkpoint under way: none if that was in vain before, or while the store fails."""
        return 0.0 if self._is_owed or seconds_since_failure() < SAVE_WAIT_SECONDS else SAVE_WAIT_SECONDS

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Metrics of finished steps, in order; some of them also on the console."""
        for line in lines:
            self._metrics.write(line)
            if self._events is not None:
                self._events.write(line)
            self._seconds.append(line["seconds"])
            if (line["step"] + 1) % self._log_every == 0 or line["step"] + 1 == self._num_steps:
                left = (self._num_steps - line["step"] - 1) * sum(self._seconds) / len(self._seconds)
                log.info("%s", console_line(line, self._num_steps, left))

    def save(
        self, trainer: Trainer, step: int, facts: Mapping[str, Any], is_last: bool, beat: Callable[[], None]
    ) -> None:
        """Write the checkpoint after `step` steps in the background, once the metrics up to it are in the store.

        Put off if the previous one takes longer than SAVE_WAIT_SECONDS from here. With `is_last` waiting for that is
        left to `settle`, and weights must not move before. StageFailed if the previous one failed.
        """

        def taken() -> Checkpoint:
            return Checkpoint(step, own_tensors(trainer.model), optimizer_tensors(trainer.optimizer), facts)

        if is_last and self._saves.is_busy:
            self._last = taken
            return
        waited, most = 0.0, self._patience
        while not self._saves.wait(min(1.0, most)):
            beat()
            waited += 1.0
            if waited >= most:
                self._is_owed = True
                log.warning("checkpoint_put_off step=%d reason='the previous one is still being written'", step)
                return
        self._is_owed = False
        self._saved_at = time.monotonic()
        self._metrics.note(save_wait_seconds=round(waited + self._saves.save(taken()), 4))

    def settle(self, seconds: float) -> bool:
        """Wait up to `seconds` for the last checkpoint and the metrics; whether both are in the store.

        StageFailed if they cannot be written.
        """
        if self._last is not None:
            try:
                if not self._saves.wait(seconds):
                    return False
            except StageFailed as error:
                log.warning("earlier_checkpoint_failed error=%r", str(error))  # this one makes up for it
            last, self._last = self._last, None
            self._saves.save(last())
        if not self._saves.wait(seconds):
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        self._metrics.flush()
        if self._events is not None:
            try:
                self._events.flush()
            except Exception as error:  # a view of the metrics, which are safe
                log.error("event_files_not_written error=%r", str(error))

    def _close(self) -> None:
        self._metrics.close()
        if self._events is not None:
            with contextlib.suppress(Exception):
                self._events.close()
