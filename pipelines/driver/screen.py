"""What a person sees while a run is under way: a live table on a terminal, log lines elsewhere, all of it in a file.

While the run lasts, this process's stdout and stderr lead to the log file, for Ray, its workers, the processes beside
the run and every library that prints. So nothing can be written across the table, stdout holds results only, and what
a library had to say is whole when it is needed. The person's terminal, or whatever stderr was, gets the table or our
own log lines; on a terminal also warnings and errors, above the table.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from pipelines.driver.endings import STATUS
from pipelines.flow.run.events import OnEvent
from pipelines.flow.run.executor import no_op
from pipelines.flow.store.store import Store
from pipelines.project import PROJECT_ROOT

log = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname)s %(message)s"


@contextlib.contextmanager
def screen(store: Store, nodes: Sequence[str]) -> Iterator[OnEvent]:
    """Show a run of `nodes`: what it gives wants every event. The place of the log file is said first."""
    path = log_path(store)
    with contextlib.ExitStack() as stack:
        person = stack.enter_context(_person())
        lines = _LogFile(path, encoding="utf-8")
        stack.callback(lines.close)
        if person.isatty():
            from pipelines.driver.live_table import LiveTable  # rich: nobody else needs it

            table = LiveTable(person, nodes, _shown(path))
            shown: logging.Handler = table.warnings()
            stack.callback(table.close)
        else:
            shown = logging.StreamHandler(person)
            table = None
        for handler in (lines, shown):
            handler.setFormatter(logging.Formatter(FORMAT))
        stack.enter_context(_logging_to([lines, shown]))
        stack.enter_context(_output_to(path))
        if table is None:
            log.info("event=log_file path=%s", _shown(path))
        else:
            table.open()
        STATUS.leave_terminal = stack.close
        stack.callback(setattr, STATUS, "leave_terminal", lambda: None)
        yield no_op if table is None else table


class _LogFile(logging.FileHandler):
    """A log file that a full disk only makes shorter: the run's own error is the one to be told."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def log_path(store: Store) -> Path:
    """A new file in the `logs` folder of a local store, of `runs` for a remote one."""
    folder = (PROJECT_ROOT / "runs" if store.local_root is None else store.local_root) / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(sys.argv[0]).stem or "run"
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{os.getpid()}.log"


def _shown(path: Path) -> str:
    """The path as a person would type it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


@contextlib.contextmanager
def _person() -> Iterator[TextIO]:
    """What stderr was, by a descriptor of its own. Buffered, so that a drawing arrives in one piece."""
    sys.stderr.flush()
    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as stream:
        yield stream


@contextlib.contextmanager
def _logging_to(handlers: Sequence[logging.Handler]) -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = handlers
    try:
        yield
    finally:
        root.handlers[:] = before


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Let descriptors 1 and 2 lead to the end of the file, for this process and those it starts."""
    kept = [(number, os.dup(number)) for number in (1, 2)]
    target = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        for number, _ in kept:
            _flush()
            os.dup2(target, number)
        yield
    finally:
        _flush()
        for number, before in kept:
            os.dup2(before, number)
            os.close(before)
        os.close(target)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
