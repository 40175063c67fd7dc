"""Media packs: a plain tar of payloads, each stored once, and a Parquet index that finds them by content hash.

Payloads lie in the order in which they are given. Whoever gives them in the order in which they will be read can read
many at once out of a store that is far away (`payload_ranges`).

A reader never parses the tar, so no name, link or header in it can lead anywhere: it reads the byte range that the
index gives and compares the hash.
"""

import hashlib
import os
import tarfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.errors import CorruptArtifact
from x2vlm.samples import write_table

PACK_NAME = "media.tar"
INDEX_NAME = "media.parquet"
HEADER_BYTES = 512  # every member has exactly one: names are short and the ustar format knows no extension headers

PACK_SCHEMA = pa.schema(
    [
        ("sha256", pa.string()),  # of the original bytes; for a clip of a longer video of bytes and range
        ("format", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),  # of the payload in the tar
        ("bytes", pa.int64()),
        ("payload_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class PackEntry:
    """Where a payload lies: a row of PACK_SCHEMA."""

    sha256: str
    format: str
    member: str
    offset: int
    bytes: int
    payload_sha256: str


class Payload(NamedTuple):
    """Bytes to pack: so many from `offset` on in a file, by default all. A hash that is known is not computed again."""

    sha256: str  # of the original
    format: str
    path: Path
    offset: int = 0
    bytes: int | None = None
    payload_sha256: str = ""


def write_media_pack(folder: Path, payloads: Iterable[Payload]) -> list[PackEntry]:
    """What was written to `media.tar` and `media.parquet` in `folder`: of each sha256 the first payload, in order.

    Equal payloads in equal order give equal bytes: owner 0, time 0, mode 0644, regular files. One payload is in memory
    at a time. CorruptArtifact if a file ends before its payload does.
    """
    distinct: dict[str, Payload] = {}
    for payload in payloads:
        distinct.setdefault(payload.sha256, payload)
    entries = []
    with (folder / PACK_NAME).open("wb") as tar, _Ranges() as ranges:
        offset = 0
        for sha256, source in distinct.items():
            data = ranges.read(source)
            member = f"{sha256}.{source.format}"
            tar.write(_tar_header(member, len(data)))
            tar.write(data)
            tar.write(bytes(-len(data) % tarfile.BLOCKSIZE))
            digest = source.payload_sha256 or hashlib.sha256(data).hexdigest()
            entries.append(PackEntry(sha256, source.format, member, offset + HEADER_BYTES, len(data), digest))
            offset = tar.tell()
        end = 2 * tarfile.BLOCKSIZE
        tar.write(bytes(end + -(offset + end) % tarfile.RECORDSIZE))
    rows = [entry.__dict__ for entry in entries]
    write_table(pa.Table.from_pylist(rows, schema=PACK_SCHEMA), folder / INDEX_NAME)
    return entries


def _tar_header(name: str, num_bytes: int) -> bytes:
    """What `tarfile` writes before a member of ours: its own block with name, size and checksum filled in.

    Making it anew costs 40 us a member. ValueError for what a plain header cannot say: a name of more than 100
    characters or a size of 8 GiB.
    """
    size = b"%011o\0" % num_bytes
    block = name.encode("ascii").ljust(100, b"\0") + HEADER_AFTER_NAME[:24] + size + HEADER_AFTER_NAME[36:]
    if len(block) != HEADER_BYTES:
        raise ValueError(f"{name}, {num_bytes} bytes: more than a tar header can hold")
    return block[:148] + b"%06o\0" % sum(block) + block[155:]  # the field itself counts as eight spaces


def _header_after_name() -> bytes:
    """Mode, owner, size, time, checksum and the rest of an ustar header, the checksum blank."""
    member = tarfile.TarInfo("")
    member.mode = 0o644
    block = member.tobuf(tarfile.USTAR_FORMAT)
    return block[100:148] + b" " * 8 + block[156:]


HEADER_AFTER_NAME = _header_after_name()


class _Ranges:
    """Reads payloads out of files, most of which hold many: each is opened once while few are in use."""

    max_files = 64

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}

    def read(self, source: Payload) -> bytes:
        """The bytes of `source`; CorruptArtifact if its file ends before they do."""
        if (stream := self._files.get(source.path)) is None:
            if len(self._files) == self.max_files:
                self._close()
            stream = self._files[source.path] = source.path.open("rb", buffering=0)
        stream.seek(source.offset)
        payload = stream.read() if source.bytes is None else _read_whole(stream, source.bytes)
        if source.bytes not in (None, len(payload)):
            raise CorruptArtifact(
                f"{source.path}: {len(payload)} bytes from {source.offset} on, but the payload of {source.sha256} has "
                f"{source.bytes}; does something else write there? Run the stage again"
            )
        return payload

    def _close(self) -> None:
        for stream in self._files.values():
            stream.close()
        self._files.clear()

    def __enter__(self) -> "_Ranges":
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()


def _read_whole(stream: BinaryIO, num_bytes: int) -> bytes:
    """So many bytes, fewer only at the end of the file: one read may give fewer (Linux: at most 2 GiB)."""
    payload = stream.read(num_bytes)
    while len(payload) < num_bytes and (more := stream.read(num_bytes - len(payload))):
        payload += more
    return payload


class MediaPack:
    """Payloads of one pack by sha256. Holds the index in memory and one open file; safe to share between threads."""

    def __init__(self, tar_path: Path, index_path: Path) -> None:
        try:
            rows: list[dict[str, Any]] = pq.read_table(index_path).cast(PACK_SCHEMA).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptArtifact(f"{index_path}: not an index of a media pack ({error}); rerun `download`") from None
        self._tar_path = tar_path
        self._entries = {row["sha256"]: PackEntry(**row) for row in rows}
        self._descriptor = os.open(tar_path, os.O_RDONLY)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def entry(self, sha256: str) -> PackEntry:
        """Where the payload of `sha256` lies; KeyError if this pack does not have it."""
        return self._entries[sha256]

    def read(self, sha256: str) -> bytes:
        """The payload of `sha256`, verified; KeyError if this pack does not have it, CorruptArtifact if it changed."""
        entry = self._entries[sha256]
        return _verified(os.pread(self._descriptor, entry.bytes, entry.offset), entry, self._tar_path)

    def close(self) -> None:
        """Close the tar; reading afterwards is an error."""
        os.close(self._descriptor)

    def __enter__(self) -> "MediaPack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
        return _verified(stream.read(entry.bytes), entry, pack)


def _verified(payload: bytes, entry: PackEntry, pack: Path) -> bytes:
    if len(payload) != entry.bytes or hashlib.sha256(payload).hexdigest() != entry.payload_sha256:
        raise CorruptArtifact(
            f"{pack}: bytes {entry.offset} to {entry.offset + entry.bytes} are not {entry.member} as the index "
            "describes it; delete this part and rerun `download`"
        )
    return payload
