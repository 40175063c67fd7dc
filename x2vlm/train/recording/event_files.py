"""Metrics as TensorBoard event files, by torch's own writer: `tensorboard --logdir <folder>` reads them.

On an object store every flush ends a file and uploads it: nothing there is ever changed.
"""

import logging
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from x2vlm.extras import needs
from x2vlm.stores.calls import RETRY_SECONDS, StoreFiles

log = logging.getLogger(__name__)


class EventFiles:
    """Scalars by step below the URI `folder`. A start at `first_step` has TensorBoard drop what was later than that.

    MissingPackage without the package tensorboard.
    """

    def __init__(self, folder: str, first_step: int, retry_seconds: float = RETRY_SECONDS) -> None:
        with needs("train_runtime.tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._files = StoreFiles(folder, retry_seconds)
        self._scratch = None if self._files.is_local else tempfile.TemporaryDirectory(prefix="x2vlm-events-")
        self._folder = Path(self._scratch.name if self._scratch else self._files.root)
        self._number = 0
        self._lock = threading.Lock()
        self._purge_step: int | None = first_step
        self._writer: Any = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Every number of a line of metrics but its step."""
        with self._lock:
            if self._writer is None:
                self._number += 1
                suffix = f".{self._number:06d}"
                self._writer = self._open(str(self._folder), purge_step=self._purge_step, filename_suffix=suffix)
                self._purge_step = None
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    self._writer.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        """Have the store hold all that was written so far."""
        with self._lock:
            if self._writer is None:
                return
            self._writer.flush()
            if self._files.is_local:
                return
            self._writer.close()
            self._writer = None
            done = sorted(self._folder.iterdir())
        for path in done:
            self._files.upload(path, path.name)
            path.unlink()

    def close(self) -> None:
        """`flush` and end."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
        if self._scratch is not None:
            self._scratch.cleanup()
