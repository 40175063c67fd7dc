"""Segments: many small tables in one file, each of which a part can read, and depend on, alone.

A file of segments is a concatenation of Arrow IPC streams (zstd). Beside it lies `<its name>.segments.parquet`, which
names each segment with its place, its size and its sha256. A `Read` of a segment enters a fingerprint by the segment's
sha256, so a part runs again only when rows of its own have changed, and however many parts read from a file, it is one
file in the store.
"""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.flow.stage import InputFile

SUFFIX = ".segments.parquet"
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.binary(32)),
        ("rows", pa.int64()),
    ]
)


def segments_name(path: str) -> str:
    """Name of the listing of the segments of the file called `path`."""
    return f"{path}{SUFFIX}"


class SegmentWriter:
    """Writes a file of segments and its listing, one table after the other; use it as a context manager.

    Equal tables in equal order give equal bytes. ValueError if a name comes twice. The listing appears on leaving.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("xb")
        self._listed: dict[str, dict[str, object]] = {}
        self._offset = 0

    @property
    def file_rows(self) -> dict[str, int]:
        """Rows by file name, as `PartResult.file_rows` wants them."""
        rows = sum(int(str(one["rows"])) for one in self._listed.values())
        return {self.path.name: rows, segments_name(self.path.name): len(self._listed)}

    def add(self, name: str, table: pa.Table) -> None:
        """Append `table` as the segment `name`."""
        if name in self._listed:
            raise ValueError(f"{self.path.name}: two segments are called {name}")
        data = encode(table)
        self._stream.write(data)
        digest = hashlib.sha256(data).digest()
        entry = {"name": name, "offset": self._offset, "bytes": len(data), "sha256": digest, "rows": table.num_rows}
        self._listed[name] = entry
        self._offset += len(data)

    def __enter__(self) -> "SegmentWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stream.close()
        if kind is None:
            listing = pa.Table.from_pylist(list(self._listed.values()), schema=SCHEMA)
            pq.write_table(listing, self.path.with_name(segments_name(self.path.name)), compression="zstd")


def encode(table: pa.Table) -> bytes:
    """`table` as an Arrow IPC stream of one record batch."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue()


def read_segment(stream: BinaryIO) -> pa.Table:
    """The table of one segment, from a stream of its bytes (`PartReader.open`)."""
    with stream:
        return pa.ipc.open_stream(stream.read()).read_all()


def segments_of(file: InputFile, listing: bytes) -> Mapping[str, InputFile]:
    """The segments of `file` by name, from the bytes of its listing. Their `path` is `<file>#<name>`."""
    table = pq.read_table(pa.BufferReader(listing))
    columns = (table[name].to_pylist() for name in SCHEMA.names)
    return {
        name: InputFile(
            path=f"{file.path}#{name}", bytes=size, sha256=digest.hex(), uri=file.uri, rows=rows, start=offset
        )
        for name, offset, size, digest, rows in zip(*columns, strict=True)
    }
