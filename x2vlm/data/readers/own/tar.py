"""The members of a tar in one pass, without extracting any: where each lies, its hash, and the bytes of small texts.

Nothing in a tar is believed: names, links, sizes and extension headers are untrusted, and no name is ever a path of
this machine. Python's `tarfile` parses the headers.
"""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from x2vlm.data.readers.own.files import CHUNK_BYTES, MAX_TEXT_BYTES, hash_range, is_text, shown
from x2vlm.data.readers.source import Fault

MAX_HEADER_BYTES = 1 << 20  # of an extension header: a name or a table of attributes
BLOCK = tarfile.BLOCKSIZE
# What tarfile was seen to raise on broken headers, beside what a broken gzip stream raises. Other OSErrors come from
# the disk or the bucket and are nobody's tar.
BROKEN = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True)
class TarMember:
    """One entry. `data` are its bytes if it is a text that was asked for; `fault` says why it is not to be used."""

    name: str
    offset: int = 0  # of its bytes in the (unpacked) tar
    size: int = 0
    sha256: str = ""
    data: bytes | None = None
    fault: Fault | None = None


@dataclass(frozen=True)
class Break:
    """Where a tar cannot be read on, and why."""

    offset: int
    reason: str


def scan_tar(raw: BinaryIO, name: str, wants: Callable[[str], str]) -> Iterator[TarMember | Break]:
    """Every member in order; the last item is a Break if the tar does not end as it should.

    `wants` says of a member's name whether its bytes are to be given ("text"), its hash ("media"), or nothing ("").
    Folders are left out. Tars that were written one after the other into a file are read as one.
    """
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if name.lower().endswith("gz") else raw
    capped = _Capped(stream)
    start: int | None = 0
    while start is not None:
        position = start
        try:
            stream.seek(start)
            tar = tarfile.TarFile(fileobj=cast(BinaryIO, capped), mode="r", errors="surrogateescape", encoding="utf-8")
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                position = info.offset
                if not info.isdir():
                    found = _member(stream, info, wants)
                    if isinstance(found, Break):
                        yield found
                        return
                    yield found
                position = tar.offset
            stream.seek(tar.offset)
            block = stream.read(BLOCK)
            if block.strip(b"\0") or len(block) < BLOCK:
                ends = "it ends without the mark of an end" if not block else "what follows is no header of a member"
                yield Break(tar.offset, ends)
                return
            start = _next_tar(stream, tar.offset + BLOCK)
        except BROKEN as error:
            yield Break(position, f"{type(error).__name__}: {error}"[:200])
            return


def _member(stream: BinaryIO, info: tarfile.TarInfo, wants: Callable[[str], str]) -> TarMember | Break:
    name = info.name.removeprefix("./")
    if not is_text(name):
        return TarMember(shown(name), fault=("name_not_utf8", ""))
    if not info.isreg() or info.issparse():
        kind = "a link" if info.islnk() or info.issym() else "a device or pipe" if info.isdev() else "no plain file"
        return TarMember(shown(name), fault=("not_a_plain_file", f"{kind} in a tar is never followed"))
    if name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
        return TarMember(shown(name), fault=("unsafe_name", "the name leads out of the tar"))
    use = wants(name)
    if not use:
        return TarMember(name, info.offset_data, info.size)
    stream.seek(info.offset_data)
    if use == "text":
        if info.size > MAX_TEXT_BYTES:
            return TarMember(name, fault=("text_too_large", f"{info.size} bytes, at most {MAX_TEXT_BYTES} are read"))
        data = _read(stream, info.size)
        return TarMember(name, info.offset_data, info.size, data=data) if len(data) == info.size else _cut(info)
    sha256, num_bytes = hash_range(stream, info.size)
    return TarMember(name, info.offset_data, info.size, sha256) if num_bytes == info.size else _cut(info)


def _cut(info: tarfile.TarInfo) -> Break:
    return Break(info.offset, f"it breaks off inside {shown(info.name)[:100]}")


def _read(stream: BinaryIO, num_bytes: int) -> bytes:
    data = stream.read(num_bytes)
    while len(data) < num_bytes and (more := stream.read(num_bytes - len(data))):
        data += more
    return data


def _next_tar(stream: BinaryIO, offset: int) -> int | None:
    """Where after the zeros at the end of a tar the next one begins, None if nothing more comes."""
    stream.seek(offset)
    while chunk := stream.read(CHUNK_BYTES):
        left = chunk.lstrip(b"\0")
        if left:
            return (offset + len(chunk) - len(left)) // BLOCK * BLOCK
        offset += len(chunk)
    return None


class _Capped:
    """A stream that refuses to be read in pieces larger than any honest header."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell = stream.seek, stream.tell
        self.name = None

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {num_bytes} bytes")
        return self._stream.read(num_bytes)
