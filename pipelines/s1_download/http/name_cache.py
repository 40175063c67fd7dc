"""A cache of resolved names for all download processes of one machine: a small database in the user's temporary folder.

A part's child may be killed and restarted, and several parts run side by side: none of them should repeat a query of
another. Only answers are cached (addresses, "no such name"), never transient failures. Cached addresses are checked
like any answer, so a manipulated cache could redirect to public addresses at most; still it is only used if nobody else
can write to it. If the cache fails, names are queried without it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import socket
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)
BUSY_SECONDS = 2.0
POLL_SECONDS = 0.02
LOCK_BYTES = 1 << 40  # a host's lock is one byte of a file that stays empty; a collision once in 10^12 pairs
CREATE = "CREATE TABLE IF NOT EXISTS names (host TEXT PRIMARY KEY, answer TEXT, holds_until REAL) WITHOUT ROWID"

Answer = list[str] | OSError


class NameStore:
    """Answers by host, shared by every process that opens the same file. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._locks = os.open(f"{path}.locks", os.O_RDWR | os.O_CREAT, 0o600)
        self._connection = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        with self._locked(LOCK_BYTES, BUSY_SECONDS):  # two processes that create it at once would fail as "locked"
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = OFF")  # after a crash of the machine names are queried again
            self._connection.execute(CREATE)
            self._connection.execute("DELETE FROM names WHERE holds_until < ?", (time.time(),))

    def get(self, host: str) -> tuple[Answer, float] | None:
        """The valid answer for `host` and its remaining seconds; None if there is none."""
        try:
            with self._lock:
                query = "SELECT answer, holds_until FROM names WHERE host = ?"
                row = self._connection.execute(query, (host,)).fetchone()
        except sqlite3.Error as error:
            logger.warning("name_store=unreadable error=%s", error)
            return None
        if row is None or (seconds := row[1] - time.time()) <= 0:
            return None
        found = json.loads(row[0])
        return (found if isinstance(found, list) else socket.gaierror(found["errno"], found["text"])), seconds

    def put(self, host: str, answer: Answer, seconds: float) -> None:
        """Store an `answer` that is valid for `seconds`."""
        value = {"errno": answer.errno, "text": answer.strerror} if isinstance(answer, OSError) else answer
        row = (host, json.dumps(value), time.time() + seconds)
        try:
            with self._lock:
                self._connection.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", row)
        except sqlite3.Error as error:
            logger.warning("name_store=unwritable error=%s", error)

    def asking(self, host: str, seconds: float) -> contextlib.AbstractContextManager[None]:
        """A lock on `host`: other processes wait for the result of the block, at most `seconds` each.

        The kernel releases the lock of a process that dies. Threads of one process need a lock of their own.
        """
        return self._locked(int.from_bytes(hashlib.sha256(host.encode()).digest()[:8]) % LOCK_BYTES, seconds)

    @contextlib.contextmanager
    def _locked(self, position: int, seconds: float) -> Iterator[None]:
        deadline = time.monotonic() + seconds
        while not (is_held := self._try_lock(position)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            if is_held:
                fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, position)

    def _try_lock(self, position: int) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                logger.warning("name_store=unlockable error=%s", error)
            return False
        return True


def open_name_store(name_servers: Sequence[str], folder: Path | None = None) -> NameStore | None:
    """The cache of this machine and user for these name servers, or a separate one in `folder`.

    None, and a warning, if it cannot be opened or others could write to it.
    """
    try:
        folder = folder or _private_folder()
        name = hashlib.sha256(json.dumps(sorted(name_servers)).encode()).hexdigest()[:16]
        return NameStore(folder / f"names-1-{name}.sqlite")
    except (OSError, sqlite3.Error) as error:
        logger.warning("name_store=absent error=%s", error)
        return None


def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"x2vlm-names-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can write to")
    return folder
