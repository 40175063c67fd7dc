"""Which process is this, and does that one still live? Answers only for processes that can be seen from here."""

import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_TOKEN = re.compile(r"(?P<host>.+)\.(?P<pid>\d+)\.(?P<started>\d+)")


@dataclass(frozen=True)
class Identity:
    """A process: `host` names machine, boot and process namespace; `started` tells it from later users of its pid."""

    host: str
    pid: int
    started: int

    @property
    def token(self) -> str:
        """One word that names the process and is safe in file names."""
        return f"{self.host}.{self.pid}.{self.started}"

    @classmethod
    def from_token(cls, token: str) -> "Identity | None":
        """The process a token names; None if it is no token."""
        match = _TOKEN.fullmatch(token)
        return cls(match["host"], int(match["pid"]), int(match["started"])) if match else None

    def is_alive(self) -> bool | None:
        """Whether the process runs; None where that cannot be seen (another host, boot or container)."""
        if self.host != host_name():
            return None
        return self.started == start_time(self.pid)


@lru_cache(maxsize=1)
def host_name() -> str:
    """Host, boot and process namespace in one word: within it, a pid names one process at a time."""
    boot = _read(Path("/proc/sys/kernel/random/boot_id")).strip()[:8]
    try:
        namespace = "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        namespace = ""
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
    return f"{host}_{boot or 'noboot'}_{namespace or '0'}"


def start_time(pid: int) -> int:
    """Kernel start time of a process in clock ticks since boot; -1 if there is no such process or it is a zombie."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(fields) > 19:
        return -1 if fields[0] in ("Z", "X") else int(fields[19])
    if Path("/proc/self/stat").exists():
        return -1
    try:  # systems without /proc: existence is all there is to see
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except PermissionError:
        return 0
    return 0


def this_process() -> Identity:
    """The identity of the calling process."""
    pid = os.getpid()
    return Identity(host_name(), pid, max(start_time(pid), 0))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
