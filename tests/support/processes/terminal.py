"""A process on a real pseudo-terminal, and what a person would see there."""

import contextlib
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte


class Terminal:
    """Runs a command with stdin, stdout and stderr on a terminal of `columns` x `lines`. Use as a context manager."""

    def __init__(
        self,
        command: Sequence[str],
        columns: int = 100,
        lines: int = 30,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=2000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.master, slave = os.openpty()
        _set_size(slave, columns, lines)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=cwd,
            env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
            start_new_session=True,
        )
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)

    def read(self, seconds: float) -> bool:
        """Take what comes within `seconds`; False once the process has closed its terminal."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if not select.select([self.master], [], [], left)[0]:
                return True
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.raw += data
            self._stream.feed(data)
        return True

    def wait_for(self, text: str, seconds: float = 120.0) -> None:
        """Read until the screen or what has scrolled off shows `text`."""
        until = time.monotonic() + seconds
        while text not in self.everything():
            assert time.monotonic() < until, f"no {text!r} after {seconds} s:\n{self.everything()}"
            if not self.read(0.1):
                assert text in self.everything(), f"ended without {text!r}:\n{self.everything()}"

    def finish(self, seconds: float = 120.0) -> int:
        """Read to the end; the exit code."""
        until = time.monotonic() + seconds
        while self.read(0.2):
            assert time.monotonic() < until, f"still running after {seconds} s:\n{self.everything()}"
        return self.process.wait(30)

    def resize(self, columns: int, lines: int) -> None:
        """Change the terminal's size, as a window manager would: the kernel sends SIGWINCH."""
        _set_size(self.master, columns, lines)
        self.screen.resize(lines, columns)

    def lines(self) -> list[str]:
        """What the screen shows."""
        return [line.rstrip() for line in self.screen.display]

    def everything(self) -> str:
        """What has scrolled off and what the screen shows."""
        width = self.screen.columns
        above = ["".join(line[x].data for x in range(width)).rstrip() for line in self.screen.history.top]
        return "\n".join([*above, *self.lines()])

    def type(self, text: bytes) -> None:
        """Press keys: b"\\x03" is Ctrl-C."""
        os.write(self.master, text)


def _set_size(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
