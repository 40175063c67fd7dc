"""Stored media bytes by the sha256 of the original, taken from media packs (tar + Parquet index) without a scan."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.errors import CorruptArtifact

COLUMNS = ["sha256", "offset", "bytes", "payload_sha256"]


@dataclass(frozen=True)
class Location:
    """Where a payload lies in its pack, and the sha256 that its bytes must have."""

    offset: int
    bytes: int
    payload_sha256: str


def locate_payloads(index: Path, wanted: Collection[str]) -> dict[str, Location]:
    """Locations of those of `wanted` (sha256 of originals) that the pack with this `media.parquet` holds.

    Memory is bounded by `wanted`, not by the pack. CorruptArtifact if the file is no pack index.
    """
    try:
        table = pq.read_table(index, columns=COLUMNS, filters=[("sha256", "in", sorted(wanted))])
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise CorruptArtifact(f"{index}: not the index of a media pack ({error}); rerun the download stage") from None
    return {row.pop("sha256"): Location(**row) for row in table.to_pylist()}


def read_payload(pack: Path, location: Location) -> bytes:
    """The bytes at `location` of a pack's tar; CorruptArtifact if they are not those that were packed."""
    with pack.open("rb") as stream:
        stream.seek(location.offset)
        data = stream.read(location.bytes)
    actual = hashlib.sha256(data).hexdigest()
    if actual != location.payload_sha256:
        raise CorruptArtifact(
            f"{pack}: the {location.bytes} bytes at {location.offset} have sha256 {actual[:12]}…, "
            f"the pack's index says {location.payload_sha256[:12]}…; delete this part and rerun `download`"
        )
    return data
