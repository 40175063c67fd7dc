"""Unfinished attempts at parts: folders to write in, which nobody reads, and what to say where writing fails."""

import errno
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.flow.live import Report, no_report
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.identity import Identity, this_process
from pipelines.flow.store.layout import SCRATCH, state_folder
from x2vlm.errors import StageFailed

log = logging.getLogger(__name__)

STALE_SECONDS = 7 * 24 * 3600  # of hosts whose processes cannot be seen from here
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file is larger than may be written: raise the limit with `ulimit -f`",
    errno.EROFS: "the file system is read-only: remount it or choose another store",
    errno.EACCES: "permission denied: make the folder writable or choose another store",
    errno.EPERM: "permission denied: make the folder writable or choose another store",
    errno.ENOTDIR: "a file lies where a folder should be: move it away or choose another store",
    errno.EISDIR: "a folder lies where a file should be: move it away or choose another store",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
}


# Full disks as libraries and other processes tell of them whose errors carry no errno (safetensors, Ray, Arrow).
_BY_WORDS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def remedy_for(error: Exception) -> str | None:
    """What a user can do about a failed write; None if the error is of another kind.

    Errors that came from elsewhere are known by their words: a trainer's full disk comes home as a failed training.
    """
    if isinstance(error, FileExistsError | NotADirectoryError):
        return REMEDIES[errno.ENOTDIR]
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return REMEDIES[error.errno]
    told = str(error)
    if any(remedy in told for remedy in REMEDIES.values()):
        return None  # it says so itself
    code = next((code for code in REMEDIES if code in _BY_WORDS and os.strerror(code) in told), None)
    return None if code is None else REMEDIES[code]


@contextmanager
def explained(where: object) -> Iterator[None]:
    """Turn errors of the disk into StageFailed that names the place and the remedy."""
    try:
        yield
    except OSError as error:
        if (remedy := remedy_for(error)) is None:
            raise
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise StageFailed(
            f"cannot write {where} ({name}): {remedy}, then rerun the same command. Nothing half-written is visible"
        ) from error


def remove_tree(folder: Path) -> None:
    """Remove a folder and all below it; what cannot be removed is logged, since it is only scratch."""

    def complain(_function: object, path: str, _info: object) -> None:
        if os.path.lexists(path):
            log.warning("event=scratch_left path=%s", path)

    if folder.exists():
        shutil.rmtree(folder, onerror=complain)


@dataclass(frozen=True)
class ScratchWriter:
    """One attempt at a part. `path` is an empty local folder; `folder` holds it and is removed after the attempt."""

    blobs: Blobs
    stage: str
    fingerprint: str
    folder: Path
    report: Report = no_report

    @property
    def path(self) -> Path:
        return self.folder / "out"

    @property
    def inputs_path(self) -> Path:
        """Where the reader may keep copies of remote inputs during this attempt."""
        return self.folder / "inputs"

    @property
    def state_uri(self) -> str:
        relative = state_folder(self.stage, self.fingerprint)
        if self.blobs.local_root is not None:
            (self.blobs.local_root / relative).mkdir(parents=True, exist_ok=True)
        return self.blobs.uri_of(relative)


def begin(blobs: Blobs, stage: str, fingerprint: str, report: Report = no_report) -> ScratchWriter:
    """A writer with an empty folder: below `tmp/` of a local store, or of this machine for a remote one."""
    attempt = f"{this_process().token}-{uuid.uuid4().hex[:12]}"
    root = blobs.local_root
    folder = Path(tempfile.gettempdir()) / f"x2vlm-{attempt}" if root is None else root / SCRATCH / attempt
    with explained(f"scratch folder {folder}"):
        (folder / "out").mkdir(parents=True)
        (folder / "inputs").mkdir()
    return ScratchWriter(blobs, stage, fingerprint, folder, report)


def clean(blobs: Blobs) -> int:
    """Number of abandoned attempts removed: those of dead processes of this host, and very old ones of others."""
    root = blobs.local_root
    if root is None or not (root / SCRATCH).is_dir():
        return 0
    removed = 0
    for folder in sorted((root / SCRATCH).iterdir()):
        owner = Identity.from_token(folder.name.rsplit("-", 1)[0])
        alive = None if owner is None else owner.is_alive()
        if alive is None:
            alive = blobs.age_seconds(f"{SCRATCH}/{folder.name}") < STALE_SECONDS
        if not alive:
            remove_tree(folder)
            removed += 1
    if removed:
        log.info("event=scratch_cleaned store=%s attempts=%d", blobs.uri, removed)
    return removed
