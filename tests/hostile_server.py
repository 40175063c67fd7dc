"""A web server on loopback that misbehaves on request: the path of a URL names what goes wrong."""

import functools
import gzip
import itertools
import os
import signal
import socket
import socketserver
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from PIL import Image


def jpeg(width: int = 64, height: int = 48, colour: str = "teal") -> bytes:
    """A small valid JPEG."""
    buffer = BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "JPEG")
    return buffer.getvalue()


@functools.cache
def clip(num_frames: int = 25, rate: int = 10) -> bytes:
    """A small valid video whose frame k is grey, of brightness 4 k."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 2_000_000
        for index in range(num_frames):
            pixels = np.full((48, 64, 3), 4 * index % 256, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def png_header_bomb(edge: int) -> bytes:
    """A valid little PNG whose header announces `edge` x `edge` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    """44 bytes of GIF that announce 65,535 x 65,535 pixels."""
    return (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + b"\0" * 6 + b"," + b"\0" * 9 + b"\x02\x02L\x01\0;"
    )


class HostileServer(socketserver.ThreadingTCPServer):
    """Counts connections and requests per path; `released` ends all endless answers."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: str = "127.0.0.1") -> None:
        super().__init__((address, 0), _Handler)
        self.requests: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.is_down = False  # /weekdays/* answers 503
        self.num_connections = 0
        self.robots: tuple[str, bytes] | None = None  # status line and body of /robots.txt; None: there is none
        self.released = threading.Event()
        self.arrived = threading.Event()  # somebody asked for /watch
        self.left = threading.Event()  # and hung up
        self.lock = threading.Lock()

    @property
    def base(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    @property
    def endpoint(self) -> tuple[str, int]:
        return str(self.server_address[0]), int(self.server_address[1])


@contextmanager
def hostile_server(address: str = "127.0.0.1") -> Iterator[HostileServer]:
    """A running HostileServer."""
    server = HostileServer(address)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


class _Handler(socketserver.StreamRequestHandler):
    server: HostileServer

    def handle(self) -> None:
        with self.server.lock:
            self.server.num_connections += 1
        lines = []
        while (line := self.rfile.readline(65536)) not in (b"\r\n", b""):
            lines.append(line.decode("latin-1").strip())
        if not lines:
            return
        self.path = lines[0].split(" ")[1]
        with self.server.lock:
            self.server.requests[self.path] += 1
            self.server.user_agents |= {line[12:] for line in lines if line.lower().startswith("user-agent: ")}
        name = self.path.lstrip("/").split("/")[0].split("?")[0]
        try:
            BEHAVIOURS.get(name, _not_found)(self)
        except OSError:
            pass  # the client hung up, which is what most of these provoke

    def answer(self, body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> None:
        """Send a whole response; `length` lies about its size."""
        headers = {
            "Content_Type": "image/jpeg",
            "Content_Length": str(len(body) if length is None else length),
        } | headers
        self.start(status, **headers)
        self.wfile.write(body)

    def start(self, status: str = "200 OK", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n")

    def drip(self, payload: Iterator[bytes], seconds: float) -> None:
        """Send piece after piece with a pause between them, until released."""
        for piece in payload:
            self.wfile.write(piece)
            if self.server.released.wait(seconds):
                return

    @property
    def argument(self) -> str:
        return self.path.lstrip("/").partition("/")[2]


def _not_found(handler: _Handler) -> None:
    handler.answer(b"nothing here", "404 Not Found")


def _robots(handler: _Handler) -> None:
    if handler.server.robots is None:
        _not_found(handler)
    else:
        status, body = handler.server.robots
        handler.answer(body, status, Content_Type="text/plain", Retry_After="0")


def _good(handler: _Handler) -> None:
    colour = handler.argument or "teal"
    handler.answer(jpeg(colour=colour))


def _recovers(handler: _Handler) -> None:
    """Too many requests at first, fine when asked again."""
    if handler.server.requests[handler.path] == 1:
        handler.answer(b"", "429 Too Many Requests", Retry_After="0")
    else:
        _good(handler)


def _redirect(handler: _Handler, location: str, status: str = "302 Found") -> None:
    handler.answer(b"", status, Location=location)


def _hops(handler: _Handler) -> None:
    left = int(handler.argument)
    _redirect(handler, f"/hops/{left - 1}" if left > 1 else "/good")


def _endless(handler: _Handler) -> None:
    handler.start(Content_Type="image/jpeg", Transfer_Encoding="chunked")
    handler.drip((b"10000\r\n" + b"\xff" * 65536 + b"\r\n" for _ in itertools.count()), 0)


def _drip(handler: _Handler) -> None:
    handler.start(Content_Type="image/jpeg", Content_Length="100000")
    handler.drip((b"\xff" for _ in itertools.count()), 0.05)


def _header_drip(handler: _Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.drip((b"X-%d: y\r\n" % index for index in itertools.count()), 0.05)


def _hang(handler: _Handler) -> None:
    handler.server.released.wait(60)


def _gzip_bomb(handler: _Handler) -> None:
    body = gzip.compress(b"\0" * (24 << 20))
    handler.answer(body, Content_Encoding="gzip")


def _cut_chunk(handler: _Handler) -> None:
    handler.start(Content_Type="image/jpeg", Transfer_Encoding="chunked")
    handler.wfile.write(b"400\r\n" + jpeg()[:200])


def _reset(handler: _Handler) -> None:
    handler.start(Content_Type="image/jpeg", Content_Length="5000")
    handler.wfile.write(b"\xff\xd8\xff")
    linger = struct.pack("ii", 1, 0)  # closing now sends RST
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.connection.close()


def _many_headers(handler: _Handler) -> None:
    handler.start(**{f"X_{index}": "y" for index in range(500)})


def _watch(handler: _Handler) -> None:
    """Answer nothing, and note when the client came and when it was gone."""
    handler.server.arrived.set()
    handler.rfile.read()
    handler.server.left.set()


def _kill(handler: _Handler) -> None:
    """Kill every download child of this process, as the kernel does when memory runs out; then hang up."""
    for pid in download_children():
        os.kill(pid, signal.SIGKILL)


def _kill_once(handler: _Handler) -> None:
    _kill(handler) if handler.server.requests[handler.path] == 1 else _good(handler)


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
            if int(fields[1]) == os.getpid() and b"pipelines.s1_download.worker" in command:
                found.append(int(entry.name))
    return found


BEHAVIOURS: dict[str, Callable[[_Handler], None]] = {
    "robots.txt": _robots,
    "good": _good,
    "late-good": lambda h: (h.server.released.wait(0.3), _good(h))[1],
    "png-as-jpeg": lambda h: h.answer(_png(), Content_Type="image/jpeg"),
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
    "drip": _drip,
    "header-drip": _header_drip,
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
}


def _png() -> bytes:
    buffer = BytesIO()
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()
