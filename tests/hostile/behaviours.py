"""What the hostile server can do to a request, by the first word of the path."""

import email.utils
import functools
import gzip
import itertools
import os
import signal
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hostile.payloads import (
    clip,
    gif,
    gif_bomb,
    jpeg,
    jpeg_giant,
    photo,
    png_bomb,
    png_header_bomb,
    transparent_png,
    webp_giant,
    zip_file,
)
from tests.hostile.server import Behaviour, Handler, HostileServer, not_found


def _robots(handler: Handler) -> None:
    if handler.server.robots is None:
        not_found(handler)
    else:
        status, body = handler.server.robots
        handler.answer(body, status, Content_Type="text/plain", Retry_After="0")


def _good(handler: Handler) -> None:
    colour = handler.argument or "teal"
    handler.answer(jpeg(colour=colour))


def _recovers(handler: Handler) -> None:
    """Too many requests at first, fine when asked again."""
    if handler.is_first_time:
        handler.answer(b"", "429 Too Many Requests", Retry_After="0")
    else:
        _good(handler)


def _redirect(handler: Handler, location: str, status: str = "302 Found") -> None:
    handler.answer(b"", status, Location=location)


def _hops(handler: Handler) -> None:
    left = int(handler.argument)
    _redirect(handler, f"/hops/{left - 1}" if left > 1 else "/good")


def _endless(handler: Handler) -> None:
    handler.start(Content_Type="image/jpeg", Transfer_Encoding="chunked")
    handler.send_slowly((b"10000\r\n" + b"\xff" * 65536 + b"\r\n" for _ in itertools.count()), 0)


def _redirect_by_name(handler: Handler) -> None:
    location = handler.server.locations.get(handler.argument.partition("?")[0])
    not_found(handler) if location is None else _redirect(handler, location, "301 Moved Permanently")


def _trickle(handler: Handler) -> None:
    """One byte a second."""
    handler.start(Content_Type="image/jpeg", Content_Length="100000")
    handler.send_slowly((b"\xff" for _ in itertools.count()), 1.0)


def _slow_body(handler: Handler) -> None:
    handler.start(Content_Type="image/jpeg", Content_Length="100000")
    handler.send_slowly((b"\xff" for _ in itertools.count()), 0.05)


def _slow_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.send_slowly((b"X-%d: y\r\n" % index for index in itertools.count()), 0.05)


def _hang(handler: Handler) -> None:
    handler.server.released.wait(60)


def _busy_until(handler: Handler, moment: float) -> None:
    if handler.is_first_time:
        handler.answer(b"", "429 Too Many Requests", Retry_After=email.utils.formatdate(moment, usegmt=True))
    else:
        _good(handler)


def _in_chunks(handler: Handler, body: bytes, *heads: str, size: str = "{:x}", end: bytes = b"0\r\n\r\n") -> None:
    """`body` in chunks of 100 bytes whose sizes are written as `size` says."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: image/jpeg", "Transfer-Encoding: chunked", *heads]
    handler.raw("\r\n".join(lines).encode() + b"\r\n\r\n")
    for start in range(0, len(body), 100):
        piece = body[start : start + 100]
        handler.raw(size.format(len(piece)).encode(), b"\r\n", piece, b"\r\n")
    handler.raw(end)


def _with_heads(handler: Handler, body: bytes, *heads: str) -> None:
    handler.raw("\r\n".join(["HTTP/1.1 200 OK", *heads]).encode() + b"\r\n\r\n", body)


def _reset_at_once(handler: Handler) -> None:
    linger = struct.pack("ii", 1, 0)  # closing now sends RST
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def _raw_deflate(body: bytes) -> bytes:
    pack = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return pack.compress(body) + pack.flush()


@functools.cache
def _packed_zeros(num_bytes: int, wbits: int) -> bytes:
    pack = zlib.compressobj(9, wbits=wbits)
    return b"".join(pack.compress(bytes(1 << 20)) for _ in range(num_bytes >> 20)) + pack.flush()


def _gzip_bomb(handler: Handler) -> None:
    handler.answer(_packed_zeros(24 << 20, zlib.MAX_WBITS | 16), Content_Encoding="gzip")


def _cut_chunk(handler: Handler) -> None:
    handler.start(Content_Type="image/jpeg", Transfer_Encoding="chunked")
    handler.wfile.write(b"400\r\n" + jpeg()[:200])


def _reset(handler: Handler) -> None:
    handler.start(Content_Type="image/jpeg", Content_Length="5000")
    handler.wfile.write(b"\xff\xd8\xff")
    _reset_at_once(handler)


def _many_headers(handler: Handler) -> None:
    handler.start(**{f"X_{index}": "y" for index in range(500)})


def _watch(handler: Handler) -> None:
    """Answer nothing, and note when the client came and when it was gone."""
    handler.server.arrived.set()
    handler.rfile.read()
    handler.server.left.set()


def _kill(handler: Handler) -> None:
    """Kill every download child of this process, as the kernel does when memory runs out; then hang up."""
    for pid in download_children():
        os.kill(pid, signal.SIGKILL)


def _kill_once(handler: Handler) -> None:
    _kill(handler) if handler.is_first_time else _good(handler)


def download_children() -> list[int]:
    """Process ids of the download children of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[1]) == os.getpid() and b"pipelines.s1_download.child.worker" in command:
                found.append(int(entry.name))
    return found


BEHAVIOURS: dict[str, Behaviour] = {
    "robots.txt": _robots,
    "good": _good,
    "photo": lambda h: h.answer(photo(int(h.argument) % 8)),
    "late-good": lambda h: (h.server.released.wait(0.3), _good(h))[1],
    "png-as-jpeg": lambda h: h.answer(transparent_png(), Content_Type="image/jpeg"),
    "weekdays": lambda h: h.answer(b"", "503 Service Unavailable") if h.server.is_down else _good(h),
    "gone": lambda h: h.answer(b"", "410 Gone"),
    "busy": lambda h: h.answer(b"", "429 Too Many Requests", Retry_After="3600"),
    "recovers": _recovers,
    "broken": lambda h: h.answer(b"", "500 Internal Server Error", Retry_After="0"),
    "loop": lambda h: _redirect(h, "/loop"),
    "hops": _hops,
    "to-metadata": lambda h: _redirect(h, "http://169.254.169.254/latest/meta-data"),
    "to-file": lambda h: _redirect(h, "file:///etc/hostname"),
    "to-user": lambda h: _redirect(h, "http://user:secret@example.invalid/"),
    "to": lambda h: _redirect(h, h.argument),
    "no-location": lambda h: h.answer(b"", "302 Found"),
    "drip": _slow_body,
    "header-drip": _slow_headers,
    "hang": _hang,
    "lying-long": lambda h: h.answer(jpeg(), length=100_000),
    "lying-short": lambda h: h.answer(jpeg(), length=200),
    "huge": lambda h: h.answer(jpeg(), length=1 << 40),
    "no-length": lambda h: (h.start(Content_Type="image/jpeg"), h.wfile.write(jpeg()))[0],
    "endless": _endless,
    "cut-chunk": _cut_chunk,
    "bad-chunk": lambda h: (h.start(Transfer_Encoding="chunked"), h.wfile.write(b"zz\r\nhello"))[0],
    "gzip": lambda h: h.answer(gzip.compress(jpeg()), Content_Encoding="gzip"),
    "gzip-bomb": _gzip_bomb,
    "gzip-cut": lambda h: h.answer(gzip.compress(jpeg())[:-20], Content_Encoding="gzip"),
    "gzip-lie": lambda h: h.answer(jpeg(), Content_Encoding="gzip"),
    "brotli": lambda h: h.answer(jpeg(), Content_Encoding="br"),
    "gif-bomb": lambda h: h.answer(gif_bomb(), Content_Type="image/gif"),
    "png-bomb": lambda h: h.answer(png_header_bomb(20_000), Content_Type="image/png"),
    "html": lambda h: h.answer(b"<html>photo unavailable</html>"),
    "svg": lambda h: h.answer(b'<svg xmlns="http://www.w3.org/2000/svg"/>', Content_Type="image/svg+xml"),
    "truncated": lambda h: h.answer(jpeg(640, 480)[:-900]),
    "empty": lambda h: h.answer(b""),
    "no-content": lambda h: h.start("204 No Content"),
    "reset": _reset,
    "hang-up": lambda h: None,
    "not-http": lambda h: h.wfile.write(b"SSH-2.0-OpenSSH_9.0\r\n") and None,
    "many-headers": _many_headers,
    "long-header": lambda h: h.start(X_Long="y" * 70_000),
    "noai": lambda h: h.answer(jpeg(), X_Robots_Tag="noai"),
    "noai-dated": lambda h: h.answer(jpeg(), X_Robots_Tag="noai, unavailable_after: 25 Jun 2030 15:00:00 PST"),
    "noai-other": lambda h: h.answer(jpeg(colour="red"), X_Robots_Tag="otherbot: noai"),
    "noai-us": lambda h: h.answer(jpeg(), X_Robots_Tag="otherbot: nofollow, x2vlm-download: noindex"),
    "noai-garbled": lambda h: h.answer(jpeg(), X_Robots_Tag="noai; noimageai"),
    "usage": lambda h: h.answer(jpeg(), Content_Usage="train-ai=n"),
    "tdm": lambda h: h.answer(jpeg(), tdm_reservation="1"),
    "clip": lambda h: h.answer(clip(25 + len(h.argument)), Content_Type="video/mp4"),
    "watch": _watch,
    "kill": _kill,
    "kill-once": _kill_once,
    # Redirects, by name: see HostileServer.locations.
    "redirect": _redirect_by_name,
    # Slow.
    "trickle": _trickle,
    # Heads.
    "continue": lambda h: h.raw(b"HTTP/1.1 100 Continue\r\n\r\n") or _good(h),
    "continue-forever": lambda h: h.send_slowly((b"HTTP/1.1 100 Continue\r\n\r\n" * 100 for _ in itertools.count()), 0),
    "early-hints": lambda h: h.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n") or _good(h),
    "partial": lambda h: h.answer(jpeg(), "206 Partial Content", Content_Range=f"bytes 0-9/{len(jpeg())}"),
    "not-modified": lambda h: h.start("304 Not Modified"),
    "http-0.9": lambda h: h.raw(jpeg()),
    "http-0.9-text": lambda h: h.raw(b"<html>no head at all</html>"),
    "no-reason": lambda h: h.raw(b"HTTP/1.1 200\r\nContent-Type: image/jpeg\r\n\r\n", jpeg()),
    "status-text": lambda h: h.raw(b"HTTP/1.1 abc OK\r\n\r\n", jpeg()),
    "status-999": lambda h: h.answer(jpeg(), "999 Request Denied"),
    "giant-headers": lambda h: h.start(**{f"X_{index}": "y" * 60_000 for index in range(90)}),
    "header-without-colon": lambda h: _with_heads(h, jpeg(), "Content-Type: image/jpeg", "nonsense", "X: y"),
    "header-bytes": lambda h: h.raw(b"HTTP/1.1 200 OK\r\nX-\xff\x00: \xfe\r\n\r\n", jpeg()),
    # Lengths and chunks.
    "length-negative": lambda h: _with_heads(h, jpeg(), "Content-Length: -5"),
    "length-plus": lambda h: _with_heads(h, jpeg(), f"Content-Length: +{len(jpeg())}"),
    "length-words": lambda h: _with_heads(h, jpeg(), "Content-Length: many"),
    "length-absurd": lambda h: _with_heads(h, jpeg(), f"Content-Length: {'9' * 5000}"),
    "length-zero": lambda h: _with_heads(h, jpeg(), "Content-Length: 0"),
    "lengths-agree": lambda h: _with_heads(h, jpeg(), *[f"Content-Length: {len(jpeg())}"] * 2),
    "lengths-differ": lambda h: _with_heads(h, jpeg(), f"Content-Length: {len(jpeg())}", "Content-Length: 3"),
    "length-and-chunks": lambda h: _in_chunks(h, jpeg(), "Content-Length: 3"),
    "chunks": lambda h: _in_chunks(h, jpeg(), end=b"0;last\r\nX-Trailer: Content-Type: text/html\r\n\r\n"),
    "chunk-extensions": lambda h: _in_chunks(h, jpeg(), size="{:X} ; name=value"),
    "chunk-overflow": lambda h: _in_chunks(h, jpeg(), size="1" + "0" * 16 + "{:x}"),
    "chunk-huge": lambda h: _in_chunks(h, jpeg(), size="7fffffffffffffff"),
    "chunk-negative": lambda h: _in_chunks(h, jpeg(), size="-1"),
    "chunk-hex-mark": lambda h: _in_chunks(h, jpeg(), size="0x{:x}"),
    "chunk-too-long": lambda h: _in_chunks(h, jpeg(), size="32"),  # says 50, sends 100
    "chunk-line-endless": lambda h: _in_chunks(h, jpeg(), size="{:x};" + "y" * 10_000),
    "chunks-without-end": lambda h: _in_chunks(h, jpeg(), end=b""),
    "coding-gzip-chunked": lambda h: _with_heads(h, jpeg(), "Transfer-Encoding: gzip, chunked"),
    "coding-twice": lambda h: _with_heads(h, jpeg(), "Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    # Packed bodies.
    "deflate": lambda h: h.answer(zlib.compress(jpeg()), Content_Encoding="deflate"),
    "deflate-raw": lambda h: h.answer(_raw_deflate(jpeg()), Content_Encoding="deflate"),
    "deflate-bomb": lambda h: h.answer(_packed_zeros(24 << 20, zlib.MAX_WBITS), Content_Encoding="deflate"),
    "gzip-twice": lambda h: h.answer(gzip.compress(gzip.compress(jpeg())), Content_Encoding="gzip, gzip"),
    "gzip-in-gzip": lambda h: h.answer(gzip.compress(gzip.compress(jpeg())), Content_Encoding="gzip"),
    "gzip-junk": lambda h: h.answer(gzip.compress(jpeg()) + b"junk" * 1000, Content_Encoding="gzip"),
    "gzip-nothing": lambda h: h.answer(gzip.compress(b""), Content_Encoding="gzip"),
    "zstd": lambda h: h.answer(jpeg(), Content_Encoding="zstd"),
    # Bodies.
    "hundred-megabytes": lambda h: (h.start(), h.send_slowly((bytes(1 << 20) for _ in range(100)), 0))[1],
    "trailing": lambda h: h.answer(jpeg() + b"trailing bytes" * 100, length=len(jpeg())),
    "second-response": lambda h: h.answer(jpeg() + b"HTTP/1.1 200 OK\r\n\r\nsmuggled", length=len(jpeg())),
    "png-20k": lambda h: h.answer(png_bomb(), Content_Type="image/png"),
    "jpeg-giant": lambda h: h.answer(jpeg_giant()),
    "webp-giant": lambda h: h.answer(webp_giant(), Content_Type="image/webp"),
    "wrong-type": lambda h: h.answer(jpeg(), Content_Type="text/html"),
    "type-garbage": lambda h: h.answer(jpeg(), Content_Type='";;=/'),
    "jpeg-zip": lambda h: h.answer(jpeg() + zip_file()),
    "gif-script": lambda h: h.answer(gif(b"*/=1;alert(1)//")),
    "html-as-jpeg": lambda h: h.answer(b"\xff\xd8\xff\xe0<html><script>alert(1)</script></html>"),
    "png-trailing": lambda h: h.answer(transparent_png() + b"<script>alert(1)</script>", Content_Type="image/png"),
    # Errors that pass, or do not.
    "busy-date": lambda h: _busy_until(h, time.time() - 3600),
    "busy-for-years": lambda h: _busy_until(h, 4e9),
    "busy-absurd": lambda h: h.answer(b"", "429 Too Many Requests", Retry_After="9" * 400),
    "busy-negative": lambda h: h.answer(b"", "429 Too Many Requests", Retry_After="-1"),
    "burst": lambda h: h.answer(b"", "503 Service Unavailable", Retry_After="0") if h.is_first_time else _good(h),
    "reset-at-once": _reset_at_once,
    "reset-once": lambda h: _reset_at_once(h) if h.is_first_time else _good(h),
}


@contextmanager
def hostile_server(address: str = "127.0.0.1", port: int = 0) -> Iterator[HostileServer]:
    """A running HostileServer."""
    server = HostileServer(BEHAVIOURS, address, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
