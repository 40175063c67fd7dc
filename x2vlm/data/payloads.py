"""Stored media bytes by the sha256 of the original, looked for in any number of media packs.

`MediaPack` opens one pack and holds its index; a shard draws on every pack of every source, so here nothing is held but
the entries that the shard needs.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.data.packs import PACK_SCHEMA, PackEntry
from x2vlm.errors import CorruptArtifact


def locate_payloads(index: Path, wanted: Collection[str]) -> dict[str, PackEntry]:
    """Entries of those of `wanted` (sha256 of originals) that the pack with this `media.parquet` holds.

    Memory is bounded by `wanted`, not by the pack. CorruptArtifact if the file is no pack index.
    """
    try:
        table = pq.read_table(index, columns=PACK_SCHEMA.names, filters=[("sha256", "in", sorted(wanted))])
        rows = table.cast(PACK_SCHEMA).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptArtifact(f"{index}: not an index of a media pack ({error}); rerun `download`") from None
    return {row["sha256"]: PackEntry(**row) for row in rows}


def read_payload(pack: Path, entry: PackEntry) -> bytes:
    """The bytes of `entry` in a pack's tar; CorruptArtifact if they are not those that were packed."""
    with pack.open("rb") as stream:
        stream.seek(entry.offset)
        data = stream.read(entry.bytes)
    if hashlib.sha256(data).hexdigest() != entry.payload_sha256:
        raise CorruptArtifact(
            f"{pack}: bytes {entry.offset} to {entry.offset + entry.bytes} are not {entry.member} as its index "
            "describes it; delete this part and rerun `download`"
        )
    return data
