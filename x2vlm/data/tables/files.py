"""Opening tables: plain, gzip or Zstandard, told by their first bytes."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from x2vlm.data.tables.rows import UnreadableTable

GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
READ_ERRORS = (EOFError, OSError, zlib.error, pa.ArrowException)  # of a file that is cut off or damaged
UTF16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file, from its beginning."""
    with path.open("rb") as raw:
        start = raw.read(4)
    if start.startswith(GZIP):
        with gzip.open(path) as unpacked:
            yield cast(BinaryIO, unpacked)
    elif start == ZSTANDARD:
        with (
            pa.OSFile(str(path)) as packed,
            pa.CompressedInputStream(packed, "zstd") as stream,
            io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16) as unpacked_zstd,
        ):
            yield cast(BinaryIO, unpacked_zstd)
    else:
        with path.open("rb") as file:
            yield file


def is_packed(path: Path) -> bool:
    """Whether a file is gzip or Zstandard, so that no slice of it can be read by itself."""
    with path.open("rb") as raw:
        start = raw.read(4)
    return start.startswith(GZIP) or start == ZSTANDARD


@contextmanager
def open_text_bytes(path: Path) -> Iterator[BinaryIO]:
    """As `open_bytes`, behind a byte order mark of UTF-8. UnreadableTable for a file in UTF-16."""
    with open_bytes(path) as file:
        buffered = cast(io.BufferedReader, file)  # gzip's readers have `peek` as well
        start = buffered.peek(3)[:3]
        if start.startswith(UTF16):
            raise UnreadableTable("it is UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE")
        if start == b"\xef\xbb\xbf":
            buffered.read(3)
        yield file
