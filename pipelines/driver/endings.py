"""How a job ends before it is done: by Ctrl-C or SIGTERM, in seconds, with one paragraph and nothing left behind.

The first signal raises in the main thread, so every `with` block is left in order: the lease is released, Ray and the
other processes are stopped. A second thread sees to it that this ends: after a limit, or at a second signal, it kills
every process below this one and leaves. It hears of signals through a pipe, so it does even where the main thread is
deep inside a library.
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from x2vlm.command_line import EXIT_FENCED

LIMIT_SECONDS = {signal.SIGINT: 4.0, signal.SIGTERM: 20.0}  # Kubernetes kills 30 s after SIGTERM
_HOW = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_PR_SET_CHILD_SUBREAPER = 36


class Stop(BaseException):
    """SIGTERM arrived."""


class Status:
    """What a job says it has kept, should it be stopped now, and how it lets go of the terminal and of its leases."""

    def __init__(self) -> None:
        self.kept: Callable[[], str] = lambda: "It had changed nothing."
        self.leave_terminal: Callable[[], None] = lambda: None
        self.release: Callable[[], None] = lambda: None
        self.litter: list[Path] = []  # folders to remove once nobody writes there any more


STATUS = Status()


class Endings:
    """Handles SIGINT and SIGTERM of this process, of its main thread, from `install` to `uninstall`."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._started = time.monotonic()
        self._below: dict[int, str] = {}  # processes below this one at the first signal, with their start times
        self._before: dict[int, Any] = {}
        self._is_said = threading.Lock()
        self._pipe: tuple[int, int] | None = None

    def install(self) -> None:
        """Take the signals over. Ray takes SIGTERM when it starts: `reinstall` afterwards."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._pipe = read, write
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in LIMIT_SECONDS:
            self._before[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._watch, args=(read,), name="endings", daemon=True).start()
        global _installed
        _installed = self

    def reinstall(self) -> None:
        """Be the one who handles the signals again."""
        for number in LIMIT_SECONDS:
            signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Give the signals back."""
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(-1)

    def finish(self) -> NoReturn:
        """Say what is kept, let go, end every process below this one, and leave with 128 + the signal."""
        if self.signal is None:  # raised by somebody else, as `signal` would have
            self.signal = signal.SIGINT
        self._say()
        if threading.current_thread() is threading.main_thread():  # else that one hangs, perhaps in its store
            with contextlib.suppress(Exception):
                STATUS.release()
        self._kill_all()
        for folder in STATUS.litter:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + self.signal)

    def abandon(self, reason: str) -> NoReturn:
        """Another driver has taken over and this one did not stop by itself: kill all below it and leave."""
        with contextlib.suppress(Exception):
            STATUS.leave_terminal()
        with contextlib.suppress(Exception):
            sys.stderr.write(f"LeaseLost: {reason}\n")
            sys.stderr.flush()
        self._kill_all()
        os._exit(EXIT_FENCED)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None or self.signal == number:
            self.signal = signal.Signals(number)
            raise KeyboardInterrupt if number == signal.SIGINT else Stop

    def _watch(self, pipe: int) -> None:
        """Wait for signals; end the process when it does not end by itself, or at once when asked twice."""
        numbers = [signal.Signals(number) for number in os.read(pipe, 1)]
        while not any(number in LIMIT_SECONDS and signal.getsignal(number) == self._handle for number in numbers):
            numbers = [signal.Signals(number) for number in os.read(pipe, 1)]
        first = numbers[0]
        _adopt_orphans()
        self._below = descendants(os.getpid())
        asked_again = threading.Event()
        threading.Thread(target=_wait_for_another, args=(pipe, asked_again), daemon=True).start()
        asked_again.wait(LIMIT_SECONDS[first])
        self.signal = self.signal or first
        self.finish()

    def _say(self) -> None:
        if not self._is_said.acquire(blocking=False):
            return
        assert self.signal is not None
        # On the way out: nothing that the broken run has left may keep the process from saying its word and leaving.
        with contextlib.suppress(Exception):
            STATUS.leave_terminal()
        seconds = time.monotonic() - self._started
        with contextlib.suppress(Exception):
            kept = STATUS.kept()
            sys.stderr.write(
                f"Stopped by {_HOW[self.signal]} after {seconds:.0f} s. {kept} To go on: {own_command()}\n"
            )
            sys.stderr.flush()

    def _kill_all(self) -> None:
        """Kill what is below this process, again until nothing is: processes start others while they are killed."""
        for _ in range(20):
            found = {**self._below, **descendants(os.getpid())}
            now = processes()
            alive = [pid for pid, started in found.items() if now.get(pid, (0, ""))[1] == started]
            if not alive:
                return
            for pid in alive:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)


_installed: Endings | None = None


def reinstall() -> None:
    """Handle signals again after a library took them; nothing outside of a job."""
    if _installed is not None and threading.current_thread() is threading.main_thread():
        _installed.reinstall()


def abandon(reason: str) -> None:
    """As `Endings.abandon`; nothing outside of a job."""
    if _installed is not None:
        _installed.abandon(reason)


def own_command() -> str:
    """The command line that started this process, without secrets."""
    from pipelines.flow.run.provenance import mask_secrets  # only here, where nobody waits for an import

    words = list(sys.orig_argv)
    return shlex.join(mask_secrets(words))


def descendants(pid: int) -> dict[int, str]:
    """Processes below `pid` that are alive, with their start times."""
    alive = processes()
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        above = waiting.pop()
        for child, (parent, started) in alive.items():
            if parent == above and child not in found:
                found[child] = started
                waiting.append(child)
    return found


def processes() -> dict[int, tuple[int, str]]:
    """All processes that are more than an exit code: the parent, and when each began in whatever unit."""
    if not Path("/proc/self/stat").exists():
        return processes_of_ps()
    found = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        with contextlib.suppress(OSError):  # gone meanwhile
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found[pid] = int(fields[1]), fields[19]
    return found


def processes_of_ps() -> dict[int, tuple[int, str]]:
    """`processes` where there is no /proc, as on macOS."""
    words = ["ps", "-A", "-o", "pid=,ppid=,state=,lstart="]
    lines = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}).stdout
    rows = [line.split(maxsplit=3) for line in lines.splitlines()]
    return {int(pid): (int(parent), started) for pid, parent, state, started in rows if state[0] not in "ZX"}


def _adopt_orphans() -> None:
    """Processes whose parent dies from now on come to this one (Linux), so that none gets away."""
    with contextlib.suppress(AttributeError, OSError):  # no such call outside of Linux
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _wait_for_another(pipe: int, event: threading.Event) -> None:
    while True:
        if any(number in LIMIT_SECONDS for number in os.read(pipe, 1)):
            event.set()
            return
