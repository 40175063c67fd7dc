"""Training shards: a deterministic WebDataset tar with a Parquet index that finds every payload without a scan.

Members lie in key order: `<key>.<jpg|png|webp|gif|frames>`, then `<key>.json`. Names come from our keys alone, never
from a URL. Headers are fixed (USTAR, mtime, uid and gid 0, mode 644), so equal samples give equal bytes everywhere.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from x2vlm.errors import CorruptArtifact, InvalidSample
from x2vlm.samples import SAMPLE_SCHEMA, Sample, samples_of, write_table

# What partition hands to pack: a sample and the score that its threshold was applied to.
SCORED_SCHEMA = SAMPLE_SCHEMA.append(pa.field("clip_score", pa.float32()))

SHARD_SCHEMA = pa.schema(
    [
        *SCORED_SCHEMA,
        pa.field("payload_offset", pa.int64()),
        pa.field("payload_bytes", pa.int64()),
        pa.field("payload_sha256", pa.string()),
    ]
)

SUFFIXES = {"jpeg": "jpg", "png": "png", "webp": "webp", "gif": "gif", "frames": "frames"}

Payload = Callable[[str], bytes]  # from the sha256 of the original media to the stored bytes


def write_shard(path: Path, rows: pa.Table, payload_of: Payload) -> pa.Table:
    """The index of the tar written to `path`; the index itself is written beside it, as `<stem>.parquet`.

    `rows` has SCORED_SCHEMA with distinct keys, in any order. One payload is in memory at a time.
    """
    rows = rows.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA).sort_by("key")
    offsets, sizes, digests = [], [], []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in _rows(rows):
            payload = payload_of(_media(row)["sha256"])
            offsets.append(_add_member(tar, payload_name(row), payload))
            sizes.append(len(payload))
            digests.append(hashlib.sha256(payload).hexdigest())
            _add_member(tar, f"{row['key']}.json", _json_bytes(row))
    columns = [
        *rows.columns,
        pa.array(offsets, pa.int64()),
        pa.array(sizes, pa.int64()),
        pa.array(digests, pa.string()),
    ]
    index = pa.Table.from_arrays(columns, schema=SHARD_SCHEMA)
    write_table(index, index_path(path))
    return index


def index_path(path: Path) -> Path:
    """Where the index of the tar at `path` lies."""
    return path.with_suffix(".parquet")


def payload_name(row: Mapping[str, Any]) -> str:
    """The tar member that holds a row's pixels; InvalidSample for a stored format that shards do not know."""
    stored = _media(row)["format"]
    if stored not in SUFFIXES:
        raise InvalidSample("unknown_media_format", f"{row['key']}: {stored!r} is none of {', '.join(SUFFIXES)}")
    return f"{row['key']}.{SUFFIXES[stored]}"


class ShardReader:
    """Random access to one shard: samples from its index, payloads by seeking, each checked against its sha256.

    Cheap to pickle and safe to use after a fork: the tar is opened when it is first read, once per process.
    """

    def __init__(self, path: Path, index: Path | None = None) -> None:
        self.path = path
        self.table = _read_index(index or index_path(path))
        self._stream: io.BufferedReader | None = None
        self._stream_pid = 0

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def sample(self, row: int) -> Sample:
        """The sample at position `row` of the index (key order)."""
        return samples_of(self.table.slice(row, 1).select(SAMPLE_SCHEMA.names))[0]

    def samples(self) -> Iterator[Sample]:
        """All samples in key order, decoded a thousand at a time."""
        for batch in self.table.select(SAMPLE_SCHEMA.names).to_batches(max_chunksize=1000):
            yield from samples_of(pa.Table.from_batches([batch]))

    def payload(self, row: int) -> bytes:
        """The stored media bytes of position `row`; CorruptArtifact if they are not what the index recorded."""
        names = ("key", "payload_offset", "payload_bytes", "payload_sha256")
        key, offset, size, sha256 = (self.table[name][row].as_py() for name in names)
        stream = self._open()
        stream.seek(offset)
        data = stream.read(size)
        actual = hashlib.sha256(data).hexdigest()
        if actual != sha256:
            raise CorruptArtifact(
                f"{self.path}: the payload of {key} ({size} bytes at {offset}) has sha256 {actual[:12]}…, "
                f"its index says {sha256[:12]}…; delete this shard's part and rerun the pack stage"
            )
        return data

    def row_of(self, key: str) -> int:
        """The position of `key`; KeyError if this shard does not hold it. One pass over the keys."""
        position = int(pc.index(self.table["key"], key).as_py())
        if position < 0:
            raise KeyError(f"{self.path} holds no sample {key}")
        return position

    def verify(self) -> None:
        """Read every payload once; CorruptArtifact names the first that is not what the index recorded."""
        for row in range(len(self)):
            self.payload(row)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}

    def _open(self) -> io.BufferedReader:
        # A file position is shared across a fork: two loader workers would seek under each other.
        if self._stream is None or self._stream_pid != os.getpid():
            try:
                self._stream = self.path.open("rb")
            except FileNotFoundError:
                raise CorruptArtifact(f"{self.path}: the shard is missing; rerun the pack stage") from None
            self._stream_pid = os.getpid()
        return self._stream


def _read_index(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise CorruptArtifact(f"{path}: the shard's index is missing; rerun the pack stage") from None
    except pa.ArrowInvalid as error:
        raise CorruptArtifact(f"{path}: not a Parquet index ({error}); rerun the pack stage") from None
    if missing := [name for name in SHARD_SCHEMA.names if name not in table.column_names]:
        raise CorruptArtifact(f"{path}: not a shard index, it lacks {', '.join(missing)}; rerun the pack stage")
    return table


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
