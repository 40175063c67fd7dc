"""Checkpoints that are written in the background while training continues: one at a time, from a copy in host memory.

The copy is taken before `save` returns, so later steps cannot change it. The store commits atomically: a process that
dies in the middle of a write leaves the last finished checkpoint intact.
"""

import logging
import threading
import time
from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor

from x2vlm.train.checkpoint import Checkpoint, CheckpointStore

log = logging.getLogger(__name__)


class BackgroundSaves:
    """A thread that writes checkpoints into a store; on leaving the `with` block the last one is complete."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._host: dict[
            str, Tensor
        ] = {}  # page-locked copies, reused: locking 3 GB again takes longer than copying it

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

    def wait(self) -> None:
        """Wait until nothing is being written; raises the error of the last write."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> "BackgroundSaves":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.wait()
            return
        try:  # the first error is the one to report
            self.wait()
        except Exception:
            log.exception("checkpoint_failed")

    def _write(self, checkpoint: Checkpoint) -> None:
        started = time.perf_counter()
        try:
            self._store.save(checkpoint)
        except BaseException as error:
            self._error = error
            return
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
