"""The HTTP transport: one guarded exchange, counted and timed, and the urllib opener that uses it.

Every limit holds for the URL as a whole: redirects, retries, name resolution, headers sent byte by byte and bodies that
expand all count against the same deadline and the same limits.
"""

import threading
import time
import urllib.parse
import urllib.request
import urllib.response
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Literal

from pipelines.s1_download.http.body import BodyLimits, MemoryBudget, read_body
from pipelines.s1_download.http.connection import Connection, Connections, WatchedSocket, connect
from pipelines.s1_download.http.deny_list import DenyList
from pipelines.s1_download.http.guard import CONTROL_CHARACTER, Policy, Refusal, Target, parse_target
from pipelines.s1_download.http.head import Headers, Response, may_stay_open, read_head
from pipelines.s1_download.http.hosts import Breaker, HostGate, wait_before_retry
from pipelines.s1_download.http.limits import Clock, Limits
from pipelines.s1_download.http.opt_out import opt_out_signal
from pipelines.s1_download.http.resolver import Resolver, resolve
from pipelines.s1_download.http.robots import MAX_ROBOTS_BYTES, RobotsCache
from x2vlm.errors import ConfigError

# Failures that cost seconds without a response. An error status costs little and counts as a response.
SILENT_RULES = ("connect_failed", "deadline_exceeded", "too_slow")

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
class CrawlerPolicy:
    """Crawler policy: user agent, the robots.txt and opt-out rules that are obeyed, and the deny list."""

    user_agent: str
    user_agent_token: str
    directives: frozenset[str]
    reads_robots: bool = False
    denied: DenyList = DenyList()


@dataclass
class Outcome:
    """The result of one URL: body is None unless status is "ok", else status is the rule that refused it."""

    url: str
    status: str = "ok"
    reason: str = ""
    final_url: str = ""
    http_status: int = 0
    content_type: str = ""
    opt_out: str = ""
    robots: str = ""  # "allowed", "no_file", or "" if robots.txt was not requested
    headers: Headers = field(default_factory=Headers)
    body: bytes | None = None


class Fetcher:
    """Fetches URLs under one policy. Thread-safe; it has resolved names and each host's queue."""

    def __init__(
        self, policy: Policy, limits: Limits, crawler_policy: CrawlerPolicy, resolver: Resolver | None = None
    ) -> None:
        self._policy, self._limits, self._crawler_policy = policy, limits, crawler_policy
        self._resolver = resolver or Resolver()
        self._body_memory = MemoryBudget(limits.max_bytes)
        self._connections = Connections(limits.host_connections)
        if CONTROL_CHARACTER.search(crawler_policy.user_agent) or not crawler_policy.user_agent.isascii():
            raise ConfigError(f"user_agent {crawler_policy.user_agent!r}: printable ASCII characters only")
        self._gates: defaultdict[str, HostGate] = defaultdict(
            lambda: HostGate(limits.host_connections, limits.host_requests_per_second)
        )
        self._breakers: defaultdict[tuple[str, int], Breaker] = defaultdict(lambda: Breaker(limits.host_max_failures))
        self._robots = RobotsCache(crawler_policy.user_agent_token, bool(crawler_policy.directives), limits.retries + 1)
        self._lock = threading.Lock()

    def fetch(self, url: str) -> Outcome:
        """The outcome of `url`. Never raises Refusal: that is in the outcome."""
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
            began = time.monotonic()
            try:
                return self._follow(outcome, clock, self._limits.body, self._crawler_policy.reads_robots)
            except Refusal as refusal:
                wait = wait_before_retry(refusal.rule, outcome.headers, attempt)
                if wait is None or attempt == self._limits.retries or wait >= clock.remaining():
                    raise
                # Within 5 s the kernel has sent three SYNs, at 0, 1 and 3 s.
                if refusal.rule == "connect_failed" and time.monotonic() - began >= clock.connect_seconds:
                    raise
                time.sleep(wait)

    def _fetch_robots(self, url: str, clock: Clock) -> tuple[int, bytes]:
        """Status and first bytes of a robots.txt, within the time of the requesting URL; 0 if unreadable.

        Refusal if its host cannot be contacted: then the URL fails for that reason, not because of the crawler policy.
        """
        outcome = Outcome(url)
        limits = BodyLimits(MAX_ROBOTS_BYTES, self._limits.max_ratio, cuts_long_bodies=True)
        try:
            self._follow(outcome, clock, limits, asks_robots=False)
        except Refusal as refusal:
            if refusal.rule == "too_many_redirects":
                return 404, b""  # RFC 9309 2.3.1.2: may be treated as a missing file
            if refusal.rule in NO_TALK_RULES and outcome.final_url == url:
                raise
            return refusal.http_status, b""
        return outcome.http_status, outcome.body or b""

    def _follow(self, outcome: Outcome, clock: Clock, limits: BodyLimits, asks_robots: bool) -> None:
        url, previous = outcome.url, None
        for _ in range(self._limits.max_redirects + 1):
            target = parse_target(url)
            if previous is not None and previous.scheme == "https" and target.scheme == "http":
                raise Refusal("redirect_downgrade", f"from https to {target.url}")
            outcome.final_url = target.url
            self._crawler_policy.denied.check(target)
            if asks_robots:
                outcome.robots = self._robots.check(target, lambda robots_url: self._fetch_robots(robots_url, clock))
            location = self._exchange(target, outcome, clock, limits)
            if location is None:
                return
            url, previous = _joined(target, location), target
        raise Refusal("too_many_redirects", f"more than {self._limits.max_redirects}", outcome.http_status)

    def _exchange(self, target: Target, outcome: Outcome, clock: Clock, limits: BodyLimits) -> str | None:
        """Fill `outcome` from one request, with the state of its host; the URL of a redirect."""
        with self._lock:
            breaker = self._breakers[target.host, target.port]
        breaker.admit(clock.remaining)
        outcome.http_status = 0
        try:
            location = self._request(target, outcome, clock, limits)
        except BaseException as error:
            rule = error.rule if isinstance(error, Refusal) else ""
            if rule in SILENT_RULES:
                breaker.failed()
            elif outcome.http_status:
                breaker.answered()
            else:
                breaker.undecided()
            raise
        breaker.answered()
        return location

    def _request(self, target: Target, outcome: Outcome, clock: Clock, limits: BodyLimits) -> str | None:
        # Checked for every request, also if a connection is open already.
        addresses = resolve(target, self._policy, self._resolver, min(clock.remaining(), 2 * clock.connect_seconds))
        idle = self._connections.take(target, addresses)
        try:
            if idle:
                try:
                    return self._ask(idle, target, outcome, clock, limits, is_first=False)
                except ConnectionClosed:
                    pass  # it was about to close, and RFC 9112 9.3.1 allows one retry on a new one
            return self._ask(connect(target, addresses, clock), target, outcome, clock, limits)
        finally:
            self._connections.done(target)

    def _ask(
        self,
        connection: Connection,
        target: Target,
        outcome: Outcome,
        clock: Clock,
        limits: BodyLimits,
        is_first: bool = True,
    ) -> str | None:
        """Send the request over `connection` and fill `outcome` from the response; the URL of a redirect."""
        of_this = self._limits
        if limits.max_bytes != of_this.max_bytes:
            of_this = replace(of_this, max_bytes=limits.max_bytes)
        watched = WatchedSocket(connection.socket, clock, of_this)
        stays_open = False
        try:
            watched.sendall(request_head(target, self._crawler_policy.user_agent))
            response = read_head(watched)
            if response.status == 408 and not is_first:  # a timeout of the idle connection that crossed our request
                raise ConnectionClosed
            location = self._read(response, watched, outcome, clock, limits)
            stays_open = location is None and may_stay_open(response) and not watched.has_more
            return location
        except OSError as error:
            refusal = error if isinstance(error, Refusal) else Refusal("connection_reset", str(error))
            if refusal.rule == "connection_reset" and not is_first and not watched.num_received:
                raise ConnectionClosed from None
            raise refusal from None
        finally:
            if stays_open:
                self._connections.keep(target, connection)
            else:
                watched.close()

    def _read(
        self, response: Response, watched: WatchedSocket, outcome: Outcome, clock: Clock, limits: BodyLimits
    ) -> str | None:
        """Fill `outcome` from `response`; the URL of a redirect. Refusal if it is not acceptable."""
        outcome.http_status, outcome.headers = response.status, response.headers
        outcome.content_type = response.headers.content_type()
        location = response.headers.get("Location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if not 200 <= response.status < 300 or response.status == 206:  # an unrequested range
            raise Refusal(f"http_{response.status}", response.reason[:200], response.status)
        watched.expect_body()
        crawler_policy, taken = self._crawler_policy, 0
        if not limits.cuts_long_bodies:  # not robots.txt, whose own indexing headers are irrelevant
            outcome.opt_out = opt_out_signal(
                response.headers, crawler_policy.user_agent_token, crawler_policy.directives
            )
            if outcome.opt_out:
                raise Refusal("opted_out", outcome.opt_out, response.status)

        def reserve_memory(num_bytes: int) -> None:
            nonlocal taken
            began = time.monotonic()
            try:
                self._body_memory.take(num_bytes, clock.remaining)
            except Refusal:  # not the fault of the host
                raise Refusal("out_of_memory", "no room for a large body before the deadline") from None
            taken += num_bytes
            watched.pause(time.monotonic() - began)

        try:
            outcome.body = read_body(response, limits, reserve_memory)
        finally:
            if taken:
                self._body_memory.give_back(taken)
        return None


class ConnectionClosed(Exception):
    """A reused connection was closed without a response to the request."""


def request_head(target: Target, user_agent: str) -> bytes:
    """A GET request. No line can be injected: a target is quoted, a user agent checked."""
    host = target.url[len(target.scheme) + 3 :].partition("/")[0]
    return (
        f"GET {target.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {user_agent}\r\n"
        "Accept-Encoding: identity\r\nAccept: */*\r\n\r\n"
    ).encode("ascii")


def _joined(target: Target, location: str) -> str:
    """The URL of a redirect; Refusal url_malformed if it cannot be joined.

    `location` is as it came, read as Latin-1: each byte that is not ASCII is percent-encoded, whatever encoding it is
    of. `&amp;` stays what it says, as in browsers: a header is no HTML.
    """
    quoted = "".join(c if c.isascii() else f"%{ord(c):02X}" for c in location)
    try:
        return urllib.parse.urljoin(target.url, quoted)
    except ValueError as error:
        raise Refusal("url_malformed", f"redirect: {error}") from None


class GuardedHandler(urllib.request.BaseHandler):
    """Answers every request of urllib, whatever its scheme, from a fetch function; urllib's own handlers are absent."""

    def __init__(self, fetch: Callable[[str], Outcome]) -> None:
        self._fetch = fetch

    def default_open(self, request: urllib.request.Request) -> "Answer":
        outcome = self._fetch(request.full_url)
        if outcome.body is None:
            raise Refusal(outcome.status, outcome.reason, outcome.http_status)
        body, outcome.body = outcome.body, None  # the answer has the only copy
        return Answer(outcome.final_url, outcome.http_status, outcome.headers, body)


class Answer:
    """The response object of `urlopen`, with a complete body. urllib's own costs 8 us more to create."""

    def __init__(self, url: str, status: int, headers: Headers, body: bytes) -> None:
        self.url, self.status, self.headers, self._body = url, status, headers, body

    def read(self) -> bytes:
        """The body at the first call, then nothing."""
        body, self._body = self._body, b""
        return body

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *exception: object) -> Literal[False]:
        return False


def guarded_opener(fetch: Callable[[str], Outcome]) -> urllib.request.OpenerDirector:
    """An opener that only uses `fetch`: no proxies, no netrc, no files, no ftp, no redirects of its own.

    Give it to `urllib.request.install_opener` and all calls of `urlopen` in this process use it.
    """
    opener = urllib.request.OpenerDirector()
    opener.add_handler(GuardedHandler(fetch))
    return opener


def crawler_policy(
    user_agent: str,
    user_agent_token: str,
    directives: Collection[str],
    reads_robots: bool = False,
    denied: DenyList | None = None,
) -> CrawlerPolicy:
    """A CrawlerPolicy with names and directives in the canonical spelling for comparisons."""
    spelled = frozenset(text.strip().lower() for text in directives)
    return CrawlerPolicy(user_agent, user_agent_token.strip().lower(), spelled, reads_robots, denied or DenyList())
