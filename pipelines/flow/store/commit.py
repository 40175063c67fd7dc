"""How a part becomes visible: all of it at once, or not at all.

Local store: every file is flushed to disk and hashed, `part.json` is written last, and one rename puts the folder in
place. Object store: files go under a folder of their own attempt, then `part.json` is put if it is absent. Whoever
comes second compares contents and removes their own copy.
"""

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.flow.fingerprint import sha256_of_file, sha256_of_stream
from pipelines.flow.store.artifact import FileRecord, PartRecord, seal
from pipelines.flow.store.blobs import sync_folder
from x2vlm.errors import CorruptArtifact, StageFailed

if TYPE_CHECKING:
    from pipelines.flow.store.store import ScratchWriter, Store

log = logging.getLogger(__name__)

RECORD_NAME = "part.json"
REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EROFS: "the file system is read-only: remount it or choose another store",
    errno.EACCES: "permission denied: make the folder writable or choose another store",
    errno.EPERM: "permission denied: make the folder writable or choose another store",
    errno.ENOTDIR: "a file lies where a folder should be: move it away or choose another store",
    errno.EISDIR: "a folder lies where a file should be: move it away or choose another store",
    errno.EMFILE: "too many open files: raise the limit with `ulimit -n`",
}


def remedy_for(error: OSError) -> str | None:
    """What a user can do about a failed write; None if the error is of another kind."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        return REMEDIES[errno.ENOTDIR]
    return REMEDIES.get(error.errno or 0)


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


def commit_part(
    store: "Store",
    writer: "ScratchWriter",
    record: PartRecord,
    file_rows: Mapping[str, int],
    restore: PartRecord | None,
    verify_existing: bool,
) -> PartRecord:
    """See `Store.commit_part`."""
    folder = store.part_folder(writer.stage, writer.fingerprint)
    try:
        with explained(store.uri_of(folder)):
            store.fault("commit:files_written")
            record = record.model_copy(update={"files": hash_files(writer.path, file_rows)})
            store.fault("commit:files_synced")
            if restore is not None and restore.content_sha256 == record.content_sha256:
                record = restore
            if store.blobs.local_root is not None:
                return _commit_local(store, writer, record, verify_existing)
            return _commit_remote(store, writer, record, verify_existing)
    finally:
        remove_tree(writer.folder)


def hash_files(folder: Path, file_rows: Mapping[str, int]) -> list[FileRecord]:
    """Records of all files below `folder`, sorted by path, each safely on disk; StageFailed for links and the like."""
    records = []
    for path in sorted(folder.rglob("*"), key=lambda p: p.relative_to(folder).as_posix()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise StageFailed(f"the stage wrote {name}, which is no regular file; only files and folders are kept")
        if path.is_dir():
            continue
        if name == RECORD_NAME:
            raise StageFailed(f"the stage wrote {RECORD_NAME}, a name the store keeps for itself; choose another")
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
            digest, size = sha256_of_stream(stream)
        records.append(FileRecord(path=name, bytes=size, sha256=digest, rows=file_rows.get(name)))
    if unknown := set(file_rows) - {file.path for file in records}:
        raise StageFailed(f"the stage counts rows of {sorted(unknown)}, which it did not write")
    return records


def _commit_local(store: "Store", writer: "ScratchWriter", record: PartRecord, verify_existing: bool) -> PartRecord:
    root = store.blobs.local_root
    assert root is not None
    record = record.model_copy(update={"files": [f.model_copy(update={"location": ""}) for f in record.files]})
    with (writer.path / RECORD_NAME).open("xb") as stream:
        stream.write(seal(record)[0])
        stream.flush()
        os.fsync(stream.fileno())
    for folder in [*(path for path in writer.path.rglob("*") if path.is_dir()), writer.path]:
        sync_folder(folder)
    store.fault("commit:record_written")
    final = root / store.part_folder(writer.stage, writer.fingerprint)
    final.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            os.rename(writer.path, final)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        theirs = _existing(store, record, verify_existing)
        if theirs is not None:
            return theirs
        os.rename(final, writer.folder / f"damaged-{uuid.uuid4().hex[:8]}")
    store.fault("commit:renamed")
    sync_folder(final.parent)
    store.fault("commit:done")
    return record


def _commit_remote(store: "Store", writer: "ScratchWriter", record: PartRecord, verify_existing: bool) -> PartRecord:
    blobs, folder = store.blobs, store.part_folder(writer.stage, writer.fingerprint)
    theirs = _existing(store, record, verify_existing)
    if theirs is not None:
        return theirs
    attempt = f"attempt-{uuid.uuid4().hex[:12]}"
    # A restored record already says where its files belong.
    placed = [f if f.location else f.model_copy(update={"location": f"{attempt}/{f.path}"}) for f in record.files]
    record = record.model_copy(update={"files": placed})
    for file in placed:
        blobs.fs.put_file(str(writer.path / file.path), f"{blobs.root}/{folder}/{file.location}")
        store.fault("commit:uploaded")
    store.fault("commit:record_written")
    if not blobs.create(f"{folder}/{RECORD_NAME}", seal(record)[0]):
        theirs = _existing(store, record, verify_existing)
        if theirs is not None:
            blobs.delete_tree(f"{folder}/{attempt}")
            return theirs
        log.warning("event=damaged_part_replaced stage=%s part=%s", record.stage, record.fingerprint)
        blobs.write(f"{folder}/{RECORD_NAME}", seal(record)[0])
    store.fault("commit:done")
    return record


def _existing(store: "Store", ours: PartRecord, verify: bool) -> PartRecord | None:
    """The record of the part that is already there; None if there is none or `verify` finds it damaged."""
    try:
        theirs = store.read_part(ours.stage, ours.fingerprint)
        if theirs is not None and verify:
            verify_files(store, theirs)
    except CorruptArtifact as error:
        if not verify:
            raise
        log.warning("event=damaged_part_replaced stage=%s part=%s error=%s", ours.stage, ours.fingerprint, error)
        return None
    if theirs is not None and theirs.content_sha256 != ours.content_sha256:
        log.warning(
            "event=commit_differs stage=%s part=%s kept=%s ours=%s meaning=%s",
            *(ours.stage, ours.fingerprint, theirs.content_sha256, ours.content_sha256),
            "the stage is not pure here (network or GPU); the first result stays",
        )
    return theirs


def verify_files(store: "Store", record: PartRecord) -> None:
    """CorruptArtifact unless every file of a part has the bytes its record names."""
    for file in record.files:
        uri = store.file_uri(record, file)
        try:
            if store.blobs.local_root is not None:
                found, _ = sha256_of_file(Path(uri))
            else:
                with store.blobs.fs.open(uri, "rb") as stream:
                    found, _ = sha256_of_stream(stream)
        except FileNotFoundError:
            found = "nothing"
        if found != file.sha256:
            raise CorruptArtifact(f"{uri}: sha256 is {found}, recorded was {file.sha256}")
