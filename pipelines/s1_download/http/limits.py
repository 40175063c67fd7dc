"""Limits of one URL: sizes, deadlines, and the clock that enforces them."""

import time
from dataclasses import dataclass

from pipelines.s1_download.http.body import BodyLimits
from pipelines.s1_download.http.guard import Refusal


@dataclass(frozen=True)
class Limits:
    """Size limits and deadlines of one URL. Sizes are of the body, compressed and decompressed."""

    max_bytes: int = 32 << 20
    max_ratio: float = 200.0
    connect_seconds: float = 5.0
    total_seconds: float = 20.0
    min_bytes_per_second: float = 8192.0
    rate_grace_seconds: float = 5.0  # the rate counts from the first byte on, after this
    max_redirects: int = 5
    retries: int = 1  # of transient errors: see hosts.BACK_OFF_SECONDS
    host_connections: int = 8
    host_requests_per_second: float = 20.0
    host_max_failures: int = 10  # in a row without a response, then the host is given up; 0: never

    @property
    def body(self) -> BodyLimits:
        """The limits of the body."""
        return BodyLimits(self.max_bytes, self.max_ratio)


class Clock:
    """The remaining time of one URL, and its transfer rate."""

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
