"""An object store in one file of this machine that counts requests as S3 would be asked, and keeps sizes for content.

`Objects` (`x2vlm.stores.objects`) takes it for S3: what it counts is what the store client really asks for. Objects of
holes (sparse files) are kept as their size and read as zeros.
"""

import errno
import math
import os
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

PROTOCOL = "simulation"
# Of s3fs 2026: a file of two pieces or more is uploaded in pieces, and a listing answers with so many keys.
UPLOAD_PIECE_BYTES = 50 << 20
LISTED_KEYS = 1000
KINDS = ("GET", "PUT", "LIST", "HEAD", "DELETE")


class SimulatedObjects(fsspec.AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Objects in the SQLite file `database`; `requests` counts by kind, `seconds` is CPU spent here instead of waiting.

    Paths are "<bucket>/<key>". Threads may share it.
    """

    protocol = (PROTOCOL, "s3")

    def __init__(self, database: str, **options: Any) -> None:
        super().__init__(**options)
        self.database = database
        self.requests: Counter[str] = Counter()
        self.seconds = 0.0
        self._lock = threading.RLock()
        Path(database).parent.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
        for line in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-8000"):
            self._rows.execute(f"PRAGMA {line}")
        self._rows.execute("CREATE TABLE IF NOT EXISTS objects (path TEXT, bytes INT, modified REAL, data BLOB)")
        self._rows.execute("CREATE UNIQUE INDEX IF NOT EXISTS places ON objects (path)")

    @contextmanager
    def _request(self, kind: str, number: int = 1) -> Iterator[None]:
        with self._lock:
            started = time.thread_time()
            self.requests[kind] += number
            try:
                yield
            finally:
                self.seconds += time.thread_time() - started

    def _find(self, path: str) -> tuple[int, float, bytes | None]:
        found = self._rows.execute("SELECT bytes, modified, data FROM objects WHERE path = ?", (_key(path),)).fetchone()
        if found is None:
            raise FileNotFoundError(path)
        return (int(found[0]), float(found[1]), found[2])

    def _put(self, path: str, size: int, data: bytes | None) -> None:
        row = (_key(path), size, time.time(), data)
        self._rows.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", row)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """GET of an object or a range of it."""
        with self._request("GET"):
            size, _, data = self._find(path)
            first, last, _ = slice(start, end).indices(size)
            return bytes(max(0, last - first)) if data is None else data[first:last]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """PUT; with `mode="create"` FileExistsError where there is an object."""
        with self._request("PUT"):
            if mode == "create" and self._has(path):
                raise FileExistsError(path)
            self._put(path, len(value), value)

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        """PUT of a local file, in pieces from two of them on. Of a file of holes alone only the size is kept."""
        size = os.path.getsize(lpath)
        pieces = math.ceil(size / UPLOAD_PIECE_BYTES)
        with self._request("PUT", 1 if size < 2 * UPLOAD_PIECE_BYTES else pieces + 2):
            self._put(rpath, size, None if size and _is_hole(lpath) else Path(lpath).read_bytes())

    def add_hole(self, path: str, size: int) -> None:
        """An object of so many zeros, which nobody uploaded."""
        with self._lock:
            self._put(path, size, None)

    def stored_bytes(self, start: str) -> int:
        """Bytes of all objects whose path has this beginning; no request."""
        with self._lock:
            asked = "SELECT COALESCE(SUM(bytes), 0) FROM objects WHERE path >= ? AND path < ?"
            return int(self._rows.execute(asked, _from(_key(start))).fetchone()[0])

    def _has(self, path: str) -> bool:
        return self._rows.execute("SELECT 1 FROM objects WHERE path = ?", (_key(path),)).fetchone() is not None

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Bucket and key, as s3fs has it."""
        bucket, _, key = _key(path).partition("/")
        return bucket, key, None

    def call_s3(self, method: str, Bucket: str, Key: str) -> None:
        """HEAD is all that is asked for by its own name."""
        if method != "head_object":
            raise NotImplementedError(f"the store client asked for {method}, which no simulation counts yet")
        self.info(f"{Bucket}/{Key}")

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """HEAD."""
        with self._request("HEAD"):
            size, modified, _ = self._find(path)
        return {"name": _key(path), "size": size, "type": "file", "mtime": modified}

    def modified(self, path: str) -> datetime:
        return datetime.fromtimestamp(self.info(path)["mtime"], UTC)

    def find(self, path: str, prefix: str = "", **options: Any) -> list[str]:
        """LIST: a request for each LISTED_KEYS."""
        with self._request("LIST", 0):
            start = f"{_key(path)}/{prefix}"
            asked = self._rows.execute("SELECT path FROM objects WHERE path >= ? AND path < ?", _from(start))
            found = [str(row[0]) for row in asked]
            self.requests["LIST"] += max(1, math.ceil(len(found) / LISTED_KEYS))
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> Sequence[Any]:
        """LIST of what lies directly below `path`."""
        below = f"{_key(path)}/"
        with self._request("LIST", 0):
            asked = self._rows.execute("SELECT path, bytes FROM objects WHERE path >= ? AND path < ?", _from(below))
            entries: dict[str, dict[str, Any]] = {}
            for name, size in asked:
                first, _, rest = name.removeprefix(below).partition("/")
                kind = "directory" if rest else "file"
                entries.setdefault(first, {"name": below + first, "size": 0 if rest else size, "type": kind})
            self.requests["LIST"] += max(1, math.ceil(len(entries) / LISTED_KEYS))
        if not entries:
            raise FileNotFoundError(path)
        return list(entries.values()) if detail else [entry["name"] for entry in entries.values()]

    def rm_file(self, path: str) -> None:
        """DELETE."""
        with self._request("DELETE"):
            self._find(path)
            self._rows.execute("DELETE FROM objects WHERE path = ?", (_key(path),))


def _is_hole(path: str) -> bool:
    """Whether nothing was ever written into a file that has a size."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    finally:
        os.close(descriptor)
    return False


def _key(path: str) -> str:
    return re.sub(rf"^{PROTOCOL}://", "", path).strip("/")


def _from(start: str) -> tuple[str, str]:
    """Where a listing of all paths with this beginning starts and ends."""
    return start, f"{start}\U0010ffff"


fsspec.register_implementation(PROTOCOL, SimulatedObjects, clobber=True)
