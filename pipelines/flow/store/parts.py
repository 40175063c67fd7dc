"""Committed parts, as they lie in a store: their records and their files."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pipelines.flow.fingerprint import sha256_of_file
from pipelines.flow.store.artifact import PartRecord, unseal
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.layout import RECORD_NAME, file_path, part_below, part_folder, parts_folder, record_path
from x2vlm.errors import CorruptArtifact

REMOTE_CALLS = 16  # at a time
FEW_PARTS = 16  # up to so many parts are asked for one by one, more by one listing
MANY_PARTS = 8192  # from so many on, a listing for each beginning of a fingerprint
BATCH = 4096  # parts that wait for a thread at a time

T = TypeVar("T")
R = TypeVar("R")


def read_part(blobs: Blobs, stage: str, fingerprint: str) -> PartRecord | None:
    """The record of a committed part, or None; CorruptArtifact if its seal is broken or it is another part's."""
    path = record_path(stage, fingerprint)
    data = blobs.read(path)
    if data is None:
        return None
    record, _ = unseal(PartRecord, data, blobs.uri_of(path))
    if (record.stage, record.fingerprint) != (stage, fingerprint):
        where = blobs.uri_of(part_folder(stage, fingerprint))
        raise CorruptArtifact(
            f"{blobs.uri_of(path)}: holds part {record.stage}/{record.fingerprint}; delete {where} and rerun"
        )
    return record


def read_parts(blobs: Blobs, stage: str, fingerprints: Collection[str]) -> dict[str, PartRecord]:
    """Records by fingerprint of those that are committed; errors as in `read_part`. One request a part."""
    records = _at_a_time(blobs, lambda fp: read_part(blobs, stage, fp), fingerprints)
    return {fp: record for fp, record in zip(fingerprints, records, strict=True) if record is not None}


def committed(blobs: Blobs, stage: str, fingerprints: Collection[str]) -> set[str]:
    """Those of `fingerprints` that are committed.

    A remote store is asked for a few one by one, for more by a listing of the stage (a request for 1,000 files of it),
    and for many by listings of the folders that their fingerprints begin with, several at a time: then no more than a
    256th of a large stage is in memory for each.
    """
    if blobs.local_root is not None:
        root = blobs.uri_of(parts_folder(stage))
        return {fp for fp in fingerprints if os.path.isfile(f"{part_below(root, fp)}/{RECORD_NAME}")}
    paths = {record_path(stage, fp): fp for fp in fingerprints}
    if len(paths) <= FEW_PARTS:
        return {fp for path, fp in paths.items() if blobs.exists(path)}
    folders = [parts_folder(stage)]
    if len(paths) >= MANY_PARTS:
        folders = sorted({path.rsplit("/", 2)[0] for path in paths})
    found = _at_a_time(blobs, lambda folder: [path for path in blobs.find(folder) if path in paths], folders)
    return {paths[path] for listed in found for path in listed}


def _at_a_time(blobs: Blobs, call: Callable[[T], R], values: Collection[T]) -> Iterator[R]:
    """The results of `call` in order: for a remote store REMOTE_CALLS at a time."""
    if blobs.local_root is not None:
        yield from map(call, values)
        return
    rest = iter(values)
    with ThreadPoolExecutor(REMOTE_CALLS) as pool:
        while batch := list(islice(rest, BATCH)):
            yield from pool.map(call, batch)


def verify_files(blobs: Blobs, record: PartRecord) -> None:
    """CorruptArtifact unless every file of a part has the bytes its record names."""
    for file in record.files:
        relative = file_path(record, file)
        uri = blobs.uri_of(relative)
        try:
            if blobs.local_root is not None:
                found, _ = sha256_of_file(Path(uri))
            else:
                digest = hashlib.sha256()
                for piece in blobs.objects.stream(blobs.path_of(relative), file.bytes):
                    digest.update(piece)
                found = digest.hexdigest()
        except FileNotFoundError:
            found = "nothing"
        if found != file.sha256:
            raise CorruptArtifact(f"{uri}: sha256 is {found}, recorded was {file.sha256}")
