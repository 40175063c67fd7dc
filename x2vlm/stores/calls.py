"""Calls to an object store, tried again while its transport fails: exponential back-off with full jitter, for a stated
time and a bounded number of tries.

A transport error is every error that another try can mend: refused or reset connections, time-outs, 5xx, throttling.
"Not found", "no permission" and errors of the caller (other answers 4xx) are final and raised at once. Local file
systems are never tried again: their errors (a full disk) last.
"""

import contextlib
import errno
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from x2vlm.errors import StageFailed, X2VLMError

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 900.0
MAX_TRIES = 200  # within that time there are about 95, by the mean of the pauses
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0  # seconds between two tries, at most; in the mean half of it
RESUME_TRAINING = "the same command goes on from the last checkpoint, train_runtime.store_retry_seconds waits longer"
_FINAL = (
    *(FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError),
    *(NotImplementedError, ValueError, TypeError, LookupError, AttributeError, ImportError, MemoryError),
    X2VLMError,
)
# Of this machine's disk, where downloads are written.
_FINAL_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}
# Of botocore, which this module does not import: settings, not transport.
_FINAL_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}
# Answers 4xx that another try can mend, by status and by code: time-outs, conflicts of two writers, throttling; and a
# body that was damaged or cut on its way.
_PASSING_STATUSES = {408, 409, 425, 429}
_PASSING_CODES = {
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "SlowDown",
    "Throttling",
}
_jitter = random.Random()  # the global generator belongs to the training
_last_failure = -float("inf")


class StoreUnavailable(StageFailed):
    """A store did not answer for as long as its calls are tried again."""


def is_final(error: BaseException) -> bool:
    """Whether trying again cannot help."""
    if isinstance(error, OSError) and error.errno in _FINAL_NUMBERS:
        return True
    if not isinstance(error, Exception) or isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES:
        return True
    status, code = answer_of(error)
    return 400 <= status < 500 and status not in _PASSING_STATUSES and code not in _PASSING_CODES


def answer_of(error: BaseException) -> tuple[int, str]:
    """HTTP status and error code that an S3 server answered with; (0, "") for errors that are no answer of one."""
    for one in (error, error.__cause__):  # s3fs translates botocore's errors and keeps them as the cause
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
    return 0, ""


def seconds_since_failure() -> float:
    """Seconds since a store call of this process last failed in transport; infinite if none did."""
    return time.monotonic() - _last_failure


def note_failure() -> None:
    """Record that a store call failed just now, see `seconds_since_failure`."""
    global _last_failure
    _last_failure = time.monotonic()


def retrying(
    call: Callable[[], T],
    what: str,
    seconds: float = RETRY_SECONDS,
    on_failure: Callable[[], None] | None = None,
    remedy: str = RESUME_TRAINING,
) -> T:
    """The result of `call`, tried again while it fails in transport; `on_failure` is called after every such try.

    StoreUnavailable, with `remedy`, once `seconds` have passed since the first try, or after MAX_TRIES. Other errors
    are raised as they are.
    """
    began, pause, num_failures = time.monotonic(), FIRST_PAUSE, 0
    while True:
        try:
            result = call()
        except Exception as error:
            if is_final(error):
                raise
            note_failure()
            if on_failure is not None:
                on_failure()
            num_failures += 1
            passed = time.monotonic() - began
            if passed >= seconds or num_failures >= MAX_TRIES:
                raise StoreUnavailable(
                    f"{what}: the store failed {num_failures} times in {passed:.0f} s, last with "
                    f"{type(error).__name__}: {error}. Check that it is reachable; {remedy}"
                ) from error
            wait = min(_jitter.uniform(0.0, pause), max(0.0, seconds - passed))
            log.warning("store_retry what=%r try=%d seconds=%.1f error=%r", what, num_failures, wait, str(error)[:300])
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if num_failures:
                log.warning("store_answers what=%r after_seconds=%.1f", what, time.monotonic() - began)
            return result


@dataclass
class StoreFiles:
    """The files below one URI. Paths are relative to it; remote calls are tried again for `retry_seconds`.

    `options` are fsspec's. A write replaces a file whole; on a local disk other processes see the old or the new one.
    """

    uri: str
    retry_seconds: float = RETRY_SECONDS
    options: Mapping[str, Any] = field(default_factory=dict)
    on_failure: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self.fs, root = fsspec.core.url_to_fs(self.uri, **self.options)
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Path of a file for the file system."""
        return f"{self.root}/{name}" if name else self.root

    def names(self, folder: str = "") -> list[str]:
        """Names of what lies directly below `folder`, sorted; empty without such a folder."""

        def listed() -> list[str]:
            self.fs.invalidate_cache()
            try:
                return [str(path) for path in self.fs.ls(self.path(folder), detail=False)]
            except FileNotFoundError:
                return []

        found = self.call(listed, f"list {self.path(folder)}")
        own = self.path(folder).rstrip("/").rsplit("/", 1)[-1]
        return sorted({name for path in found if (name := path.rstrip("/").rsplit("/", 1)[-1]) and name != own})

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """The bytes (of the range start..end) of a file, None if it is not there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path = self.path(name)
            return self.call(lambda: bytes(self.fs.cat_file(path, start=start, end=end)), f"read {path}")
        return None

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file."""
        path = self.path(name)
        if self.is_local:
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.tmp")
            temporary.write_bytes(data)
            temporary.replace(target)
            return
        self.call(lambda: self.fs.pipe_file(path, data), f"write {path}")

    def upload(self, local: Path, name: str) -> None:
        """Copy a local file to `name`."""
        path = self.path(name)
        if self.is_local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.call(lambda: self.fs.put_file(str(local), path), f"write {path}")

    def remove(self, name: str) -> None:
        """Remove a file or folder; nothing happens if it is not there."""
        path = self.path(name)
        with contextlib.suppress(FileNotFoundError):
            self.call(lambda: self.fs.rm(path, recursive=True), f"remove {path}")

    def call(self, call: Callable[[], T], what: str) -> T:
        """`call`, tried again if this is not a local disk."""
        return call() if self.is_local else retrying(call, what, self.retry_seconds, self.on_failure)
