"""Our parser of HTTP/1.1 responses against h11 and httpcore: the rules by which they refuse, and CPU per response.

    python -m tests.benchmarks.http_parsers [--responses 20000] [--rounds 5] [--piece-bytes 131072] [--only rules|cpu]

All three read from the same socket, so deadlines, rates and byte limits are ours, and all end in our `Headers` and
`read_body`, which limits and decompresses. They differ in the parser of status line, headers, lengths and chunks:

    ours      head.py and body.py
    h11       an h11.Connection fed from the socket
    httpcore  an httpcore.HTTP11Connection, which has an h11.Connection, with the socket as its network stream

`rules` fetches every path of `test_hostile_web.py`, and responses of in-memory tests, and prints those with different
results; "ok" is a body for the decoder. `cpu` feeds responses from memory, interleaved within one process, and prints
user and system microseconds per response: median of the rounds, minimum and maximum. Sending a request is not counted,
except where httpcore requires it.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, cast
from unittest.mock import patch

import h11
import httpcore

from pipelines.s1_download.http import transport
from pipelines.s1_download.http.body import read_body
from pipelines.s1_download.http.connection import READ_BYTES, WatchedSocket
from pipelines.s1_download.http.guard import Policy, Refusal
from pipelines.s1_download.http.head import MAX_HEADERS, MAX_INTERIM_HEADS, MAX_LINE_BYTES, Headers, Response, read_head
from pipelines.s1_download.http.limits import Clock, Limits
from pipelines.s1_download.http.transport import Fetcher, crawler_policy
from tests.hostile.behaviours import BEHAVIOURS, hostile_server
from tests.hostile.server import Handler
from tests.hostile.web_cases import WEB_CASES

MAX_HEAD_BYTES = 256 << 10  # of h11, which has no limit of a line
FRAMES = (b"content-length", b"transfer-encoding")
LINES = (
    b"Date: Mon, 02 Jun 2025 10:00:00 GMT",
    b"Content-Type: image/jpeg",
    b"Connection: keep-alive",
    b"Server: nginx",
    b"Last-Modified: Sat, 04 Jan 2020 08:12:31 GMT",
    b'ETag: "5e1048df-186a0"',
    b"Cache-Control: public, max-age=31536000",
    b"Accept-Ranges: bytes",
    b"Access-Control-Allow-Origin: *",
    b"X-Cache: HIT",
    b"Age: 86400",
)


class Watched(WatchedSocket):
    """Is also read as h11 wants to be fed."""

    def __init__(self, raw: Any, clock: Clock, limits: Limits) -> None:
        super().__init__(raw, clock, limits)
        self.max_body_bytes, self.has_ended = limits.max_bytes, False

    def receive(self) -> bytes:
        """What has come; none at the end."""
        data = self._receive(READ_BYTES)
        self.has_ended = not data
        return data


class Pieces:
    """A body out of whose frame others have taken it, as `read_body` reads one that ends with the connection."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, _num_bytes: int, /) -> bytes:
        return next(self._pieces, b"")

    def readline(self, _limit: int, /) -> bytes:
        raise NotImplementedError


ASKED = h11.Request(method="GET", target="/", headers=[("Host", "any")])  # what h11 must know of a request


def by_h11(watched: Watched) -> Response:
    """`read_head` with h11, its errors under our names as far as they can be told from each other."""
    connection = h11.Connection(h11.CLIENT, MAX_HEAD_BYTES)
    connection.send(ASKED)
    connection.send(h11.EndOfMessage())

    def next_event() -> Any:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(watched.receive())
        return event

    def pieces() -> Iterator[bytes]:
        try:
            while isinstance(event := next_event(), h11.Data):
                yield event.data
        except h11.RemoteProtocolError as error:
            raise _in_body(error, watched) from None

    try:
        for _ in range(MAX_INTERIM_HEADS + 1):
            head = next_event()
            if head.status_code != 100:
                lines, protocol = head.headers.raw_items(), b"HTTP/" + head.http_version
                return _response(watched, protocol, head.status_code, head.reason, lines, pieces())
    except h11.RemoteProtocolError as error:
        began = connection.trailing_data[0][:5]
        if watched.has_ended and b"HTTP/".startswith(began):
            raise Refusal("connection_reset", str(error)) from None
        raise _in_head(error) from None
    raise Refusal("bad_response", "interim responses")


class Network(httpcore.NetworkStream):
    """Our socket as httpcore's. What it sends is on its way already, and its timeouts are not used: ours hold."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._watched.receive()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    def close(self) -> None:
        pass


URL = httpcore.URL("http://any/")
REQUEST = httpcore.Request("GET", URL, headers=[("Host", "any")])


def by_httpcore(watched: Watched) -> Response:
    """`read_head` with httpcore, which passes over interim heads of every status and number."""
    connection = httpcore.HTTP11Connection(URL.origin, Network(watched))
    try:
        answer = connection.handle_request(REQUEST)
    except httpcore.RemoteProtocolError as error:
        if watched.has_ended:
            raise Refusal("connection_reset", str(error)) from None
        raise _in_head(cast(h11.RemoteProtocolError, error.__cause__)) from None

    def pieces() -> Iterator[bytes]:
        try:
            yield from cast(Iterator[bytes], answer.stream)
        except httpcore.RemoteProtocolError as error:
            raise _in_body(error, watched) from None

    protocol, reason = answer.extensions["http_version"], answer.extensions["reason_phrase"]
    return _response(watched, protocol, answer.status, reason, answer.headers, pieces())


def _response(
    watched: Watched,
    protocol: bytes,
    status: int,
    reason: bytes,
    lines: Sequence[tuple[bytes, bytes]],
    pieces: Iterator[bytes],
) -> Response:
    """What both of them read, in the shape of ours and within our limits of a head."""
    if not protocol.startswith(b"HTTP/1."):
        raise Refusal("bad_response", f"protocol {protocol!r}")
    if len(lines) > MAX_HEADERS or any(len(name) + len(value) > MAX_LINE_BYTES for name, value in lines):
        raise Refusal("bad_response", "too many headers, or too long a line")
    kept, frame = [], {}
    for name, value in lines:
        if name.lower() in FRAMES:
            frame[name.lower()] = value
        else:
            kept.append((name.decode("ascii"), value.decode("latin-1")))

    def capped() -> Iterator[bytes]:
        if FRAMES[1] not in frame and int(frame.get(FRAMES[0], 0)) > watched.max_body_bytes:
            raise Refusal("body_too_large", "as announced")
        yield from pieces

    return Response(Pieces(capped()), status, reason.decode("latin-1").strip(), Headers(kept))


def _in_head(error: h11.RemoteProtocolError) -> Refusal:
    return Refusal("encoding_unsupported" if error.error_status_hint == 501 else "bad_response", str(error)[:200])


def _in_body(error: Exception, watched: Watched) -> Refusal:
    return Refusal("truncated_body" if watched.has_ended else "bad_response", str(error)[:200])


SIDES: dict[str, Callable[[Watched], Response]] = {"ours": read_head, "h11": by_h11, "httpcore": by_httpcore}

OK = b"HTTP/1.1 200 OK\r\n"
THREE = b"Content-Length: 3\r\n\r\nabc"
IN_CHUNKS = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MORE_CASES = {
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
    "http-1.10": b"HTTP/1.10 200 OK\r\n" + THREE,
    "http-2": b"HTTP/2.0 200 OK\r\n" + THREE,
    "status-line-blanks": b"HTTP/1.1  200 OK\r\n" + THREE,
    "status-099": b"HTTP/1.1 099 OK\r\n" + THREE,
    "head-breaks-off": OK + b"Conte",
    "name-odd": OK + b"X[0]: y\r\n" + THREE,
    "name-blank": OK + b"X : y\r\n" + THREE,
    "value-return": OK + b"X: y\rz\r\n" + THREE,
    "value-zero": OK + b"X: y\0z\r\n" + THREE,
    "value-bytes": OK + b"X: \xfe\x01\r\n" + THREE,
    "fold": OK + b"X: y\r\n folded\r\n" + THREE,
    "fold-first": OK + b" folded: onto nothing\r\n" + THREE,
    "newlines-bare": (OK + b"X: y\r\n" + THREE).replace(b"\r", b""),
    "error-length": b"HTTP/1.1 404 Not Found\r\nContent-Length: many\r\n\r\n",
    "error-coding": b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: gzip\r\n\r\n",
    "redirect-length": b"HTTP/1.1 302 Found\r\nLocation: /good\r\nContent-Length: many\r\n\r\n",
    "noai-fold": OK + b"X-Robots-Tag: all,\r\n\tnoai\r\n" + THREE,
    "noai-behind-nonsense": OK + b"nonsense\r\nX-Robots-Tag: noai\r\n" + THREE,
    "noai-behind-zero": OK + b"X-Robots-Tag: all\0noai\r\n" + THREE,
    "noai-blank": OK + b"X-Robots-Tag : noai\r\n" + THREE,
    "noai-length": OK + b"X-Robots-Tag: noai\r\nContent-Length: many\r\n\r\nabc",
    "noai-coding": OK + b"X-Robots-Tag: noai\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    "chunk-newlines-bare": IN_CHUNKS + b"3\nabc\n0\n\n",
    "chunk-trailer-odd": IN_CHUNKS + b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n",
    "chunk-trailer-cut": IN_CHUNKS + b"3\r\nabc\r\n0\r\nX: y",
    "chunk-no-size": IN_CHUNKS + b"\r\n3\r\nabc\r\n0\r\n\r\n",
    "chunk-size-17": IN_CHUNKS + b"%017x\r\nabc\r\n0\r\n\r\n" % 3,
}


def _say(data: bytes, handler: Handler) -> None:
    handler.raw(data)


def _say_and_wait(data: bytes, handler: Handler) -> None:
    handler.raw(data)
    handler.server.released.wait(60)


def rules(side: str) -> dict[str, str]:
    """What becomes of every hostile path where `side` reads the answers: a rule, or "ok"."""
    more: dict[str, Callable[[Handler], None]] = {
        name: functools.partial(_say, data) for name, data in MORE_CASES.items()
    }
    more["mail-server"] = functools.partial(_say_and_wait, b"220 mail.example ESMTP\r\n")
    limits = Limits(
        max_bytes=8 << 20,
        total_seconds=8.0,
        rate_grace_seconds=0.5,
        host_connections=64,
        host_requests_per_second=0.0,
        host_max_failures=0,
    )
    with (
        patch.dict(BEHAVIOURS, more),
        hostile_server() as server,
        patch.object(transport, "WatchedSocket", Watched),
        patch.object(transport, "read_head", SIDES[side]),
        ThreadPoolExecutor(16) as pool,
    ):
        policy = crawler_policy("test", "test", ["noai"])
        fetcher = Fetcher(Policy(allowed_endpoints=(server.endpoint,)), limits, policy)
        paths = [*WEB_CASES, *more]
        outcomes = pool.map(lambda path: fetcher.fetch(f"{server.base}/{path}"), paths)
        return {path: outcome.status for path, outcome in zip(paths, outcomes, strict=True)}


def of_length(status: bytes, body: bytes) -> bytes:
    """A response with a Content-Length."""
    return b"\r\n".join([b"HTTP/1.1 " + status, *LINES, b"Content-Length: %d" % len(body), b"", body])


def in_chunks(body: bytes, chunk_bytes: int = 8 << 10) -> bytes:
    """A response in chunks."""
    pieces = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return b"\r\n".join([b"HTTP/1.1 200 OK", *LINES, b"Transfer-Encoding: chunked", b"", chunks + b"0\r\n\r\n"])


class Memory:
    """What a `WatchedSocket` asks of a socket: at most `piece_bytes` at a time, copied as a kernel does."""

    def __init__(self, data: memoryview, piece_bytes: int) -> None:
        self._left, self._piece_bytes = data, piece_bytes

    def settimeout(self, seconds: float) -> None:
        pass

    def recv(self, num_bytes: int) -> bytes:
        size = min(num_bytes, self._piece_bytes)
        data, self._left = bytes(self._left[:size]), self._left[size:]
        return data


def cpu_microseconds(side: str, data: bytes, num_responses: int, piece_bytes: int) -> float:
    """User and system time of reading one response, opt-out check and decoding apart."""
    limits = Limits(total_seconds=1e6)
    clock, body_limits, view, read = Clock(limits), limits.body, memoryview(data), SIDES[side]
    began = time.process_time()
    for _ in range(num_responses):
        watched = Watched(Memory(view, piece_bytes), clock, limits)
        response = read(watched)
        if response.status == 200:
            watched.expect_body()
            body = read_body(response, body_limits, lambda num_bytes: None)
    spent = time.process_time() - began
    assert response.status == 404 or len(body) == 100_000
    return spent / num_responses * 1e6


def print_rules() -> None:
    found = {side: rules(side) for side in SIDES}
    differing = [path for path in found["ours"] if len({found[side][path] for side in SIDES}) > 1]
    print(f"rules: {len(found['ours'])} cases, of which {len(differing)} end differently")
    for path in differing:
        print(f"  {path:24} " + " ".join(f"{side} {found[side][path]:22}" for side in SIDES).rstrip())


def print_cpu(num_responses: int, rounds: int, piece_bytes: int) -> None:
    photo = os.urandom(100_000)
    typical = {
        "Content-Length, 100 kB": of_length(b"200 OK", photo),
        "chunks of 8 KiB, 100 kB": in_chunks(photo),
        "404, 80 bytes": of_length(b"404 Not Found", bytes(80)),
    }
    print(f"cpu: us a response, {rounds} rounds of {num_responses}, {piece_bytes} bytes a read at most")
    for name, data in typical.items():
        spent: dict[str, list[float]] = {side: [] for side in SIDES}
        for side in SIDES:
            cpu_microseconds(side, data, num_responses // 10, piece_bytes)  # one to warm up
        for _ in range(rounds):
            for side, values in spent.items():
                values.append(cpu_microseconds(side, data, num_responses, piece_bytes))
        for side, values in spent.items():
            middle = statistics.median(values)
            ratio = middle / statistics.median(spent["ours"])
            print(f"  {name:24} {side:8} {middle:7.1f} ({min(values):.1f} to {max(values):.1f}), {ratio:.2f} of ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--piece-bytes", type=int, default=READ_BYTES)
    parser.add_argument("--only", choices=["rules", "cpu"])
    options = parser.parse_args()
    print(f"h11 {version('h11')}, httpcore {version('httpcore')}, load average {os.getloadavg()[0]:.2f}")
    if options.only != "cpu":
        print_rules()
    if options.only != "rules":
        print_cpu(options.responses, options.rounds, options.piece_bytes)


if __name__ == "__main__":
    main()
