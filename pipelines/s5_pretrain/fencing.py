"""One driver at a time trains in a state folder, and the processes of another one notice that they are no longer its.

The driver holds a lease in the folder itself (`<state>/leases/training/<token>.json`), whatever plan it works on. Its
token is in the job and in every checkpoint. The lease saves double work; the token keeps the folder right: a driver
that was paused, silent for `TTL_SECONDS` and so taken over still has processes that train, or trains itself when it
wakes. Each of them looks for a higher token every few seconds and before each checkpoint, and ends without writing.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

from pipelines.flow.store.lease import TTL_SECONDS, Lease, acquire, latest_token, leaving
from pipelines.flow.store.store import Store
from x2vlm.command_line import EXIT_FENCED
from x2vlm.errors import LeaseLost

log = logging.getLogger(__name__)

LEASE = "training"
LOOK_SECONDS = 10.0


def sole_driver(state_uri: str, ttl_seconds: float = TTL_SECONDS) -> Lease:
    """The lease on a state folder, as a context manager. PlanBusy if a live driver trains there."""
    return acquire(Store(state_uri), LEASE, ttl_seconds, waits=True)


def leave(reason: str) -> None:
    """End this process at once. Nothing may be closed in good order: that would write."""
    if (own := leaving()) is not None:  # this is the driver itself
        own(reason)
    logging.shutdown()
    os._exit(EXIT_FENCED)


class Fence:
    """What a training process asks before it writes: is `token` still the highest of the state folder?

    `token` None: no driver gave one, nothing is asked.
    """

    def __init__(self, state_uri: str, token: int | None) -> None:
        self._token, self._state_uri = token, state_uri
        self._store = None if token is None else Store(state_uri)

    def check(self) -> None:
        """LeaseLost if another driver has taken over."""
        if self._store is None or self._token is None:
            return
        newest = latest_token(self._store, LEASE)
        if newest > self._token:
            raise LeaseLost(
                f"{self._state_uri}: another driver trains this run now (token {newest}, ours is {self._token}), "
                "because ours was silent for too long. Nothing more is written by this one; what it saved stays"
            )

    @contextlib.contextmanager
    def watched(self, leave: Callable[[str], None] = leave, seconds: float = LOOK_SECONDS) -> Iterator[None]:
        """Inside the block a thread looks every `seconds` and calls `leave` once another driver has taken over."""
        is_over = threading.Event()

        def look() -> None:
            while not is_over.wait(seconds):
                try:
                    self.check()
                except LeaseLost as error:
                    log.error("event=fenced %s", error)
                    leave(str(error))
                    return
                except Exception as error:  # the store does not answer: then nobody can write
                    log.warning("event=fence_not_seen error=%r", str(error))

        thread = threading.Thread(target=look, name="fence", daemon=True)
        if self._token is not None:
            thread.start()
        try:
            yield
        finally:
            is_over.set()
