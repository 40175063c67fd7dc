"""A caching resolver without root: one query per host and machine, and no host lost to a transient failure.

By default the system's resolver is used (with /etc/hosts, search domains and a local cache), or the name servers that
the job gives (`name_servers.py`). Both lack a cache shared by all processes of the machine (`name_cache.py`): a host
occurs many times in a source, and name servers answer SERVFAIL under load, which must not be taken for "no such name".
"""

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.s1_download.http.guard import Policy, Refusal, Target, check_address
from pipelines.s1_download.http.name_cache import Answer, NameStore, open_name_store

PERMANENT_ERRORS = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}
# (host, timeout in seconds) -> addresses and their validity in seconds, if known; OSError if none.
Ask = Callable[[str, float], tuple[list[str], float | None]]


@dataclass(frozen=True)
class Memory:
    """How long answers are cached, and the retry policy of queries.

    A transient failure is cached for `failure_seconds`: requests for the host wait that long, then query again. So no
    URL is lost unless its host failed after the URL was requested. A host that has failed `patience` times is refused
    at once for `broken_seconds`, unless it failed in an outage of all hosts that is over.
    """

    min_seconds: float = 3600.0  # minimum validity of an address, whatever its TTL
    max_seconds: float = 86_400.0
    no_such_name_seconds: float = 3600.0
    failure_seconds: float = 5.0
    patience: int = 3
    broken_seconds: float = 60.0
    outage_failures: int = 10  # in a row, over all hosts: then it is an outage
    # Immediate retries of a transient failure. If each query fails with a probability of 5 %, two retries lose one host
    # in 8,000 and four one in three million.
    retries: int = 4
    retry_wait_seconds: float = 0.25  # doubles
    # An overloaded name server must not get the whole load again: all retries are at most this fraction of all queries,
    # plus an initial allowance.
    max_retry_fraction: float = 0.1
    free_retries: int = 50


@dataclass
class _Entry:
    """The cache entry of one host. `num_failures` transient ones in a row; `failed_at` is the time of the last one."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    answer: Answer | None = None
    holds_until: float = 0.0
    num_failures: int = 0
    failed_at: float = 0.0


class Resolver:
    """Addresses of host names. Thread-safe: threads that need the same host wait for one answer."""

    def __init__(
        self,
        ask: Ask | None = None,
        memory: Memory | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        store: NameStore | None = None,
    ) -> None:
        self._ask, self._memory, self._now, self._sleep = ask or ask_system, memory or Memory(), now, sleep
        self._store = store
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._num_questions = self._num_retries = self._num_failures_in_row = 0
        self._outage_ended_at = float("-inf")

    def addresses(self, host: str, timeout_seconds: float) -> list[str]:
        """Every address of `host`, at least one; Refusal with rule dns_failed, at the latest at the timeout.

        A host that is an address, in any spelling, is not queried.
        """
        if address := numeric_address(host):
            return [address]
        deadline = self._now() + timeout_seconds
        with self._lock:
            entry = self._entries.setdefault(host, _Entry())
        if not entry.lock.acquire(timeout=max(0.0, timeout_seconds)):
            raise Refusal("dns_failed", f"{host}: no answer in time")
        try:
            answer = self._known(entry, deadline)
            if answer is None:
                answer, seconds = self._look_up(host, deadline)
                self._remember(entry, answer, seconds)
        finally:
            entry.lock.release()
        if isinstance(answer, OSError):
            raise Refusal("dns_failed", f"{host}: {answer}")
        return answer

    def _known(self, entry: _Entry, deadline: float) -> Answer | None:
        """The valid answer, or None if a query is due; the wait after a transient failure comes first."""
        if entry.answer is None or self._now() >= entry.holds_until:
            return None
        if entry.num_failures > 0:
            with self._lock:
                is_void = entry.failed_at < self._outage_ended_at
            if is_void:
                return None
            if entry.num_failures < self._memory.patience and entry.holds_until < deadline:
                self._sleep(entry.holds_until - self._now())
                return None
        return entry.answer

    def _remember(self, entry: _Entry, answer: Answer, seconds: float) -> None:
        entry.answer, now = answer, self._now()
        if _may_pass(answer):
            entry.num_failures, entry.failed_at = entry.num_failures + 1, now
            is_broken = entry.num_failures >= self._memory.patience
            seconds = self._memory.broken_seconds if is_broken else self._memory.failure_seconds
        else:
            entry.num_failures = 0
        entry.holds_until = now + seconds

    def _look_up(self, host: str, deadline: float) -> tuple[Answer, float]:
        """The answer for `host`, queried by one process of this machine, and its validity in seconds."""
        store = self._store
        if store is None:
            return self._answer(host, deadline)
        # Half of the time is reserved for a query of our own, should that of the other process fail.
        with contextlib.nullcontext() if store.get(host) else store.asking(host, (deadline - self._now()) / 2):
            if known := store.get(host):
                return known
            answer, seconds = self._answer(host, deadline)
            if not _may_pass(answer):
                store.put(host, answer, seconds)
            return answer, seconds

    def _answer(self, host: str, deadline: float) -> tuple[Answer, float]:
        """The answer to a query for `host`, and its validity in seconds."""
        memory, attempt = self._memory, 0
        while True:
            with self._lock:
                self._num_questions += 1
            try:
                found, seconds = self._ask(host, deadline - self._now())
                self._server_answered()
                return list(dict.fromkeys(found)), min(memory.max_seconds, max(memory.min_seconds, seconds or 0.0))
            except OSError as error:
                if not _may_pass(error):
                    self._server_answered()
                    return error, memory.no_such_name_seconds
                with self._lock:
                    self._num_failures_in_row += 1
                wait = memory.retry_wait_seconds * 2**attempt
                if attempt == memory.retries or self._now() + wait >= deadline or not self._may_retry():
                    return error, memory.failure_seconds
            attempt += 1
            self._sleep(wait)

    def _server_answered(self) -> None:
        with self._lock:
            if self._num_failures_in_row >= self._memory.outage_failures:
                self._outage_ended_at = self._now()
            self._num_failures_in_row = 0

    def _may_retry(self) -> bool:
        memory = self._memory
        with self._lock:
            if self._num_retries >= memory.free_retries + memory.max_retry_fraction * self._num_questions:
                return False
            self._num_retries += 1
            return True


def _may_pass(answer: Answer) -> bool:
    """Whether it is a transient failure, not a statement about the name."""
    return isinstance(answer, OSError) and answer.errno not in PERMANENT_ERRORS


def numeric_address(host: str) -> str:
    """The address that `host` denotes, also in decimal, octal, hex or abbreviated form; "" if it is a name."""
    host = host.rstrip(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not host.rpartition(".")[2][:1].isdigit():  # no top-level domain begins with a digit
        return ""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return ""


def parse_name_server(text: str) -> tuple[str, int]:
    """(address, port) of "192.0.2.1", "192.0.2.1:5353", "2001:db8::1" or "[2001:db8::1]:5353"; ValueError if none."""
    address, port = text, "53"
    if text.startswith("[") or text.count(":") == 1:
        address, _, port = text.rpartition(":")
        address = address.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"name server {text!r}: want an address, with or without a port")
    return str(ipaddress.ip_address(address)), int(port)


def open_resolver(name_servers: Sequence[str], folder: Path | None = None) -> Resolver:
    """A resolver that queries `name_servers`, or the system if there are none, with a shared cache.

    It is shared with all processes of this user on this machine, or only with those that give the same `folder`.
    """
    store = open_name_store(name_servers, folder)
    if not name_servers:
        return Resolver(store=store)
    # Imported here: dnspython takes 0.1 s.
    from pipelines.s1_download.http.name_servers import ask_name_servers

    servers = [parse_name_server(text) for text in name_servers]
    return Resolver(lambda host, seconds: ask_name_servers(servers, host, seconds), store=store)


def resolve(target: Target, policy: Policy, resolver: Resolver, timeout_seconds: float) -> list[str]:
    """The addresses `target` may be contacted at: all that its host has, or a Refusal if a single one is forbidden."""
    addresses = resolver.addresses(target.host, timeout_seconds)
    for address in addresses:
        check_address(address, target.port, policy)
    return addresses


def ask_system(host: str, timeout_seconds: float) -> tuple[list[str], None]:
    """The answer of getaddrinfo, without a TTL; OSError, also if it takes longer than `timeout_seconds`."""
    outcome: list[list[str] | OSError] = []

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            outcome.append([str(item[4][0]) for item in found])
        except OSError as error:
            outcome.append(error)
        except UnicodeError as error:  # a label that cannot be queried
            outcome.append(socket.gaierror(socket.EAI_NONAME, str(error)))

    # getaddrinfo has no timeout; a daemon thread is abandoned rather than waited for.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(max(0.0, timeout_seconds))
    answer = outcome[0] if outcome else OSError("no answer in time")
    if isinstance(answer, OSError):
        raise answer
    if not answer:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return answer, None
