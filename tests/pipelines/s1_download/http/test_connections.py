"""Connections that stay open: whatever a server does with one, no answer is ever taken for another's.

Bytes that a test sends on a loopback connection lie in the client's queue when the call returns, so nothing here waits.
"""

import contextlib
import functools
import random
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipelines.s1_download.http import connection as connection_module
from pipelines.s1_download.http.connection import Connection, Connections, tls_context
from pipelines.s1_download.http.guard import Policy, parse_target
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.resolver import Memory, Resolver
from pipelines.s1_download.http.transport import Fetcher, crawler_policy
from tests.support.download.certificates import self_signed_certificate

CLOSE = b""  # an answer that says nothing and ends the connection


def ok(body: bytes, *heads: bytes, version: bytes = b"1.1", end: bytes = b"\r\n") -> bytes:
    """A response of known length."""
    lines = [b"HTTP/%b 200 OK" % version, b"Content-Length: %d" % len(body), *heads]
    return end.join([*lines, b"", b""]) + body


def echo(path: str) -> bytes:
    return ok(f"the body of {path}".encode())


@dataclass
class Server:
    """Answers request number `r` on connection number `c` with `answer(c, r, path)`; CLOSE ends the connection."""

    answer: Callable[[int, int, str], bytes]
    context: ssl.SSLContext | None = None
    address: str = "127.0.0.1"
    port: int = 0
    heads: list[tuple[int, str]] = field(default_factory=list)  # connection number and head of every request
    sockets: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Server":
        self._listening = socket.create_server((self.address, self.port), backlog=64)
        self.port = self._listening.getsockname()[1]
        self._start(self._accept)
        return self

    def _start(self, work: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()

    def __exit__(self, *exception: object) -> None:
        for opened in (self._listening, *self.sockets):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it; closing alone does not
            opened.close()
        for thread in self.threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                opened, _ = self._listening.accept()
            except OSError:
                return  # closed
            # Else the kernel may hold back what a hostile server sends early.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sockets.append(opened)
            self._start(functools.partial(self._serve, len(self.sockets) - 1))

    def _serve(self, number: int) -> None:
        opened = self.sockets[number]
        try:
            if self.context:
                opened = self.sockets[number] = self.context.wrap_socket(opened, server_side=True)
            stream = opened.makefile("rb")
            for request in range(1000):
                lines = []
                while (line := stream.readline()) not in (b"\r\n", b""):
                    lines.append(line.decode())
                if not lines:
                    return
                self.heads.append((number, "".join(lines)))
                answer = self.answer(number, request, lines[0].split(" ")[1])
                if answer == CLOSE:
                    opened.shutdown(socket.SHUT_RDWR)
                    return
                opened.sendall(answer)
        except OSError:
            pass  # the client hung up, or the test is over

    @property
    def base(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def asked(self) -> list[tuple[int, str]]:
        """Connection number and path of every request."""
        return [(number, head.split(" ")[1]) for number, head in self.heads]


def fetcher(*servers: Server, resolver: Resolver | None = None, **limits: float) -> Fetcher:
    """A fetcher that tries nothing twice by itself."""
    values = {"total_seconds": 20.0, "retries": 0, "host_requests_per_second": 0.0, **limits}
    policy = Policy(allowed_endpoints=tuple((server.address, server.port) for server in servers))
    return Fetcher(policy, Limits(**values), crawler_policy("ours/1.0", "ours", ["noai"]), resolver)  # type: ignore[arg-type]


def body_at(fetch: Fetcher, url: str) -> str:
    """The body of a URL, or the rule that refused it."""
    outcome = fetch.fetch(url)
    return outcome.status if outcome.body is None else outcome.body.decode()


def test_one_connection_serves_one_request_after_the_other() -> None:
    with Server(lambda _c, _r, path: echo(path)) as server:
        fetch = fetcher(server)
        for path in ("/a", "/b", "/c"):
            assert body_at(fetch, server.base + path) == f"the body of {path}"
        assert server.asked == [(0, "/a"), (0, "/b"), (0, "/c")]
        assert not any("close" in head for _, head in server.heads)
        assert all(f"Host: 127.0.0.1:{server.port}\r\n" in head for _, head in server.heads)


def test_large_bodies_too() -> None:
    sizes = {"/small": 1, "/read": 128 << 10, "/more": 300 << 10, "/most": 5 << 20}
    with Server(lambda _c, _r, path: ok(path[:2].encode() * (sizes[path] // 2 + 1))) as server:
        fetch = fetcher(server)
        for path in sizes:
            assert body_at(fetch, server.base + path) == path[:2] * (sizes[path] // 2 + 1)
        assert {number for number, _ in server.asked} == {0}


@pytest.mark.parametrize(
    "first",
    [
        ok(b"first", b"Connection: close"),
        ok(b"first", b"Connection: Keep-Alive, Close"),
        ok(b"first", b"Connection: keep-alive", b"Connection: close"),
        ok(b"first", version=b"1.0"),
        ok(b"first", b"Connection: keep-alive", version=b"1.0"),
        ok(b"first", version=b"1.9"),
        ok(b"first", end=b"\n"),
        ok(b"first", b"nonsense"),
        ok(b"first", b"X: y", b" folded"),
        ok(b"first", b"X : y"),
        ok(b"first", b"X: y\rContent-Length: 400"),
        ok(b"first", b"Content-Length: 5"),
        ok(b"first", b"Content-Length: 5, 5"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"first"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
    ],
)
def test_what_can_be_read_in_two_ways_ends_its_connection(first: bytes) -> None:
    answers = {"/1": first, "/2": echo("/2")}
    with Server(lambda _c, _r, path: answers[path]) as server:
        fetch = fetcher(server)
        assert body_at(fetch, f"{server.base}/1") in ("first", "encoding_unsupported", "bad_response")
        assert body_at(fetch, f"{server.base}/2") == "the body of /2"
        assert server.asked == [(0, "/1"), (1, "/2")]


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        (ok(b"long", b"X-Robots-Tag: noai"), "opted_out"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", "http_404"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + ok(b"early"), "http_101"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "empty_body"),
        (b"HTTP/1.1 206 Partial\r\nContent-Length: 4\r\n\r\npart", "http_206"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\nfour", "bad_response"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: file:///etc/passwd\r\n\r\n", "scheme_forbidden"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_what_is_refused_ends_its_connection(answer: bytes, rule: str, is_first: bool) -> None:
    with Server(lambda _c, _r, path: answer if path == "/refused" else echo(path)) as server:
        fetch = fetcher(server)
        if not is_first:
            assert body_at(fetch, f"{server.base}/before") == "the body of /before"
        assert body_at(fetch, f"{server.base}/refused") == rule
        assert body_at(fetch, f"{server.base}/after") == "the body of /after"
        assert [number for number, _ in server.asked][-2:] == [0, 1]


INJECTED_RESPONSE = ok(b"smuggled")


@pytest.mark.parametrize(
    "rubbish", [INJECTED_RESPONSE, b"x", b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\0" * 100_000]
)
def test_bytes_behind_a_body_are_no_answer(rubbish: bytes) -> None:
    with Server(lambda c, r, path: echo(path) + (rubbish if c + r == 0 else b"")) as server:
        fetch = fetcher(server)
        for path in ("/a", "/b", "/c"):
            assert body_at(fetch, server.base + path) == f"the body of {path}"
        assert server.asked == [(0, "/a"), (1, "/b"), (1, "/c")]


@pytest.mark.parametrize("rubbish", [INJECTED_RESPONSE, b"x", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
def test_bytes_that_come_while_nobody_asked_are_no_answer(rubbish: bytes) -> None:
    with Server(lambda _c, _r, path: echo(path)) as server:
        fetch = fetcher(server)
        assert body_at(fetch, f"{server.base}/a") == "the body of /a"
        server.sockets[0].sendall(rubbish)
        assert body_at(fetch, f"{server.base}/b") == "the body of /b"
        assert server.asked == [(0, "/a"), (1, "/b")]


def test_a_length_that_lies_is_the_end_of_its_connection() -> None:
    lies = {"/short": ok(b"1234").replace(b"h: 4", b"h: 2"), "/long": ok(b"1234").replace(b"h: 4", b"h: 9")}
    with Server(lambda _c, _r, path: lies.get(path, echo(path))) as server:
        fetch = fetcher(server, total_seconds=0.5)
        assert body_at(fetch, f"{server.base}/short") == "12"
        assert body_at(fetch, f"{server.base}/b") == "the body of /b"
        assert body_at(fetch, f"{server.base}/long") == "deadline_exceeded"
        assert body_at(fetch, f"{server.base}/c") == "the body of /c"
        assert server.asked == [(0, "/short"), (1, "/b"), (1, "/long"), (2, "/c")]


def test_a_connection_that_was_closed_meanwhile_costs_nothing() -> None:
    with Server(lambda _c, _r, path: echo(path)) as server:
        fetch = fetcher(server)
        assert body_at(fetch, f"{server.base}/a") == "the body of /a"
        server.sockets[0].shutdown(socket.SHUT_RDWR)
        assert body_at(fetch, f"{server.base}/b") == "the body of /b"
        assert server.asked == [(0, "/a"), (1, "/b")]


@pytest.mark.parametrize("last_words", [CLOSE, b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
def test_a_server_that_hangs_up_instead_of_answering_is_asked_again_once(last_words: bytes) -> None:
    with Server(lambda c, r, path: last_words if (c, r) == (0, 1) else echo(path)) as server:
        fetch = fetcher(server)
        assert body_at(fetch, f"{server.base}/a") == "the body of /a"
        assert body_at(fetch, f"{server.base}/b") == "the body of /b"
        assert server.asked == [(0, "/a"), (0, "/b"), (1, "/b")]


@pytest.mark.parametrize(
    ("last_words", "rule"), [(CLOSE, "connection_reset"), (b"HTTP/1.1 408 Request Timeout\r\n\r\n", "http_408")]
)
def test_a_server_that_hangs_up_on_a_new_connection_is_not_asked_again(last_words: bytes, rule: str) -> None:
    with Server(lambda c, r, path: last_words if c + r else echo(path)) as server:
        fetch = fetcher(server)
        assert body_at(fetch, f"{server.base}/a") == "the body of /a"
        assert body_at(fetch, f"{server.base}/b") == rule
        assert body_at(fetch, f"{server.base}/c") == rule
        assert server.asked == [(0, "/a"), (0, "/b"), (1, "/b"), (2, "/c")]


def test_an_answer_that_breaks_off_is_not_asked_for_again() -> None:
    with Server(lambda _c, r, path: b"HTTP/1.1 200 OK\r\nConte" if r else echo(path)) as server:
        fetch = fetcher(server, total_seconds=0.5)
        assert body_at(fetch, f"{server.base}/a") == "the body of /a"
        assert body_at(fetch, f"{server.base}/b") == "deadline_exceeded"
        assert server.asked == [(0, "/a"), (0, "/b")]


def test_a_name_that_leads_elsewhere_now_takes_its_connection_with_it() -> None:
    answers = ["127.0.0.1", "127.0.0.2", "10.0.0.1", "127.0.0.1"]
    asked = iter(answers)
    resolver = Resolver(lambda host, seconds: ([next(asked)], 0.0), Memory(min_seconds=0.0))
    with ExitStack() as stack:
        one = stack.enter_context(Server(lambda _c, _r, path: echo(path)))
        other = stack.enter_context(Server(lambda _c, _r, path: echo(path), address="127.0.0.2", port=one.port))
        fetch = fetcher(one, other, resolver=resolver)
        base = f"http://photos.example:{one.port}"
        assert body_at(fetch, f"{base}/a") == "the body of /a"
        assert body_at(fetch, f"{base}/b") == "the body of /b"
        assert body_at(fetch, f"{base}/c") == "address_forbidden"
        assert body_at(fetch, f"{base}/d") == "the body of /d"
        assert (one.asked, other.asked) == ([(0, "/a"), (1, "/d")], [(0, "/b")])


def test_hosts_of_one_address_share_no_connection() -> None:
    resolver = Resolver(lambda host, seconds: (["127.0.0.1"], None))
    with Server(lambda _c, _r, path: echo(path)) as server:
        fetch = fetcher(server, resolver=resolver)
        for host in ("one.example", "two.example", "one.example"):
            assert body_at(fetch, f"http://{host}:{server.port}/{host}") == f"the body of /{host}"
        assert server.asked == [(0, "/one.example"), (1, "/two.example"), (0, "/one.example")]
        assert [head.split("Host: ")[1].split(":")[0] for _, head in server.heads] == [
            "one.example", "two.example", "one.example",
        ]  # fmt: skip


def test_a_connection_is_not_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda _c, _r, path: echo(path)) as server:
        fetch = fetcher(server)
        assert body_at(fetch, f"{server.base}/a") == "the body of /a"
        monkeypatch.setattr(connection_module, "IDLE_SECONDS", 0.0)
        assert body_at(fetch, f"{server.base}/b") == "the body of /b"
        assert server.asked == [(0, "/a"), (1, "/b")]


def test_a_tls_connection_stays_open_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls_context.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    try:
        with Server(lambda _c, _r, path: ok(path.encode() * 100_000), context) as server:
            fetch = fetcher(server)
            base = server.base.replace("http:", "https:")
            for path in ("/a", "/b", "/c"):
                assert body_at(fetch, base + path) == path * 100_000
            assert server.asked == [(0, "/a"), (0, "/b"), (0, "/c")]
            server.sockets[0].sendall(INJECTED_RESPONSE)
            assert body_at(fetch, f"{base}/d") == "/d" * 100_000
            assert server.asked[-1] == (1, "/d")
    finally:
        tls_context.cache_clear()


def test_no_answer_is_taken_for_another_whatever_a_server_does() -> None:
    """Eight threads and a server that closes, babbles and lies as it likes: what is kept is what was asked for."""
    lock, dice = threading.Lock(), random.Random(7)

    def answer(_connection: int, _request: int, path: str) -> bytes:
        with lock:
            choice = dice.randrange(10)
        body = echo(path)
        others = {0: CLOSE, 1: body + INJECTED_RESPONSE, 2: body[:10], 3: ok(b"", b"X: y"), 4: body + b"\r\n"}
        return others.get(choice, body)

    with Server(answer) as server:
        fetch = fetcher(
            server, total_seconds=2.0, min_bytes_per_second=1000.0, rate_grace_seconds=0.2, host_max_failures=0
        )
        paths = [f"/{number}" for number in range(400)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda path: body_at(fetch, server.base + path), paths))
        kept = [(path, body) for path, body in zip(paths, found, strict=True) if " " in body]
        assert all(body == f"the body of {path}" for path, body in kept)
        assert len(kept) > 250
        assert {body for body in found if " " not in body} <= {"connection_reset", "too_slow", "empty_body"}
        assert len({number for number, _ in server.asked}) < len(server.asked)


def pair(stack: ExitStack) -> Connection:
    ours, theirs = socket.socketpair()
    stack.enter_context(ours)
    stack.enter_context(theirs)
    return Connection(ours, "127.0.0.1")


def is_open(connection: Connection) -> bool:
    return connection.socket.fileno() >= 0


def test_a_host_has_no_more_connections_than_it_may() -> None:
    targets = [parse_target(f"http://a.example:{port}/") for port in (81, 82, 83)]
    with ExitStack() as stack:
        new = functools.partial(pair, stack)
        connections, first, second = Connections(most_per_host=2), new(), new()
        for target, connection in zip(targets, (first, second), strict=False):
            assert connections.take(target, ["127.0.0.1"]) is None
            connections.keep(target, connection)
            connections.done(target)
        assert is_open(first)
        assert is_open(second)  # two are allowed
        assert connections.take(targets[2], ["127.0.0.1"]) is None  # a third takes the place of the oldest
        assert not is_open(first)
        assert connections.take(targets[1], ["127.0.0.1"]) is second
        connections.done(targets[1])
        connections.done(targets[2])


def test_so_many_are_idle_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_IDLE", 3)
    targets = [parse_target(f"http://host{number}.example/") for number in range(5)]
    with ExitStack() as stack:
        connections, opened = Connections(most_per_host=8), [pair(stack) for _ in targets]
        for target, connection in zip(targets, opened, strict=True):
            assert connections.take(target, ["127.0.0.1"]) is None
            connections.keep(target, connection)
            connections.done(target)
        assert [is_open(connection) for connection in opened] == [False, False, True, True, True]
        assert connections.take(targets[0], ["127.0.0.1"]) is None
        assert connections.take(targets[4], ["127.0.0.1"]) is opened[4]
