"""Parquet files with the bytes of images or clips in a column: what img2dataset writes with output_format=parquet, and
Hugging Face's data sets (a struct of `bytes` and `path`)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.data.readers.own.files import media_kind
from x2vlm.samples import MediaKind

BATCH_ROWS = 32  # of media in memory at a time
PREFERRED = ("image", "img", "video", "clip", "mp4", "webm", "jpg", "jpeg", "png", "webp", "bytes", "content", "data")


class PayloadColumn(NamedTuple):
    """The column that holds the media, whether it is a struct with the bytes inside, and what they are."""

    name: str
    is_struct: bool
    kind: MediaKind


def payload_column(schema: pa.Schema, wanted: str = "") -> PayloadColumn | None:
    """The column with media: `wanted`, or one of the usual names, or the first that holds bytes; None if none does."""
    found = [field for field in schema if _is_bytes(field.type) or _is_media_struct(field.type)]
    order = {name: place for place, name in enumerate(PREFERRED)}
    found.sort(key=lambda field: (field.name != wanted, order.get(field.name.lower(), len(order))))
    if not found:
        return None
    name = found[0].name.lower()
    kind: MediaKind = "video" if name in ("video", "clip") or media_kind(name) == "video" else "image"
    return PayloadColumn(found[0].name, not _is_bytes(found[0].type), kind)


def read_rows(
    file: pq.ParquetFile, column: PayloadColumn, first: int = 0, last: int | None = None, facts: bool = True
) -> Iterator[tuple[int, Mapping[str, Any], bytes | None]]:
    """(row number, other values, media) of rows `first` to `last`, both included. Row groups outside are not read.

    Raises what pyarrow raises on broken files.
    """
    names = [
        field.name
        for field in file.schema_arrow
        if field.name == column.name or (facts and not _is_bytes(field.type) and not _is_media_struct(field.type))
    ]
    start = 0
    for group in range(file.num_row_groups):
        num_rows = file.metadata.row_group(group).num_rows
        if start + num_rows > first and (last is None or start <= last):
            row = start
            for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=names):
                if row + batch.num_rows > first and (last is None or row <= last):
                    for number, values in enumerate(batch.to_pylist(), start=row):
                        if number >= first and (last is None or number <= last):
                            payload = values.pop(column.name)
                            yield number, values, payload.get("bytes") if column.is_struct and payload else payload
                row += batch.num_rows
        start += num_rows


class BrokenParquet(ValueError):
    """A file that is no Parquet, or not from some place on."""


@contextmanager
def open_parquet(stream: BinaryIO) -> Iterator[pq.ParquetFile]:
    """The file while the block runs; whatever pyarrow says about its content, there or here, is BrokenParquet.

    pyarrow raises OSError for damage too. Those of the disk or bucket pass through as they are.
    """
    watched = _Watched(stream)
    try:
        with pq.ParquetFile(watched, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if watched.error is not None:
            raise watched.error from error
        raise BrokenParquet(f"not readable as Parquet: {error}"[:300]) from error


class _Watched:
    """A stream that remembers the error that reading it gave."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: OSError | None = None
        self.seek, self.tell = stream.seek, stream.tell
        self.closed = False

    def read(self, num_bytes: int = -1) -> bytes:
        try:
            return self._stream.read(num_bytes)
        except OSError as error:
            self.error = error
            raise

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_media_struct(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and any(
        field.name == "bytes" and _is_bytes(field.type) for field in (kind.field(i) for i in range(kind.num_fields))
    )
