"""Limits per host for all its URLs: request rate, connections, back-off, and giving up."""

import email.utils
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message

from pipelines.s1_download.http.guard import Refusal
from pipelines.s1_download.http.head import Headers

# Seconds before the first retry, by error; each further retry waits twice as long. An overloaded server gets more time
# than a broken connection.
BACK_OFF_SECONDS = {
    "connection_reset": 0.5,
    "truncated_body": 0.5,
    "connect_failed": 1.0,
    "robots_unreachable": 1.0,
    "http_500": 1.0,
    "http_502": 1.0,
    "http_503": 2.0,
    "http_504": 2.0,
    "http_429": 4.0,
}


def wait_before_retry(rule: str, headers: Message | Headers, attempt: int, now: datetime | None = None) -> float | None:
    """Seconds to wait before a retry after `rule` ended attempt number `attempt` (from 0); None: no retry.

    Retry-After of the server, in seconds or as a date, overrides our own back-off.
    """
    if rule not in BACK_OFF_SECONDS:
        return None
    requested = retry_after(headers, now or datetime.now(UTC)) if rule.startswith("http_") else None
    return BACK_OFF_SECONDS[rule] * 2**attempt if requested is None else requested


def retry_after(headers: Message | Headers, now: datetime) -> float | None:
    """Seconds from `now` given by Retry-After, 0 for a past date; None if it is absent or invalid."""
    value = str(headers.get("Retry-After", "")).strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)  # "-0000", and dates without a zone, are UTC
    return max(0.0, (date - now).total_seconds())


class HostGate:
    """Limits concurrent requests to one host, and their starts per second."""

    def __init__(self, connections: int, requests_per_second: float) -> None:
        self._slots = threading.BoundedSemaphore(connections)
        self._interval = 1.0 / requests_per_second if requests_per_second > 0 else 0.0
        self._next_start = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._slots.acquire()
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + self._interval
        if start > now:
            time.sleep(start - now)

    def __exit__(self, *exception: object) -> None:
        self._slots.release()


class Breaker:
    """A circuit breaker for a host that does not respond.

    After `max_failures` in a row one request is sent as a probe while others wait for its end. If it fails too, the
    host is given up: all later requests are refused as `host_unavailable`. 0: never give up.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._num_failures = 0
        self._is_probing = False
        self._is_given_up = False
        self._changed = threading.Condition()

    def admit(self, remaining: Callable[[], float]) -> None:
        """Wait until a request may be sent; Refusal host_unavailable, or whatever `remaining` raises when it is 0.

        Each admission must be followed by `answered` or `failed`.
        """
        with self._changed:
            while self._is_probing:
                self._changed.wait(remaining())
            if self._is_given_up:
                raise Refusal("host_unavailable", f"{self._num_failures} requests in a row had no answer")
            self._is_probing = 0 < self._max_failures <= self._num_failures

    def answered(self) -> None:
        """The host sent something."""
        with self._changed:
            self._num_failures = 0
            self._is_probing = self._is_given_up = False
            self._changed.notify_all()

    def failed(self) -> None:
        """The host sent nothing: no connection, or no answer in time."""
        with self._changed:
            self._num_failures += 1
            self._is_given_up = self._is_given_up or self._is_probing
            self._is_probing = False
            self._changed.notify_all()

    def undecided(self) -> None:
        """The request ended without evidence about the host."""
        with self._changed:
            self._is_probing = False
            self._changed.notify_all()
