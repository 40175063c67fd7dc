"""A caching resolver without root: one question per host and process, and no host lost to a name server's bad moment.

The system's own resolver is asked (so /etc/hosts, search domains and a local cache keep their meaning); what it lacks
is a memory. A source names a host many times, and name servers answer SERVFAIL under load, which must not be taken for
"no such name".
"""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipelines.s1_download.guard import Policy, Refusal, Target, check_address

PERMANENT_ERRORS = {getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name)}
# (host, timeout in seconds) -> addresses and how long they hold in seconds, if that is known; OSError if none.
Ask = Callable[[str, float], tuple[list[str], float | None]]


@dataclass(frozen=True)
class Memory:
    """How long answers are remembered, and how hard a question is asked again."""

    min_seconds: float = 3600.0  # an address holds at least this long, whatever its time to live
    no_such_name_seconds: float = 3600.0
    failure_seconds: float = 5.0  # after a failure that may pass, until a URL may ask again
    retries: int = 2  # of a failure that may pass, at once
    retry_wait_seconds: float = 0.5  # doubles
    # A name server in trouble must not get the whole load again: all retries together are at most this share of all
    # questions, with some to begin with.
    retry_share: float = 0.1
    free_retries: int = 50


@dataclass
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    answer: list[str] | OSError | None = None
    holds_until: float = 0.0


class Resolver:
    """Addresses of host names. Safe to share between threads: those that want the same host wait for one answer."""

    def __init__(
        self,
        ask: Ask | None = None,
        memory: Memory | None = None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask, self._memory, self._now, self._sleep = ask or ask_system, memory or Memory(), now, sleep
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()
        self._num_questions = self._num_retries = 0

    def addresses(self, host: str, timeout_seconds: float) -> list[str]:
        """Every address of `host`, at least one; Refusal with rule dns_failed, at the latest when time is up."""
        deadline = self._now() + timeout_seconds
        with self._lock:
            entry = self._entries.setdefault(host, _Entry())
        if not entry.lock.acquire(timeout=max(0.0, timeout_seconds)):
            raise Refusal("dns_failed", f"{host}: no answer in time")
        try:
            if entry.answer is None or self._now() >= entry.holds_until:
                entry.answer, seconds = self._answer(host, deadline)
                entry.holds_until = self._now() + seconds
            answer = entry.answer
        finally:
            entry.lock.release()
        if isinstance(answer, OSError):
            raise Refusal("dns_failed", f"{host}: {answer}")
        return answer

    def _answer(self, host: str, deadline: float) -> tuple[list[str] | OSError, float]:
        """What is known of `host` now, and for how many seconds it holds."""
        memory, attempt = self._memory, 0
        while True:
            with self._lock:
                self._num_questions += 1
            try:
                found, seconds = self._ask(host, deadline - self._now())
                return list(dict.fromkeys(found)), max(memory.min_seconds, seconds or 0.0)
            except OSError as error:
                if error.errno in PERMANENT_ERRORS:
                    return error, memory.no_such_name_seconds
                wait = memory.retry_wait_seconds * 2**attempt
                if attempt == memory.retries or self._now() + wait >= deadline or not self._may_retry():
                    return error, memory.failure_seconds
            attempt += 1
            self._sleep(wait)

    def _may_retry(self) -> bool:
        memory = self._memory
        with self._lock:
            if self._num_retries >= memory.free_retries + memory.retry_share * self._num_questions:
                return False
            self._num_retries += 1
            return True


def resolve(target: Target, policy: Policy, resolver: Resolver, timeout_seconds: float) -> list[str]:
    """The addresses `target` may be contacted at: all that its host has, or a Refusal if a single one is forbidden."""
    addresses = resolver.addresses(target.host, timeout_seconds)
    for address in addresses:
        check_address(address, target.port, policy)
    return addresses


def ask_system(host: str, timeout_seconds: float) -> tuple[list[str], None]:
    """What getaddrinfo says, which tells no time to live; OSError, also if it takes longer than `timeout_seconds`."""
    outcome: list[list[str] | OSError] = []

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            outcome.append([str(item[4][0]) for item in found])
        except OSError as error:
            outcome.append(error)
        except UnicodeError as error:  # a label that no name server could be asked for
            outcome.append(socket.gaierror(socket.EAI_NONAME, str(error)))

    # getaddrinfo has no timeout of its own; a daemon thread is left behind rather than waited for.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(max(0.0, timeout_seconds))
    answer = outcome[0] if outcome else OSError("no answer in time")
    if isinstance(answer, OSError):
        raise answer
    if not answer:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return answer, None
