"""Objects of a remote store by path, each call one request where the protocol allows it, tried again while it fails.

fsspec's convenience asks S3 for more than is needed: before a whole object is read a HEAD asks for its size, and the
prefix of an object that is not there is listed, in case it is a folder. Over 130,000 parts these requests are most of
the bill, so the calls here avoid them:

    read, read_range, a piece of stream    1 GET; of an object that is not there too
    write, create                          1 PUT; a create that finds something, and one GET to see whose it is
    upload                                 1 PUT; from 100 MiB on S3's multipart upload
    exists, modified                       1 HEAD
    find                                   1 LIST per 1,000 keys
    delete                                 1 DELETE

Stores other than S3 (GCS, memory) are asked as fsspec does.
"""

import errno
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from x2vlm.stores.calls import RETRY_SECONDS, answer_of, retrying

log = logging.getLogger(__name__)

T = TypeVar("T")

PIECE_BYTES = 64 << 20  # of one GET of a stream
RERUN = "rerun the same command: what was committed stays"
# Filesystems whose `mode="create"` fails if the object exists, decided by the server (or, in memory, under our lock).
EXCLUSIVE_CREATE = {"s3", "s3a", "gs", "gcs", "memory"}
_memory_lock = threading.Lock()


class Objects:
    """The objects of an fsspec file system that is not local; paths are as it wants them.

    A call fails with StoreUnavailable once its transport has failed for `retry_seconds`, with FileNotFoundError where
    there is no such object, and with PermissionError and the like as the store answers.
    """

    def __init__(self, fs: Any, retry_seconds: float = RETRY_SECONDS) -> None:
        self.fs, self.retry_seconds = fs, retry_seconds
        self.protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        self.is_s3 = "s3" in self.protocols

    def call(self, call: Callable[[], T], what: str) -> T:
        """The result of `call`, tried again while it fails in transport; it must bear being repeated."""
        return retrying(call, what, self.retry_seconds, remedy=RERUN)

    def read(self, path: str) -> bytes:
        """The bytes of an object."""
        options = {"max_concurrency": 1} if self.is_s3 else {}  # several at a time would need its size first
        return self.call(lambda: bytes(self.fs.cat_file(path, **options)), f"read {path}")

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on; empty where the object is shorter."""

        def ranged() -> bytes:
            if length <= 0:
                return b""
            if not self.is_s3:
                end = min(start + length, int(self.fs.size(path)))
                return bytes(self.fs.cat_file(path, start=start, end=end)) if end > start else b""
            try:
                return bytes(self.fs.cat_file(path, start=start, end=start + length))
            except OSError as error:
                if answer_of(error)[0] == 416:  # nothing there from `start` on
                    return b""
                raise

        return self.call(ranged, f"read {path}")

    def stream(self, path: str, num_bytes: int) -> Iterator[bytes]:
        """The bytes of an object that should have `num_bytes`, in pieces of at most PIECE_BYTES (+ 1).

        Nothing asks for its size: of a longer object one byte too many comes, of a shorter one fewer, and a hash or a
        sum tells.
        """
        for start in range(0, max(num_bytes, 1), PIECE_BYTES):
            is_last = start + PIECE_BYTES >= num_bytes
            piece = self.read_range(path, start, num_bytes + 1 - start if is_last else PIECE_BYTES)
            yield piece
            if len(piece) < PIECE_BYTES:
                return

    def write(self, path: str, data: bytes) -> None:
        """Replace an object whole."""
        self.call(lambda: self.fs.pipe_file(path, data), f"write {path}")

    def create(self, path: str, data: bytes) -> bool:
        """Write an object unless it is there; False, leaving it alone, if another one is.

        True also if the very bytes are there already: an earlier try had written them, and its answer was lost.
        """
        if not self.protocols & EXCLUSIVE_CREATE:
            log.warning("event=no_exclusive_create protocol=%s path=%s", self.fs.protocol, path)
            return self._create_if_not_seen(path, data)
        try:
            if self._created(path, data):
                return True
        except NotImplementedError:
            log.warning("event=no_exclusive_create protocol=%s path=%s", self.fs.protocol, path)
            return self._create_if_not_seen(path, data)
        try:
            return self.read(path) == data
        except FileNotFoundError:  # removed since
            return False

    def _created(self, path: str, data: bytes) -> bool:
        def put() -> bool:
            try:
                if "memory" in self.protocols:
                    with _memory_lock:
                        return self._create_if_not_seen(path, data)
                self.fs.pipe_file(path, data, mode="create")
                return True
            except FileExistsError:
                return False
            except OSError as error:
                answer = f"{error} {error.__cause__}"
                if "PreconditionFailed" in answer or "pre-conditions" in answer:
                    return False
                if "NotImplemented" in answer:
                    raise NotImplementedError(answer) from error
                raise  # 409, another conditional write is under way, too: the server asks to try again

        return self.call(put, f"create {path}")

    def _create_if_not_seen(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        self.write(path, data)
        return True

    def upload(self, local: Path, path: str) -> None:
        """Copy a local file."""

        def put() -> None:
            try:
                self.fs.put_file(str(local), path)
            except FileNotFoundError as error:
                if answer_of(error)[1] != "NoSuchUpload":
                    raise
                # Many pieces were put together and the answer was lost, or somebody cleaned up: start over.
                raise OSError(errno.EBUSY, f"{path}: the store forgot an upload in pieces") from error

        self.call(put, f"write {path}")

    def exists(self, path: str) -> bool:
        """Whether there is an object (on S3: no folder) at `path`."""

        def look() -> bool:
            if not self.is_s3:
                return bool(self.fs.exists(path))
            bucket, key, _ = self.fs.split_path(path)
            try:
                self.fs.call_s3("head_object", Bucket=bucket, Key=key)
            except FileNotFoundError:
                return False
            return True

        return self.call(look, f"look for {path}")

    def modified(self, path: str) -> float:
        """When an object was written, by the store's clock, in seconds since 1970."""
        return self.call(lambda: float(self.fs.modified(path).timestamp()), f"look at {path}")

    def find(self, folder: str) -> list[str]:
        """Paths of all objects below a folder; empty if there is none."""

        def listed() -> list[str]:
            try:
                parent, _, name = folder.rpartition("/")
                if self.is_s3 and parent:  # without a prefix s3fs looks further where it finds nothing
                    return [str(path) for path in self.fs.find(parent, prefix=f"{name}/")]
                return [str(path) for path in self.fs.find(folder)]
            except FileNotFoundError:
                return []

        return self.call(listed, f"list {folder}")

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly below a folder, sorted; empty if there is none."""

        def listed() -> list[str]:
            try:
                entries = self.fs.ls(folder, detail=True)
            except FileNotFoundError:
                return []
            return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if _is_folder(entry))

        return self.call(listed, f"list {folder}")

    def delete(self, path: str) -> None:
        """Remove an object; nothing happens if it is not there."""

        def remove() -> None:
            try:
                self.fs.rm_file(path)
            except FileNotFoundError:
                return

        self.call(remove, f"remove {path}")


def _is_folder(entry: Any) -> bool:
    return bool(entry["type"] == "directory")
