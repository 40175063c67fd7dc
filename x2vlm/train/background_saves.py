"""Checkpoints that are written in the background while training continues: one at a time, from a copy in host memory.

The copy is taken before `save` returns, so later steps cannot change it. The store commits atomically: a process that
dies in the middle of a write leaves the last finished checkpoint intact.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import torch
from torch import Tensor

from x2vlm.errors import LeaseLost, StageFailed, X2VLMError
from x2vlm.train.checkpoint import Checkpoint, CheckpointStore

log = logging.getLogger(__name__)


class BackgroundSaves:
    """A thread that writes checkpoints into a store; on leaving the `with` block the last one is complete.

    `before` is called in that thread before each write: what must be in the store before the checkpoint is.
    """

    def __init__(self, store: CheckpointStore, before: Callable[[], None] = lambda: None) -> None:
        self._store, self._before = store, before
        self._thread: threading.Thread | None = None
        self._error: X2VLMError | None = None
        self._newest: int | None = None  # written by this process
        self._host: dict[
            str, Tensor
        ] = {}  # page-locked copies, reused: locking 3 GB again takes longer than copying it

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, checkpoint: Checkpoint) -> float:
        """Copy `checkpoint` and write it in the background; returns the seconds for which training was blocked.

        Waits for the previous write, if that is still running, and raises its error.
        """
        started = time.perf_counter()
        self.wait()
        copy = self._copy(checkpoint)
        self._thread = threading.Thread(target=self._write, args=(copy,), name="checkpoint")
        self._thread.start()
        return time.perf_counter() - started

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until nothing is being written, at most `seconds`; whether that is so.

        StageFailed, once, if the last write failed; LeaseLost if another driver has taken this run over.
        """
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return True

    def __enter__(self) -> "BackgroundSaves":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.wait()
            return
        try:  # the first error is the one to report; that of the write is in the log
            self.wait()
        except X2VLMError:
            pass

    def _write(self, checkpoint: Checkpoint) -> None:
        started = time.perf_counter()
        try:
            self._before()
            self._store.save(checkpoint)
        except (
            LeaseLost
        ) as error:  # nothing failed here: this process must write no more, and end with a code of its own
            self._error = error
        except BaseException as error:
            newest = "none was written since this start" if self._newest is None else f"the newest is {self._newest}"
            self._error = StageFailed(
                f"the checkpoint of step {checkpoint.step} was not written: {type(error).__name__}: {error}. Of the "
                f"checkpoints in {self._store.uri} {newest}; the same command goes on from the newest good one"
            )
            self._error.__cause__ = error
            log.error("checkpoint_failed step=%d error=%r", checkpoint.step, str(error))
        else:
            self._newest = checkpoint.step
            log.info("checkpoint_written step=%d seconds=%.2f", checkpoint.step, time.perf_counter() - started)

    def _copy(self, checkpoint: Checkpoint) -> Checkpoint:
        model = self._to_host("model", checkpoint.model)
        optimizer = self._to_host("optimizer", checkpoint.optimizer)
        if any(tensor.is_cuda for tensor in checkpoint.model.values()):
            torch.cuda.current_stream().synchronize()
        return Checkpoint(checkpoint.step, model, optimizer, dict(checkpoint.facts))

    def _to_host(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            host = self._host.get(f"{kind}/{name}")
            if host is None:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._host[f"{kind}/{name}"] = host
            copies[name] = host.copy_(tensor.detach(), non_blocking=True)
        return copies
