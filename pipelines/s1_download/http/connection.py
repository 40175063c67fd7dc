"""Connections: opened to checked addresses only, timed and counted while a response is read, and kept alive."""

import functools
import select
import socket
import ssl
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.s1_download.http.guard import Refusal, Target
from pipelines.s1_download.http.limits import Clock, Limits

HEADER_ALLOWANCE_BYTES = 256 << 10  # of all heads before the body; and again for chunk headers
READ_BYTES = 128 << 10  # per read: most images of the web arrive in one, with their head
# A read waits at most this long before it checks its limits again. While no limit is nearer the socket's timeout is
# not changed, which saves a system call per read.
WAIT_SECONDS = 1.0
# Servers close connections that are idle for longer: Apache after 5 s, nginx after 75.
IDLE_SECONDS = 4.0
MAX_IDLE = 64  # of all hosts together


@dataclass(frozen=True)
class Connection:
    """An open socket, and the checked address at its other end."""

    socket: socket.socket
    address: str


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The one TLS context of this process: building one per request costs 32 to 49 ms of CPU each."""
    return ssl.create_default_context()


def connect(target: Target, addresses: Sequence[str], clock: Clock) -> Connection:
    """A connection to the first of `addresses` that accepts one; Refusal with rule connect_failed or tls_failed."""
    reasons = []
    give_up = time.monotonic() + clock.connect_seconds
    for address in addresses[:4]:
        remaining = min(clock.remaining(), give_up - time.monotonic())
        if remaining <= 0:
            reasons.append("no time left")
            break
        try:
            raw = _open_socket(address, target.port, remaining)
        except OSError as error:
            reasons.append(f"{address}: {error}")
            continue
        return Connection(_wrap_tls(raw, target.host, clock) if target.scheme == "https" else raw, address)
    raise Refusal("connect_failed", "; ".join(reasons))


def _open_socket(address: str, port: int, timeout_seconds: float) -> socket.socket:
    if ":" in address:  # with its scope, which getaddrinfo parses
        return socket.create_connection((address, port), timeout=timeout_seconds)
    raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        raw.settimeout(timeout_seconds)
        raw.connect((address, port))
    except BaseException:
        raw.close()
        raise
    return raw


def _wrap_tls(raw: socket.socket, host: str, clock: Clock) -> socket.socket:
    raw.settimeout(max(0.001, min(clock.remaining(), clock.connect_seconds)))
    try:
        return tls_context().wrap_socket(raw, server_hostname=host)
    except (OSError, ValueError) as error:  # ssl.SSLError and timeouts are OSErrors
        raw.close()
        raise Refusal("tls_failed", str(error)) from None


class WatchedSocket:
    """A connected socket on which every read is timed and counted: the stream that one response is read from."""

    def __init__(self, raw: socket.socket, clock: Clock, limits: Limits) -> None:
        self._raw, self._clock, self._limits = raw, clock, limits
        self.num_received = 0
        self._max_bytes = HEADER_ALLOWANCE_BYTES + READ_BYTES
        self._expects_body = False
        self._first_byte_at: float | None = None
        self._timeout = 0.0  # of the socket, as last set here
        self._data, self._position = b"", 0  # the last read, and how much of it was consumed

    @property
    def has_more(self) -> bool:
        """Whether received bytes are unread."""
        return self._position < len(self._data)

    def sendall(self, data: bytes) -> None:
        self._timeout = self._clock.remaining()
        self._raw.settimeout(self._timeout)
        self._raw.sendall(data)

    def expect_body(self) -> None:
        """Switch the limit from the head to the body."""
        self._max_bytes = self._limits.max_bytes + 2 * HEADER_ALLOWANCE_BYTES
        self._expects_body = True

    def pause(self, seconds: float) -> None:
        """Exclude `seconds` in which we did not read from the host's rate."""
        if self._first_byte_at is not None:
            self._first_byte_at += seconds

    def readline(self, limit: int, /) -> bytes:
        """The next line with its end, or the first `limit` bytes of it, or the rest of the stream."""
        pieces: list[bytes] = []
        left = limit
        while True:
            start = self._position
            end = self._data.find(b"\n", start, start + left) + 1
            pieces.append(self._data[start : end or start + left])
            self._position += len(pieces[-1])
            left -= len(pieces[-1])
            if end or not left:
                break
            self._data, self._position = self._receive(READ_BYTES), 0
            if not self._data:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, num_bytes: int, /) -> bytes:
        """`num_bytes` bytes, fewer only at the end of the stream."""
        start = self._position
        piece = self._data[start : start + num_bytes]
        self._position += len(piece)
        if len(piece) == num_bytes:
            return piece
        whole, size = bytearray(num_bytes), len(piece)  # a list of single bytes would take 40 times as much
        whole[:size] = piece
        while size < num_bytes and (piece := self._receive(min(num_bytes - size, READ_BYTES))):
            whole[size : size + len(piece)] = piece
            size += len(piece)
        return bytes(memoryview(whole)[:size])

    def _receive(self, num_bytes: int) -> bytes:
        """The next bytes, at most `num_bytes`; none at the end of the stream."""
        while True:
            timeout = min(self._clock.remaining(), self._seconds_until_too_slow(), WAIT_SECONDS)
            if timeout != self._timeout:
                self._timeout = timeout
                self._raw.settimeout(max(0.001, timeout))
            try:
                data = self._raw.recv(num_bytes)
            except TimeoutError:
                continue  # either limit that ended the wait raises by itself
            self._first_byte_at = self._first_byte_at or time.monotonic()
            self.num_received += len(data)
            if self.num_received > self._max_bytes:
                rule = "body_too_large" if self._expects_body else "bad_response"
                raise Refusal(rule, f"more than {self._max_bytes} bytes")
            return data

    def _seconds_until_too_slow(self) -> float:
        limits = self._limits
        if self._first_byte_at is None or limits.min_bytes_per_second <= 0:
            return limits.total_seconds
        allowed = max(limits.rate_grace_seconds, self.num_received / limits.min_bytes_per_second)
        seconds = self._first_byte_at + allowed - time.monotonic()
        if seconds <= 0:
            raise Refusal("too_slow", f"{self.num_received} bytes in {allowed:.1f} seconds")
        return seconds

    def close(self) -> None:
        """End the connection."""
        self._raw.close()


class Connections:
    """The open connections by host: in use, or idle after a response that was read to its end. Thread-safe.

    An idle one serves the next request to the same site, which is a scheme, a host and a port: hosts never share one,
    even with equal addresses. A host has at most `most_per_host` unless more requests are in progress.
    """

    def __init__(self, most_per_host: int) -> None:
        self._most_per_host = most_per_host
        self._idle: OrderedDict[str, deque[_Idle]] = OrderedDict()  # ordered by the last kept connection
        self._num_idle = 0
        self._in_use: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, target: Target, addresses: Sequence[str]) -> Connection | None:
        """An idle one that leads to one of `addresses`, which were checked for this request; None: open one.

        One on which anything was received since, its end or unsolicited bytes, is closed: these could be taken for the
        next response. Each call must be followed by `done`.
        """
        site = target.scheme, target.port
        with self._lock:
            self._in_use[target.host] += 1
        while idle := self._pop(target.host, site):
            connection = idle.connection
            is_young = time.monotonic() - idle.since < IDLE_SECONDS
            if is_young and connection.address in addresses and _is_quiet(connection.socket):
                return connection
            connection.socket.close()
        return None

    def keep(self, target: Target, connection: Connection) -> None:
        """Keep one from which exactly one complete response was read as idle."""
        now = time.monotonic()
        with self._lock:
            self._idle.setdefault(target.host, deque()).append(_Idle(connection, (target.scheme, target.port), now))
            self._idle.move_to_end(target.host)
            self._num_idle += 1
            unwanted = []
            while self._num_idle > MAX_IDLE or now - self._longest_idle().since > IDLE_SECONDS:
                unwanted.append(self._pop_oldest(next(iter(self._idle))))
        for idle in unwanted:
            idle.connection.socket.close()

    def done(self, target: Target) -> None:
        """End the use that `take` began."""
        with self._lock:
            self._in_use[target.host] -= 1
            if not self._in_use[target.host]:
                del self._in_use[target.host]

    def _pop(self, host: str, site: tuple[str, int]) -> "_Idle | None":
        """The idle one of `site` that was kept last; without one, an idle one is closed if a limit requires it."""
        with self._lock:
            of_host = self._idle.get(host)
            if not of_host:
                return None
            for idle in reversed(of_host):
                if idle.site == site:
                    of_host.remove(idle)
                    self._forget(host)
                    return idle
            is_full = len(of_host) + self._in_use[host] > self._most_per_host
            unwanted = self._pop_oldest(host) if is_full else None
        if unwanted:
            unwanted.connection.socket.close()
        return None

    def _longest_idle(self) -> "_Idle":
        return next(iter(self._idle.values()))[0]

    def _pop_oldest(self, host: str) -> "_Idle":
        idle = self._idle[host].popleft()
        self._forget(host)
        return idle

    def _forget(self, host: str) -> None:
        self._num_idle -= 1
        if not self._idle[host]:
            del self._idle[host]


@dataclass(frozen=True, eq=False)
class _Idle:
    connection: Connection
    site: tuple[str, int]  # scheme and port of its host
    since: float


def _is_quiet(raw: socket.socket) -> bool:
    """Whether nothing is pending, not even the end of the stream."""
    if isinstance(raw, ssl.SSLSocket) and raw.pending():
        return False
    poll = select.poll()
    poll.register(raw, select.POLLIN)
    return not poll.poll(0)
