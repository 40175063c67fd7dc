"""A local proxy that enforces our rules on a program that does its own networking.

yt-dlp resolves names, follows redirects and requests pages by itself. Through this proxy it can reach only what
`Policy` allows: each host is resolved and checked here, the connection goes to the checked address, and all bytes of
one video count against one limit. When the process of the proxy dies, the program loses its connections.
"""

import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from pipelines.s1_download.http.deny_list import DenyList
from pipelines.s1_download.http.guard import Policy, Refusal, Target, parse_target
from pipelines.s1_download.http.resolver import Resolver, resolve

MAX_HEAD_BYTES = 64 << 10
CHUNK_BYTES = 64 << 10
IDLE_SECONDS = 60.0
HOP_HEADERS = ("proxy-", "connection:", "keep-alive:")  # between the program and this proxy


class GuardedProxy(socketserver.ThreadingTCPServer):
    """The proxy of one video. `refusals` are the refused requests, in order."""

    daemon_threads = True

    def __init__(self, policy: Policy, resolver: Resolver, denied: DenyList, max_bytes: int, connect_seconds: float):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy, self.resolver, self.denied = policy, resolver, denied
        self.max_bytes, self.connect_seconds = max_bytes, connect_seconds
        self.refusals: list[Refusal] = []
        self.num_bytes = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def reach(self, target: Target) -> socket.socket:
        """A connection to the checked address of `target`; Refusal if it is forbidden or fails."""
        self.denied.check(target)
        for address in resolve(target, self.policy, self.resolver, self.connect_seconds):
            try:
                return socket.create_connection((address, target.port), timeout=self.connect_seconds)
            except OSError as error:
                reason = f"{address}: {error}"
        raise Refusal("connect_failed", reason)

    def count(self, num_bytes: int) -> None:
        """Count received bytes; Refusal with rule body_too_large once there are too many."""
        with self._lock:
            self.num_bytes += num_bytes
            if self.num_bytes > self.max_bytes:
                raise Refusal("body_too_large", f"more than {self.max_bytes} bytes came for one video")


class _Handler(socketserver.BaseRequestHandler):
    server: GuardedProxy

    def handle(self) -> None:
        self.request.settimeout(IDLE_SECONDS)
        try:
            head, rest = _read_head(self.request)
            method, address, _ = head[0].split(" ", 2)
            is_tunnel = method == "CONNECT"
            target = parse_target(f"https://{address}/" if is_tunnel else address)
            with self.server.reach(target) as remote:
                if is_tunnel:
                    self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    remote.sendall(rest)
                else:
                    remote.sendall(_forwarded(head, target, method) + rest)
                self._relay(remote)
        except Refusal as refusal:
            self.server.refusals.append(refusal)
            self._answer(f"HTTP/1.1 403 Refused\r\nX-Refusal: {refusal.rule}\r\nConnection: close\r\n\r\n")
        except (OSError, ValueError):
            self._answer("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    def _answer(self, text: str) -> None:
        try:
            self.request.sendall(text.encode())
        except OSError:
            pass  # the client is gone

    def _relay(self, remote: socket.socket) -> None:
        """Relay bytes in both directions until either end closes or both are silent for IDLE_SECONDS."""
        pairs = {self.request: remote, remote: self.request}
        while True:
            readable, _, _ = select.select(list(pairs), [], [], IDLE_SECONDS)
            if not readable:
                return
            for source in readable:
                data = source.recv(CHUNK_BYTES)
                if not data:
                    return
                if source is remote:
                    self.server.count(len(data))
                pairs[source].sendall(data)


def _read_head(connection: socket.socket) -> tuple[list[str], bytes]:
    """The request line and headers, and the bytes received after them; ValueError if it is not HTTP."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(CHUNK_BYTES)
        if not chunk or len(data) > MAX_HEAD_BYTES:
            raise ValueError("no request head")
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), rest


def _forwarded(head: list[str], target: Target, method: str) -> bytes:
    """The request as sent to the server: a path instead of the URL, one request per connection."""
    kept = [line for line in head[1:] if not line.lower().startswith((*HOP_HEADERS, "host:"))]
    host = urlsplit(target.url).netloc
    lines = [f"{method} {target.path} HTTP/1.1", f"Host: {host}", *kept, "Connection: close"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


@contextmanager
def guarded_proxy(
    policy: Policy, resolver: Resolver, denied: DenyList, max_bytes: int, connect_seconds: float
) -> Iterator[GuardedProxy]:
    """A running proxy for one video."""
    with GuardedProxy(policy, resolver, denied, max_bytes, connect_seconds) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
