"""The two kinds of file that hold the payloads of a shard: a WebDataset tar, and a Parquet file with the bytes inside.

Both keep payloads uncompressed, so that one reader finds them by offset and size and knows neither format. Rows come
sorted by key; names come from our keys alone, never from a URL; equal rows give equal bytes everywhere.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.errors import CorruptArtifact, InvalidSample

TAR_SUFFIX, PARQUET_SUFFIX = ".tar", ".media.parquet"
SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp", "gif": "gif", "frames": "frames"}
PAYLOAD = "payload"
GROUP_ROWS, GROUP_BYTES = 64, 32 << 20  # of a row group of a Parquet shard, whichever is reached first
MAX_PAGE_HEADER_BYTES = 4096  # Parquet's are below a hundred

Payload = Callable[[str], bytes]  # from the sha256 of the original media to the stored bytes


@dataclass(frozen=True)
class Location:
    """Where a payload lies in its shard, and the sha256 of its bytes."""

    offset: int
    bytes: int
    sha256: str


def is_media_file(name: str) -> bool:
    """True for the file of a shard that holds its payloads, False for its index and everything else."""
    return name.startswith("shard-") and name.endswith((TAR_SUFFIX, PARQUET_SUFFIX))


def index_name(name: str) -> str:
    """File name of the index of the shard whose payloads are in the file `name`."""
    return name.removesuffix(PARQUET_SUFFIX).removesuffix(TAR_SUFFIX) + ".parquet"


def write_tar(path: Path, rows: pa.Table, payload_of: Payload) -> list[Location]:
    """A USTAR tar of `<key>.<suffix>` and `<key>.json` per row, with fixed headers (mtime, uid and gid 0, mode 644)."""
    locations = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in _rows(rows):
            payload = payload_of(_media(row)["sha256"])
            offset = _add_member(tar, payload_name(row), payload)
            locations.append(Location(offset, len(payload), hashlib.sha256(payload).hexdigest()))
            _add_member(tar, f"{row['key']}.json", _json_bytes(row))
    return locations


def write_parquet(path: Path, rows: pa.Table, payload_of: Payload) -> list[Location]:
    """A Parquet file of all columns of `rows` and the column `payload`; one row group is in memory at a time."""
    # Not nullable: nothing but page headers then lies between one value and the next.
    schema = rows.schema.append(pa.field(PAYLOAD, pa.binary(), nullable=False))
    others = [name for name in _leaf_columns(schema) if name != PAYLOAD]
    payloads: list[bytes] = []
    groups: list[list[tuple[int, str]]] = []
    with pq.ParquetWriter(
        path,
        schema,
        compression={**dict.fromkeys(others, "zstd"), PAYLOAD: "none"},
        use_dictionary=others,
        column_encoding={PAYLOAD: "PLAIN"},
        write_statistics=others,
    ) as writer:
        for number, row in enumerate(_rows(rows), start=1):
            payload_name(row)  # refuses formats that no reader knows
            payloads.append(payload_of(_media(row)["sha256"]))
            if len(payloads) == GROUP_ROWS or sum(map(len, payloads)) >= GROUP_BYTES or number == rows.num_rows:
                group = rows.slice(number - len(payloads), len(payloads))
                columns = [*group.columns, pa.array(payloads, pa.binary())]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=len(payloads))
                groups.append([(len(payload), hashlib.sha256(payload).hexdigest()) for payload in payloads])
                payloads = []
    return list(_find_payloads(path, groups))


def _leaf_columns(schema: pa.Schema) -> list[str]:
    """Dotted paths of the leaves, as Parquet names them."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    file_schema = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [file_schema.column(index).path for index in range(len(file_schema))]


def _find_payloads(path: Path, groups: Sequence[Sequence[tuple[int, str]]]) -> Iterator[Location]:
    """Where each (size, sha256) lies: values follow one another, each after its length, with page headers between."""
    metadata = pq.read_metadata(path)
    with path.open("rb") as stream:
        for number, group in enumerate(groups):
            chunk = metadata.row_group(number).column(metadata.num_columns - 1)
            stream.seek(chunk.data_page_offset)
            data = stream.read(chunk.total_compressed_size)
            position = 0
            for size, sha256 in group:
                position = _value_at(data, position, size, sha256, path)
                yield Location(chunk.data_page_offset + position, size, sha256)
                position += size


def _value_at(data: bytes, position: int, size: int, sha256: str, path: Path) -> int:
    """The position of the value's first byte, at or behind a page header that starts at `position`."""
    prefix = size.to_bytes(4, "little")
    end = position + MAX_PAGE_HEADER_BYTES
    while (found := data.find(prefix, position, end)) >= 0:
        start = found + len(prefix)
        if hashlib.sha256(data[start : start + size]).hexdigest() == sha256:
            return start
        position = found + 1
    raise CorruptArtifact(f"{path}: what was just written cannot be found in it; this is a bug, please report it")


def payload_name(row: Mapping[str, Any]) -> str:
    """The tar member that holds a row's pixels; InvalidSample for a stored format that shards do not know."""
    stored = _media(row)["format"]
    if stored not in SUFFIXES:
        raise InvalidSample("unknown_media_format", f"{row['key']}: {stored!r} is none of {', '.join(SUFFIXES)}")
    return f"{row['key']}.{SUFFIXES[stored]}"


def _rows(rows: pa.Table) -> Iterator[dict[str, Any]]:
    previous = ""
    for batch in rows.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            if row["key"] == previous:
                raise InvalidSample("duplicate_key", f"{row['key']} comes twice in one shard")
            previous = row["key"]
            yield row


def _media(row: Mapping[str, Any]) -> Mapping[str, Any]:
    media = row["media"]
    if media is None:
        raise InvalidSample("missing_media", f"{row['key']} of {row['source']} has no media; run download first")
    return media  # type: ignore[no-any-return]


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member with fixed header fields; gives the offset of its first data byte."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644  # mtime, uid and gid are 0, owner names empty: TarInfo's own defaults
    start = tar.offset + tarfile.BLOCKSIZE  # a USTAR header is one block: our names are short and ASCII
    tar.addfile(member, io.BytesIO(data))
    return start


def _json_bytes(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")
