"""How a part becomes visible: all of it at once, or not at all.

Local store: every file is flushed to disk and hashed, `part.json` is written last, and one rename puts the folder in
place. Object store: files go under a folder of their own attempt, then `part.json` is put if it is absent. Whoever
comes second compares contents and removes their own copy.
"""

import errno
import logging
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.flow.fingerprint import sha256_of_stream
from pipelines.flow.store.artifact import FileRecord, PartRecord, seal
from pipelines.flow.store.blobs import Blobs, sync_folder
from pipelines.flow.store.layout import RECORD_NAME, part_folder, record_path
from pipelines.flow.store.parts import read_part, verify_files
from pipelines.flow.store.scratch import ScratchWriter, explained, remove_tree
from x2vlm.errors import CorruptArtifact, StageFailed

log = logging.getLogger(__name__)

Fault = Callable[[str], None]


def no_fault(point: str) -> None:
    """What happens at the named step of a write: nothing. Crash tests pass a function that kills the process."""


def commit_part(
    blobs: Blobs,
    fault: Fault,
    writer: ScratchWriter,
    record: PartRecord,
    file_rows: Mapping[str, int],
    restore: PartRecord | None,
    verify_existing: bool,
) -> PartRecord:
    """See `Store.commit_part`."""
    try:
        with explained(blobs.uri_of(part_folder(writer.stage, writer.fingerprint))):
            fault("commit:files_written")
            record = record.model_copy(update={"files": hash_files(writer.path, file_rows)})
            fault("commit:files_synced")
            if restore is not None and restore.content_sha256 == record.content_sha256:
                record = restore
            return commit_record(blobs, fault, writer, record, verify_existing)
    finally:
        remove_tree(writer.folder)


def commit_record(
    blobs: Blobs, fault: Fault, writer: ScratchWriter, record: PartRecord, verify_existing: bool = False
) -> PartRecord:
    """The committed record: `record`, which names the files below `writer.path`, or that of whoever was first."""
    if blobs.local_root is not None:
        return _commit_local(blobs, fault, writer, record, verify_existing)
    return _commit_remote(blobs, fault, writer, record, verify_existing)


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


def _commit_local(
    blobs: Blobs, fault: Fault, writer: ScratchWriter, record: PartRecord, verify_existing: bool
) -> PartRecord:
    root = blobs.local_root
    assert root is not None
    record = record.model_copy(update={"files": [f.model_copy(update={"location": ""}) for f in record.files]})
    with (writer.path / RECORD_NAME).open("xb") as stream:
        stream.write(seal(record)[0])
        stream.flush()
        os.fsync(stream.fileno())
    for folder in [*(path for path in writer.path.rglob("*") if path.is_dir()), writer.path]:
        sync_folder(folder)
    fault("commit:record_written")
    final = root / part_folder(writer.stage, writer.fingerprint)
    final.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            os.rename(writer.path, final)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        theirs = _existing(blobs, record, verify_existing)
        if theirs is not None:
            return theirs
        os.rename(final, writer.folder / f"damaged-{uuid.uuid4().hex[:8]}")
    fault("commit:renamed")
    sync_folder(final.parent)
    fault("commit:done")
    return record


def _commit_remote(
    blobs: Blobs, fault: Fault, writer: ScratchWriter, record: PartRecord, verify_existing: bool
) -> PartRecord:
    folder, target = part_folder(writer.stage, writer.fingerprint), record_path(writer.stage, writer.fingerprint)
    # Nobody looks first: putting the record if it is absent decides. Only a part that is made again on purpose is
    # expected to be there.
    if verify_existing and (theirs := _existing(blobs, record, verify_existing)) is not None:
        return theirs
    attempt = f"attempt-{uuid.uuid4().hex[:12]}"
    # A restored record already says where its files belong.
    placed = [f if f.location else f.model_copy(update={"location": f"{attempt}/{f.path}"}) for f in record.files]
    record = record.model_copy(update={"files": placed})
    for file in placed:
        blobs.upload(writer.path / file.path, f"{folder}/{file.location}")
        fault("commit:uploaded")
    fault("commit:record_written")
    if not blobs.create(target, seal(record)[0]):
        theirs = _existing(blobs, record, verify_existing)
        if theirs is not None:
            for location in sorted({file.location for file in placed} - {file.location for file in theirs.files}):
                blobs.delete(f"{folder}/{location}")
            return theirs
        log.warning("event=damaged_part_replaced stage=%s part=%s", record.stage, record.fingerprint)
        blobs.write(target, seal(record)[0])
    fault("commit:done")
    return record


def _existing(blobs: Blobs, ours: PartRecord, verify: bool) -> PartRecord | None:
    """The record of the part that is already there; None if there is none or `verify` finds it damaged."""
    try:
        theirs = read_part(blobs, ours.stage, ours.fingerprint)
        if theirs is not None and verify:
            verify_files(blobs, theirs)
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
