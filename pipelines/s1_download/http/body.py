"""The body of a response: strictly framed, decompressed in pieces, within the memory budget.

`head.py` reads the head. http.client takes a chunk of size -1 as "everything" and a negative Content-Length as none;
here a body that is not framed as in RFC 9112 is refused by name.
"""

import itertools
import mmap
import re
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipelines.s1_download.http.guard import Refusal
from pipelines.s1_download.http.head import Response

CHUNK_BYTES = 64 << 10
UNPACK_BYTES = 256 << 10  # decompressed at most between two checks of the limits
RATIO_FREE_BYTES = 1 << 20  # below this a high compression ratio is harmless
UNBUDGETED_BYTES = 256 << 10  # a body below this needs no budget, as most images of the web
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
MAX_CHUNK_LINE_BYTES = 4096
# A chunk costs 4 us whatever its size: 32 MiB in chunks of one byte would be 20 CPU seconds.
FREE_CHUNKS = 1 << 14
MIN_MEAN_CHUNK_BYTES = 256  # beyond those
UNDONE_CODINGS = frozenset({"gzip", "x-gzip", "deflate"})
# The other content codings of IANA's registry (RFC 9110 18.6): bodies that they name are no media until undone.
OTHER_CODINGS = frozenset({"aes128gcm", "br", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress", "zstd"})
MAX_CODINGS = 2


@dataclass(frozen=True)
class BodyLimits:
    """Limits of one body, compressed and decompressed."""

    max_bytes: int
    max_ratio: float
    cuts_long_bodies: bool = False  # a body is truncated at max_bytes instead of refused


class MemoryBudget:
    """Memory budget for large response bodies of one process: `num_bytes` together, or one larger body alone."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes, self._used = num_bytes, 0
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    def take(self, num_bytes: int, remaining: Callable[[], float]) -> None:
        """Wait until `num_bytes` are available, first come first served; raises what `remaining` raises at its end."""
        waiter = object()
        with self._changed:
            self._queue.append(waiter)
            try:
                while self._queue[0] is not waiter or (self._used and self._used + num_bytes > self._num_bytes):
                    self._changed.wait(remaining())
                self._used += num_bytes
            finally:
                self._queue.remove(waiter)
                self._changed.notify_all()

    def give_back(self, num_bytes: int) -> None:
        """Release what `take` reserved."""
        with self._changed:
            self._used -= num_bytes
            self._changed.notify_all()


def read_body(response: Response, limits: BodyLimits, reserve_memory: Callable[[int], None]) -> bytes:
    """The complete decompressed body; `reserve_memory` is called, at most once, before it becomes large.

    Refusal with rule body_too_large, compression_ratio, truncated_body, encoding_unsupported, bad_response (invalid
    framing or compression) or empty_body.
    """
    announced = announced_length(response)
    if announced is not None and announced > limits.max_bytes and not limits.cuts_long_bodies:
        raise Refusal("body_too_large", f"announces {announced} bytes, at most {limits.max_bytes}")
    codings = content_codings(response)
    if not codings and announced and announced <= min(limits.max_bytes, UNBUDGETED_BYTES):
        body = response.fp.read(announced)  # the code below does the same in pieces, 8 us slower
        if len(body) < announced:
            raise _broken_off(len(body), announced, "bytes")
        response.is_spent = True
        return body
    pieces = _capped(_wire(response, announced), limits)
    for position, coding in enumerate(reversed(codings)):
        pieces = _unpacked(_capped(pieces, limits) if position else pieces, coding, limits)
    most = limits.max_bytes if announced is None or codings else min(announced, limits.max_bytes)
    small: list[bytes] = []
    large: mmap.mmap | None = None
    size = 0
    try:
        for piece in pieces:
            if limits.cuts_long_bodies:
                piece = piece[: limits.max_bytes - size]
            start, size = size, size + len(piece)
            if size > limits.max_bytes:
                raise Refusal("body_too_large", f"more than {limits.max_bytes} bytes")
            if large is None and size > UNBUDGETED_BYTES:
                reserve_memory(most)
                large = _moved(small, most)
            if large is None:
                small.append(piece)
            else:
                large[start:size] = piece
            if limits.cuts_long_bodies and size == limits.max_bytes:
                break
        if not size:
            raise Refusal("empty_body", "0 bytes", response.status)
        return b"".join(small) if large is None else large[:size]
    finally:
        if large is not None:
            large.close()


def _moved(small: list[bytes], num_bytes: int) -> mmap.mmap:
    """Mapped memory for `num_bytes` that begins with the contents of `small`, which is emptied.

    It does not reallocate and is returned to the system at once. A growing bytearray or a list of pieces is not: a
    thread's arena keeps memory it has used, 32 MiB in each of four.
    """
    large = mmap.mmap(-1, num_bytes)
    large.write(b"".join(small))
    small.clear()
    return large


def content_codings(response: Response) -> list[str]:
    """The codings to undo, in the order in which they were applied: at most 2 of gzip and deflate.

    All Content-Encoding lines are one list (RFC 9110 5.3). Words that name no coding (none, utf-8, binary, aws-chunked,
    identity) are skipped: the bytes stay as they are, and the decoder judges them. Refusal with rule
    encoding_unsupported for a registered coding that is not undone here, or for more codings.
    """
    lines = response.headers.get_all("Content-Encoding", [])
    words = [word.partition(";")[0].strip(" \t\"'").lower() for line in lines for word in line.split(",")]
    codings = [word for word in words if word in UNDONE_CODINGS or word in OTHER_CODINGS]
    if len(codings) > MAX_CODINGS or not UNDONE_CODINGS.issuperset(codings):
        raise Refusal("encoding_unsupported", f"content coding {', '.join(codings)}"[:100])
    return codings


def announced_length(response: Response) -> int | None:
    """The length of the body in the head; None if it is chunked or ends with the connection (RFC 9112 6.3).

    Refusal encoding_unsupported for another transfer coding than chunked, bad_response for invalid or contradictory
    lengths. Chunks override a length, as in the RFC.
    """
    if response.status in (204, 304):
        return 0
    lines = response.headers.get_all("Transfer-Encoding", [])
    if lines:
        codings = [word for line in lines if (word := line.strip(" \t,").lower())]
        if codings != ["chunked"]:
            raise Refusal("encoding_unsupported", f"transfer coding {', '.join(codings)}"[:100])
        return None
    lengths = {text.strip() for line in response.headers.get_all("Content-Length", []) for text in line.split(",")}
    if not lengths:
        return None
    length = lengths.pop()
    if lengths or not length.isascii() or not length.isdigit():
        raise Refusal("bad_response", f"Content-Length {', '.join([length, *lengths])}"[:100])
    return int(length[:30])  # int() refuses more than 4,300 digits


def _wire(response: Response, announced: int | None) -> Iterator[bytes]:
    """The body as received, in pieces; Refusal truncated_body if it is incomplete."""
    if response.headers.get("Transfer-Encoding"):
        yield from _chunks(response)
    elif announced is None:
        while piece := response.fp.read(CHUNK_BYTES):
            yield piece
    else:
        yield from _exactly(response, announced, "bytes")
        response.is_spent = True


def _chunks(response: Response) -> Iterator[bytes]:
    num_bytes = 0
    for num_chunks in itertools.count():
        if num_chunks > FREE_CHUNKS + num_bytes // MIN_MEAN_CHUNK_BYTES:
            raise Refusal("bad_response", f"{num_chunks} chunks for {num_bytes} bytes")
        line = response.fp.readline(MAX_CHUNK_LINE_BYTES)
        if not line.endswith(b"\n") and len(line) < MAX_CHUNK_LINE_BYTES:
            raise Refusal("truncated_body", "no last chunk came")
        match = CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise Refusal("bad_response", f"chunk size {line[:40]!r}")
        if (size := int(match[1], 16)) == 0:
            return  # trailers are ignored, and the connection ends here
        num_bytes += size
        yield from _exactly(response, size, "bytes of a chunk")
        if (end := response.fp.readline(3)) not in (b"\r\n", b"\n"):
            raise Refusal("truncated_body" if b"\r\n".startswith(end) else "bad_response", f"a chunk ends with {end!r}")


def _exactly(response: Response, size: int, unit: str) -> Iterator[bytes]:
    left = size
    while left:
        if not (piece := response.fp.read(min(left, CHUNK_BYTES))):
            raise _broken_off(size - left, size, unit)
        left -= len(piece)
        yield piece


def _broken_off(num_came: int, size: int, unit: str) -> Refusal:
    return Refusal("truncated_body", f"{num_came} of {size} {unit} came")


def _capped(pieces: Iterator[bytes], limits: BodyLimits) -> Iterator[bytes]:
    num_bytes = 0
    for piece in pieces:
        num_bytes += len(piece)
        yield piece
        if num_bytes > limits.max_bytes:
            if limits.cuts_long_bodies:
                return
            raise Refusal("body_too_large", f"more than {limits.max_bytes} bytes before they are unpacked")


def _unpacked(pieces: Iterator[bytes], encoding: str, limits: BodyLimits) -> Iterator[bytes]:
    """The decompressed gzip or deflate data; the end of the compressed stream ends the body, whatever follows."""
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16 if "gzip" in encoding else zlib.MAX_WBITS)
    num_packed = num_unpacked = 0
    for packed in pieces:
        num_packed += len(packed)
        while True:
            try:
                data = inflate.decompress(packed, UNPACK_BYTES)
            except zlib.error as error:
                raise Refusal("bad_response", f"{encoding}: {error}") from None
            packed = inflate.unconsumed_tail
            num_unpacked += len(data)
            if num_unpacked > RATIO_FREE_BYTES and num_unpacked > limits.max_ratio * num_packed:
                raise Refusal("compression_ratio", f"{num_packed} bytes unpack to {num_unpacked} or more")
            if data:
                yield data
            if inflate.eof:
                return
            if not packed and len(data) < UNPACK_BYTES:
                break
    if not limits.cuts_long_bodies:
        raise Refusal("truncated_body", "the packed body breaks off")
