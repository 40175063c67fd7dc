"""Copies of remote files on this machine, named by the sha256 of their bytes, in a bounded number of bytes.

    <folder>/<sha256[:2]>/<sha256>      a copy; its time of change is that of its last use
    <folder>/ledger                     "<bytes> <time>": what the copies take at most, and when they were counted

Any number of processes share a folder. Adding a file reads and writes the ledger alone, under its lock. The copies are
looked at only when they may take more than the limit, and then room is made for a tenth of it, so that the next look is
far; when the ledger is missing or cannot be read; and once an hour, because somebody else may have removed or added
copies. A file is entered before it is added: a process that is killed in between leaves a ledger that says too much,
never too little.
"""

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LEDGER = "ledger"
COUNT_AGAIN_SECONDS = 3600.0
LOCK_SECONDS = 2.0  # after which a file is not kept: a holder that was stopped must not stop others


class FileCache:
    """The copies below `folder`. `limit` says how many bytes they may take now; None: half of the free space."""

    def __init__(self, folder: Path, limit: Callable[[], int] | None = None) -> None:
        self.folder = folder
        self._limit = limit

    def limit(self) -> int:
        """How many bytes the copies may take now: by default as many as they leave free, or fewer."""
        return self._limit() if self._limit is not None else shutil.disk_usage(self.folder).free // 2

    def path(self, sha256: str) -> Path:
        """Where the copy of that file lies if there is one."""
        return self.folder / sha256[:2] / sha256

    def take(self, sha256: str, num_bytes: int, target: Path) -> bool:
        """Whether there was a copy with the right bytes; then it is at `target`, a hard link that outlives the copy."""
        try:
            os.link(self.path(sha256), target)
        except OSError:  # not there, or on another file system
            return False
        if target.stat().st_size == num_bytes:
            with target.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() == sha256:
                    os.utime(target)  # also the copy's time of last use: it is the same file
                    return True
        target.unlink()
        return False

    def keep(self, file: Path, sha256: str) -> None:
        """Link a file whose bytes have that sha256 into the cache, after the copies longest unused have made room.

        Nothing happens where that is not possible (another file system, no permission, larger than the limit): the
        cache only saves time.
        """
        try:
            num_bytes, copy = file.stat().st_size, self.path(sha256)
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked() as ledger:
                if ledger is not None and self._enter(ledger, num_bytes):
                    temporary = copy.with_name(f".{uuid.uuid4().hex}")
                    os.link(file, temporary)
                    os.replace(temporary, copy)
        except OSError:
            return

    def _enter(self, ledger: int, num_bytes: int) -> bool:
        """Add a file to the ledger, with room for it; False if it is too large."""
        limit, now = self.limit(), int(time.time())  # rounded down: what was counted just now is not in the future
        fits = num_bytes <= limit
        wanted = num_bytes if fits else 0
        total, counted = _parsed(os.pread(ledger, 64, 0))
        if not 0 <= now - counted <= COUNT_AGAIN_SECONDS or total + wanted > limit:
            total, counted = self._make_room(limit, wanted), now
        line = f"{total + wanted:020d} {counted:020d}\n".encode()  # of one length: one write replaces it whole
        os.pwrite(ledger, line, 0)
        return fits

    def _make_room(self, limit: int, wanted: int) -> int:
        """What the copies take, after those longest unused were removed if it is too much."""
        copies = sorted(self._copies())
        total = sum(size for _, size, _ in copies)
        if total + wanted > limit:
            for _, size, path in copies:
                if total + wanted <= limit - limit // 10:
                    break
                Path(path).unlink(missing_ok=True)
                total -= size
        return total

    def _copies(self) -> Iterator[tuple[int, int, str]]:
        """(time of last use, bytes, path) of every file, those that killed processes left included."""
        for folder in os.scandir(self.folder):
            if folder.is_dir(follow_symlinks=False):
                for entry in os.scandir(folder):
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:  # renamed or removed just now
                        continue
                    yield status.st_mtime_ns, status.st_size, entry.path

    @contextmanager
    def _locked(self) -> Iterator[int | None]:
        """The ledger's descriptor while this process alone may change it; None if it could not be had in time."""
        ledger = os.open(self.folder / LEDGER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield ledger if _lock(ledger) else None
        finally:
            os.close(ledger)


def _lock(descriptor: int) -> bool:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        else:
            return True


def _parsed(line: bytes) -> tuple[int, int]:
    """Bytes and time of counting of a ledger; a time long ago if it says nothing that can be read."""
    try:
        total, counted = line.split()
        return int(total), int(counted)
    except ValueError:
        return 0, 0
