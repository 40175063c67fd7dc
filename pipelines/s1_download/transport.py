"""How bytes come in: one guarded exchange, counted and timed, and the urllib opener that puts it under all of urllib.

Every limit holds for the URL as a whole: redirects, retries, name resolution, headers sent byte by byte and bodies that
grow when unpacked all count against the same deadline and the same caps.
"""

import functools
import http.client
import io
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
import urllib.response
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from email.message import Message
from typing import Any

from pipelines.s1_download.deny_list import DenyList
from pipelines.s1_download.guard import Policy, Refusal, Target, parse_target
from pipelines.s1_download.hosts import Breaker, HostGate, wait_before_retry
from pipelines.s1_download.opt_out import opt_out_signal
from pipelines.s1_download.resolver import Resolver, resolve
from pipelines.s1_download.robots import MAX_ROBOTS_BYTES, RobotsCache

CHUNK_BYTES = 64 << 10
HEADER_ALLOWANCE_BYTES = 256 << 10  # wire bytes that may be headers and chunk marks
RATIO_FREE_BYTES = 1 << 20  # below this a high compression ratio is no danger
SILENT_RULES = ("connect_failed", "deadline_exceeded")  # without a status: the host said nothing

NO_TALK_RULES = (
    "address_forbidden",
    "connect_failed",
    "denied_by_list",
    "dns_failed",
    "host_unavailable",
    "port_forbidden",
    "tls_failed",
)


@dataclass(frozen=True)
class Limits:
    """Caps and deadlines of one URL. Sizes are of the body, on the wire and unpacked alike."""

    max_bytes: int = 32 << 20
    max_ratio: float = 200.0
    connect_seconds: float = 5.0
    total_seconds: float = 20.0
    min_bytes_per_second: float = 8192.0
    rate_grace_seconds: float = 5.0  # the rate counts from the first byte on, after this
    max_redirects: int = 5
    cuts_long_bodies: bool = False  # what lies behind max_bytes is left unread, instead of refusing the whole
    retries: int = 1  # of what may pass: see hosts.BACK_OFF_SECONDS
    host_connections: int = 8
    host_requests_per_second: float = 20.0
    host_max_failures: int = 10  # in a row without an answer, then the host is given up; 0: never


@dataclass(frozen=True)
class Manners:
    """Who we say we are and what we let a site forbid."""

    user_agent: str
    user_agent_token: str
    directives: frozenset[str]
    reads_robots: bool = False
    denied: DenyList = DenyList()


@dataclass
class Outcome:
    """What became of one URL: body is None unless status is "ok", else status is the rule that refused it."""

    url: str
    status: str = "ok"
    reason: str = ""
    final_url: str = ""
    http_status: int = 0
    content_type: str = ""
    opt_out: str = ""
    robots: str = ""  # "allowed", "no_file", or "" where robots.txt was not asked for
    headers: Message = field(default_factory=http.client.HTTPMessage)
    body: bytes | None = None


@functools.cache
def tls_context() -> ssl.SSLContext:
    """The one TLS context of this process: building one per request costs 32 to 49 ms of CPU each."""
    return ssl.create_default_context()


class Fetcher:
    """Fetches URLs under one policy. Safe to share between threads; holds resolved names and each host's queue."""

    def __init__(self, policy: Policy, limits: Limits, manners: Manners) -> None:
        self._policy, self._limits, self._manners = policy, limits, manners
        self._resolver = Resolver()
        self._gates: defaultdict[str, HostGate] = defaultdict(
            lambda: HostGate(limits.host_connections, limits.host_requests_per_second)
        )
        self._breakers: defaultdict[tuple[str, int], Breaker] = defaultdict(lambda: Breaker(limits.host_max_failures))
        self._robots = RobotsCache(manners.user_agent_token, bool(manners.directives), limits.retries + 1)
        self._lock = threading.Lock()

    def fetch(self, url: str) -> Outcome:
        """What became of `url`. Never raises Refusal: that is in the outcome."""
        outcome = Outcome(url)
        try:
            host = parse_target(url).host
            with self._lock:
                gate = self._gates[host]
            with gate:
                self._fetch_with_retries(outcome)
        except Refusal as refusal:
            outcome.status, outcome.reason, outcome.body = refusal.rule, refusal.reason, None
            outcome.http_status = refusal.http_status or outcome.http_status
        except MemoryError:
            outcome.status, outcome.reason, outcome.body = "out_of_memory", "the body does not fit in memory", None
        return outcome

    def _fetch_with_retries(self, outcome: Outcome) -> None:
        clock = Clock(self._limits)
        for attempt in range(self._limits.retries + 1):
            try:
                return self._follow(outcome, clock, self._limits, self._manners.reads_robots)
            except Refusal as refusal:
                wait = wait_before_retry(refusal.rule, outcome.headers, attempt)
                if wait is None or attempt == self._limits.retries or wait >= clock.remaining():
                    raise
                time.sleep(wait)

    def _fetch_robots(self, url: str, clock: "Clock") -> tuple[int, bytes]:
        """Status and first bytes of a robots.txt, within the time of the URL that asks; 0 where no answer can be read.

        Refusal if not even its host can be talked to: then the URL itself fails for that reason, not for its manners.
        """
        outcome = Outcome(url)
        limits = replace(self._limits, max_bytes=MAX_ROBOTS_BYTES, cuts_long_bodies=True)
        try:
            self._follow(outcome, clock, limits, asks_robots=False)
        except Refusal as refusal:
            if refusal.rule == "too_many_redirects":
                return 404, b""  # RFC 9309 2.3.1.2: may be taken for a file that is not there
            if refusal.rule in NO_TALK_RULES and outcome.final_url == url:
                raise
            return refusal.http_status, b""
        return outcome.http_status, outcome.body or b""

    def _follow(self, outcome: Outcome, clock: "Clock", limits: Limits, asks_robots: bool) -> None:
        url, previous = outcome.url, None
        for _ in range(self._limits.max_redirects + 1):
            target = parse_target(url)
            if previous is not None and previous.scheme == "https" and target.scheme == "http":
                raise Refusal("redirect_downgrade", f"from https to {target.url}")
            outcome.final_url = target.url
            self._manners.denied.check(target)
            if asks_robots:
                outcome.robots = self._robots.check(target, lambda robots_url: self._fetch_robots(robots_url, clock))
            location = self._exchange(target, outcome, clock, limits)
            if location is None:
                return
            url, previous = urllib.parse.urljoin(target.url, location), target
        raise Refusal("too_many_redirects", f"more than {self._limits.max_redirects}", outcome.http_status)

    def _exchange(self, target: Target, outcome: Outcome, clock: "Clock", limits: Limits) -> str | None:
        """Fill `outcome` from one request, or learn that its host is silent; the address of a redirect."""
        with self._lock:
            breaker = self._breakers[target.host, target.port]
        breaker.admit(clock.remaining)
        outcome.http_status = 0
        try:
            location = self._request(target, outcome, clock, limits)
        except BaseException as error:
            rule = error.rule if isinstance(error, Refusal) else ""
            if outcome.http_status:
                breaker.answered()
            elif rule in SILENT_RULES:
                breaker.failed()
            else:
                breaker.undecided()
            raise
        breaker.answered()
        return location

    def _request(self, target: Target, outcome: Outcome, clock: "Clock", limits: Limits) -> str | None:
        connection, watched = self._connect(target, clock, limits)
        try:
            headers = {"User-Agent": self._manners.user_agent, "Accept-Encoding": "identity", "Accept": "*/*"}
            connection.request("GET", target.path, headers={**headers, "Connection": "close"})
            response = connection.getresponse()
            outcome.http_status, outcome.headers = response.status, response.headers
            outcome.content_type = response.headers.get_content_type() if "Content-Type" in response.headers else ""
            location = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                return str(location)
            if not 200 <= response.status < 300:
                raise Refusal(f"http_{response.status}", str(response.reason)[:200], response.status)
            if limits.cuts_long_bodies:  # robots.txt: what its own headers say of indexing it is no matter
                outcome.body = read_body(response, limits)
                return None
            manners = self._manners
            outcome.opt_out = opt_out_signal(response.headers, manners.user_agent_token, manners.directives)
            if outcome.opt_out:
                raise Refusal("opted_out", outcome.opt_out, response.status)
            outcome.body = read_body(response, limits)
            return None
        except Refusal:
            raise
        except http.client.IncompleteRead as error:
            raise Refusal("truncated_body", str(error)) from None
        except ConnectionError as error:  # before HTTPException: a hang-up without an answer is both
            raise Refusal("connection_reset", str(error)) from None
        except (http.client.HTTPException, UnicodeError, ValueError, zlib.error) as error:
            raise Refusal("bad_response", f"{type(error).__name__}: {error}") from None
        except OSError as error:
            raise Refusal("connection_reset", str(error)) from None
        finally:
            connection.close()
            watched.hang_up()

    def _connect(
        self, target: Target, clock: "Clock", limits: Limits
    ) -> tuple[http.client.HTTPConnection, "WatchedSocket"]:
        """A connection whose socket already leads to a judged address, and that socket."""
        addresses = resolve(target, self._policy, self._resolver, min(clock.remaining(), 2 * clock.connect_seconds))
        raw = _open_socket(addresses, target.port, clock)
        connection: http.client.HTTPConnection
        if target.scheme == "https":
            connection = http.client.HTTPSConnection(target.host, target.port, context=tls_context())
            raw = _wrap_tls(raw, target.host, clock)
        else:
            connection = http.client.HTTPConnection(target.host, target.port)
        connection.auto_open = 0  # never opens a socket of its own
        watched = WatchedSocket(raw, clock, limits)
        connection.sock = watched
        return connection, watched


def _open_socket(addresses: list[str], port: int, clock: "Clock") -> socket.socket:
    reasons = []
    give_up = time.monotonic() + clock.connect_seconds
    for address in addresses[:4]:
        remaining = min(clock.remaining(), give_up - time.monotonic())
        if remaining <= 0:
            reasons.append("no time left")
            break
        try:
            return socket.create_connection((address, port), timeout=remaining)
        except OSError as error:
            reasons.append(f"{address}: {error}")
    raise Refusal("connect_failed", "; ".join(reasons))


def _wrap_tls(raw: socket.socket, host: str, clock: "Clock") -> socket.socket:
    raw.settimeout(max(0.001, min(clock.remaining(), clock.connect_seconds)))
    try:
        return tls_context().wrap_socket(raw, server_hostname=host)
    except (OSError, ValueError) as error:  # ssl.SSLError and timeouts are OSErrors
        raw.close()
        raise Refusal("tls_failed", str(error)) from None


class Clock:
    """The time one URL has left, and how fast its bytes come."""

    def __init__(self, limits: Limits) -> None:
        self.connect_seconds = limits.connect_seconds
        self._limits = limits
        self._end = time.monotonic() + limits.total_seconds

    def remaining(self) -> float:
        """Seconds left; Refusal with rule deadline_exceeded if none are."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise Refusal("deadline_exceeded", f"not done in {self._limits.total_seconds:g} seconds")
        return seconds


class WatchedSocket(io.RawIOBase):
    """A connected socket as http.client uses one, on which every read is timed and counted."""

    def __init__(self, raw: socket.socket, clock: Clock, limits: Limits) -> None:
        self._raw, self._clock, self._limits = raw, clock, limits
        self._num_bytes = 0
        self._first_byte_at: float | None = None

    def makefile(self, mode: str) -> io.BufferedReader:
        """Where http.client reads the response from."""
        return io.BufferedReader(self, CHUNK_BYTES)

    def sendall(self, data: Any) -> None:
        self._raw.settimeout(self._clock.remaining())
        self._raw.sendall(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._raw.settimeout(max(0.001, min(self._clock.remaining(), self._seconds_until_too_slow())))
            try:
                count = self._raw.recv_into(buffer)
            except TimeoutError:
                continue  # either limit that ended the wait raises by itself
            self._first_byte_at = self._first_byte_at or time.monotonic()
            self._num_bytes += count
            if self._num_bytes > self._limits.max_bytes + HEADER_ALLOWANCE_BYTES:
                raise Refusal("body_too_large", f"more than {self._limits.max_bytes} bytes")
            return count

    def _seconds_until_too_slow(self) -> float:
        limits = self._limits
        if self._first_byte_at is None or limits.min_bytes_per_second <= 0:
            return limits.total_seconds
        allowed = max(limits.rate_grace_seconds, self._num_bytes / limits.min_bytes_per_second)
        seconds = self._first_byte_at + allowed - time.monotonic()
        if seconds <= 0:
            raise Refusal("too_slow", f"{self._num_bytes} bytes in {allowed:.1f} seconds")
        return seconds

    def close(self) -> None:
        """Nothing: http.client closes its connection before the body is read. `hang_up` closes."""

    def hang_up(self) -> None:
        self._raw.close()


def read_body(response: http.client.HTTPResponse, limits: Limits) -> bytes:
    """The whole body, unpacked; Refusal with rule body_too_large, compression_ratio, truncated_body or
    encoding_unsupported."""
    announced = response.length  # None for chunked bodies and those that end with the connection
    if announced is not None and announced > limits.max_bytes and not limits.cuts_long_bodies:
        raise Refusal("body_too_large", f"announces {announced} bytes, at most {limits.max_bytes}")
    encoding = response.headers.get("Content-Encoding", "")
    if announced and announced <= limits.max_bytes and not encoding:
        whole = response.read(announced)  # nearly every picture: into one piece of memory, without a copy
        if len(whole) < announced:
            raise Refusal("truncated_body", f"{len(whole)} of {announced} bytes came")
        return whole
    unpack = _unpacker(encoding, limits)
    body, num_wire_bytes = bytearray(), 0
    while chunk := response.read(CHUNK_BYTES):
        num_wire_bytes += len(chunk)
        body += unpack(chunk, num_wire_bytes, len(body))
        if max(num_wire_bytes, len(body)) > limits.max_bytes:
            if limits.cuts_long_bodies:
                return bytes(body[: limits.max_bytes])
            raise Refusal("body_too_large", f"more than {limits.max_bytes} bytes")
    if announced is not None and num_wire_bytes < announced:
        raise Refusal("truncated_body", f"{num_wire_bytes} of {announced} bytes came")
    body += unpack(b"", num_wire_bytes, len(body))
    if not body:
        raise Refusal("empty_body", "0 bytes", response.status)
    return bytes(body)


def _unpacker(encoding: str, limits: Limits) -> Callable[[bytes, int, int], bytes]:
    """A function (chunk, wire bytes so far, unpacked bytes so far) -> unpacked bytes; an empty chunk ends the body."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return lambda chunk, num_wire_bytes, num_unpacked: chunk
    if name not in ("gzip", "x-gzip", "deflate"):
        raise Refusal("encoding_unsupported", name[:100])
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16 if "gzip" in name else zlib.MAX_WBITS)

    def unpack(chunk: bytes, num_wire_bytes: int, num_unpacked: int) -> bytes:
        if not chunk and not inflate.eof:
            raise Refusal("truncated_body", "the compressed body breaks off")
        data = inflate.decompress(chunk, limits.max_bytes - num_unpacked + 1)
        total = num_unpacked + len(data)
        if total > RATIO_FREE_BYTES and total > limits.max_ratio * num_wire_bytes:
            raise Refusal("compression_ratio", f"{num_wire_bytes} bytes unpack to {total} or more")
        return data

    return unpack


class GuardedHandler(urllib.request.BaseHandler):
    """Answers every request of urllib, whatever its scheme, from a fetch function; urllib's own handlers are absent."""

    def __init__(self, fetch: Callable[[str], Outcome]) -> None:
        self._fetch = fetch

    def default_open(self, request: urllib.request.Request) -> urllib.response.addinfourl:
        outcome = self._fetch(request.full_url)
        if outcome.body is None:
            raise Refusal(outcome.status, outcome.reason, outcome.http_status)
        body = io.BytesIO(outcome.body)
        return urllib.response.addinfourl(body, outcome.headers, outcome.final_url, outcome.http_status)


def guarded_opener(fetch: Callable[[str], Outcome]) -> urllib.request.OpenerDirector:
    """An opener that knows nothing but `fetch`: no proxies, no netrc, no files, no ftp, no redirects of its own.

    Give it to `urllib.request.install_opener` and everything that calls `urlopen` in this process goes through it.
    """
    opener = urllib.request.OpenerDirector()
    opener.add_handler(GuardedHandler(fetch))
    return opener


def manners(
    user_agent: str,
    user_agent_token: str,
    directives: Collection[str],
    reads_robots: bool = False,
    denied: DenyList | None = None,
) -> Manners:
    """Manners with names and directives in the one spelling in which they are compared."""
    spelled = frozenset(text.strip().lower() for text in directives)
    return Manners(user_agent, user_agent_token.strip().lower(), spelled, reads_robots, denied or DenyList())
