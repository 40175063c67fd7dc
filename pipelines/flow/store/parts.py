"""Committed parts, as they lie in a store: their records and their files."""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.flow.fingerprint import sha256_of_file, sha256_of_stream
from pipelines.flow.store.artifact import PartRecord, unseal
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.layout import RECORD_NAME, file_path, part_below, part_folder, parts_folder, record_path
from x2vlm.errors import CorruptArtifact

REMOTE_READS = 16  # at a time
FEW_PARTS = 16  # up to so many parts are asked for one by one, more by one listing


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
    """Records by fingerprint of those that are committed; errors as in `read_part`."""
    num_threads = 1 if blobs.local_root is not None else REMOTE_READS
    with ThreadPoolExecutor(num_threads) as pool:
        records = pool.map(lambda fp: read_part(blobs, stage, fp), fingerprints)
        return {fp: record for fp, record in zip(fingerprints, records, strict=True) if record is not None}


def committed(blobs: Blobs, stage: str, fingerprints: Collection[str]) -> set[str]:
    """Those of `fingerprints` that are committed."""
    if blobs.local_root is not None:
        root = blobs.uri_of(parts_folder(stage))
        return {fp for fp in fingerprints if os.path.isfile(f"{part_below(root, fp)}/{RECORD_NAME}")}
    paths = {record_path(stage, fp): fp for fp in fingerprints}
    if len(paths) <= FEW_PARTS:
        return {fp for path, fp in paths.items() if blobs.exists(path)}
    return {paths[path] for path in blobs.find(parts_folder(stage)) if path in paths}


def verify_files(blobs: Blobs, record: PartRecord) -> None:
    """CorruptArtifact unless every file of a part has the bytes its record names."""
    for file in record.files:
        uri = blobs.uri_of(file_path(record, file))
        try:
            if blobs.local_root is not None:
                found, _ = sha256_of_file(Path(uri))
            else:
                with blobs.fs.open(uri, "rb") as stream:
                    found, _ = sha256_of_stream(stream)
        except FileNotFoundError:
            found = "nothing"
        if found != file.sha256:
            raise CorruptArtifact(f"{uri}: sha256 is {found}, recorded was {file.sha256}")
