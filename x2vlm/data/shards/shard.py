"""Training shards: a file of payloads (see `media_files`) and a Parquet index that finds each without a scan.

The index is the same for both kinds of file but for its name (`shard-00000.parquet` beside `shard-00000.tar`,
`_shard-00000.index` beside `shard-00000.media.parquet`), and so is the reader: it seeks to the bytes that the index
names, in key order or any other.
"""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from x2vlm.data.shards.media_files import PARQUET_SUFFIX, Payload, index_name, write_parquet, write_tar
from x2vlm.errors import CorruptArtifact
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


def write_shard(path: Path, rows: pa.Table, payload_of: Payload) -> pa.Table:
    """The index of the shard written to `path`, a .tar or a .media.parquet; the index itself is written beside it.

    `rows` has SCORED_SCHEMA with distinct keys, in any order; the index has them by key. InvalidSample for rows that
    come twice, have no media, or media of a format that shards do not know.
    """
    rows = rows.select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA).sort_by("key")
    locations = (write_parquet if path.name.endswith(PARQUET_SUFFIX) else write_tar)(path, rows, payload_of)
    columns = [
        *rows.columns,
        pa.array([location.offset for location in locations], pa.int64()),
        pa.array([location.bytes for location in locations], pa.int64()),
        pa.array([location.sha256 for location in locations], pa.string()),
    ]
    index = pa.Table.from_arrays(columns, schema=SHARD_SCHEMA)
    write_table(index, index_path(path))
    return index


def index_path(path: Path) -> Path:
    """Where the index of the shard at `path` lies."""
    return path.with_name(index_name(path.name))


class OpenableFile(Protocol):
    """A path, or a file that is fetched when it is opened (`x2vlm.data.loading.shard_cache.CachedFile`)."""

    def open(self, mode: Literal["rb"], /) -> io.BufferedReader: ...


class PayloadFile:
    """The file of a shard's payloads, read by seeking, each payload checked against its sha256.

    Cheap to pickle and safe to use after a fork: it is opened when it is first read, once per process.
    """

    def __init__(self, path: OpenableFile) -> None:
        self.path = path
        self._stream: io.BufferedReader | None = None
        self._stream_pid = 0

    def read(self, key: str, offset: int, size: int, sha256: str) -> bytes:
        """The bytes at `offset`; CorruptArtifact if they are not what the index recorded for `key`."""
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


class ShardReader:
    """Random access to one shard: samples from its index, payloads by seeking.

    Training reads less of a shard, and faster: `x2vlm.data.shards.rows.ShardRows`.
    """

    def __init__(self, path: Path, index: Path | None = None) -> None:
        self.path = path
        self.table = read_index(index or index_path(path))
        self._payloads = PayloadFile(path)

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
        return self._payloads.read(key, offset, size, sha256)

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
        self._payloads.close()


def read_index(path: OpenableFile, columns: Sequence[str] | None = None) -> pa.Table:
    """The index of a shard, or some columns of it (leaves as Parquet names them: `media.width`).

    CorruptArtifact if the file is missing or not an index.
    """
    try:
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            table = file.read(columns=None if columns is None else list(columns), use_threads=False)
    except FileNotFoundError:
        raise CorruptArtifact(f"{path}: the shard's index is missing; rerun the pack stage") from None
    except pa.ArrowInvalid as error:
        raise CorruptArtifact(f"{path}: not a Parquet index ({error}); rerun the pack stage") from None
    wanted = SHARD_SCHEMA.names if columns is None else dict.fromkeys(name.split(".")[0] for name in columns)
    if missing := [name for name in wanted if name not in table.column_names]:
        raise CorruptArtifact(f"{path}: not a shard index, it lacks {', '.join(missing)}; rerun the pack stage")
    return table
