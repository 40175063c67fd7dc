"""An HTTP proxy in front of the test S3 server that fails on command, is slow, and counts what goes through."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

Failure = Literal["", "refuse", "reset", "error", "throttle", "hang", "cut", "late_reset", "late_error"]
PASSING: tuple[Failure, ...] = ("reset", "error", "throttle", "cut", "late_reset", "late_error")


class Request(NamedTuple):
    """One request that reached the store: bytes of its body, and of the body of the answer."""

    method: str
    path: str
    sent: int
    answered: int

    @property
    def kind(self) -> str:
        """LIST for a listing, else the method."""
        is_list = self.method == "GET" and "list-type" in parse_qs(urlsplit(self.path).query)
        return "LIST" if is_list else self.method


class FaultyStore:
    """The proxy of the server at `target`. `failure` is what happens to every request from now on.

    refuse: nobody listens; reset: the connection is reset; error: 500; throttle: 503 SlowDown; hang: no answer; cut:
    half of the answer's body; late_reset, late_error: the request has its effect, then the same as above. `latency`
    (seconds) comes before each answer. `rewrite` changes the path of a request.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname is not None
        self.target = (parts.hostname, parts.port)
        self.latency = 0.0
        self.rewrite: Callable[[str], str] = lambda path: path
        self.requests: list[Request] = []
        self.num_failed = 0
        self._failure: Failure = ""
        self._share, self._random, self._lock = 0.0, random.Random(), threading.Lock()
        self._back = threading.Event()  # ends requests that hang
        self._server = self._serve(0)
        self.port = int(self._server.server_address[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"

    @property
    def failure(self) -> Failure:
        return self._failure

    @failure.setter
    def failure(self, failure: Failure) -> None:
        before, self._failure = self._failure, failure
        self._back.set()
        self._back = threading.Event()
        if failure == "refuse" and before != "refuse":
            self.close()
        elif before == "refuse" and failure != "refuse":
            self._server = self._serve(self.port)

    def counts(self) -> dict[str, int]:
        """How many requests of each kind came through since the last call."""
        requests, self.requests = self.requests, []
        return dict(Counter(request.kind for request in requests))

    def fail_share(self, share: float, seed: int) -> None:
        """Let that share of all requests fail, in one of the ways of PASSING each, by a seed."""
        self._share, self._random = share, random.Random(seed)

    def draw(self) -> Failure:
        """What happens to the next request."""
        with self._lock:
            fails = self._random.random() < self._share
            failure = self.failure or (self._random.choice(PASSING) if fails else "")
            self.num_failed += bool(failure)
        return failure

    def close(self) -> None:
        self._back.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, port: int) -> ThreadingHTTPServer:
        class Handler(_Handler):
            proxy = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Connections that break are what this is for."""

        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultyStore

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        failure = self.proxy.draw()
        if self.proxy.latency:
            time.sleep(self.proxy.latency)
        if failure == "hang":
            self.proxy._back.wait(60)
        if failure in ("reset", "refuse", "hang"):
            self._reset()
        elif failure in ("error", "throttle"):
            self._refuse(failure)
        else:
            self._forward(body, failure=failure)

    def _refuse(self, failure: Failure) -> None:
        code = "SlowDown" if failure == "throttle" else "InternalError"
        self._answer(503 if failure == "throttle" else 500, {}, f"<Error><Code>{code}</Code></Error>".encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _forward(self, body: bytes, failure: Failure) -> None:
        path = self.proxy.rewrite(self.path)
        connection = http.client.HTTPConnection(*self.proxy.target, timeout=60)
        try:
            connection.request(self.command, path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self.proxy.requests.append(Request(self.command, self.path, len(body), len(content)))
        if failure == "late_reset":
            self._reset()
            return
        if failure == "late_error":
            self._refuse(failure)
            return
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_A_CONNECTION}
        self._answer(answer.status, headers, content, cut=failure == "cut")

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        if self.command != "HEAD":
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(content))
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


_OF_A_CONNECTION = {"connection", "transfer-encoding", "keep-alive", "server", "date"}


@contextlib.contextmanager
def faulty_store(target: str) -> Iterator[FaultyStore]:
    """A `FaultyStore` inside the block."""
    store = FaultyStore(target)
    try:
        yield store
    finally:
        if store.failure != "refuse":
            store.close()
