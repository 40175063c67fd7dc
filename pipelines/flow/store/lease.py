"""One driver at a time works on a plan. The lease saves double work; it is not what keeps the store right.

Commits are content-addressed and atomic, so even two drivers that both believe to hold the lease cannot damage
anything. That is why a simple rule will do:

* `leases/<name>/<token>.json`, token counting up: who creates the next number (create-if-absent) holds the lease.
  Taking over therefore has one winner, and a holder that was away too long sees a higher number and stops (fencing).
* A holder renews its file. A lease is expired when the *store's own clock* says the file was not renewed for `ttl`
  seconds: both times compared are modification times given by the store, never a host's wall clock.
* A holder whose process is visibly dead (same host, boot and process namespace) loses the lease at once, so that the
  same command right after `kill -9` goes on.
* A file from the future says that the store's clock was set back. Then, and for whoever prefers waiting to being
  refused, silence is measured here: for `ttl` seconds of this process's monotonic clock nothing of the file changes.

A holder that finds out that it lost the lease is to stop by itself (`Lease.check`). Where a program has said how it
leaves (`set_leaving`), it is made to after `GRACE_SECONDS`: it may be deep inside a training.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from pipelines.flow.store.artifact import Record, seal, unseal
from pipelines.flow.store.blobs import Blobs
from pipelines.flow.store.identity import Identity, this_process
from pipelines.flow.store.store import Store
from x2vlm.errors import CorruptArtifact, LeaseLost, PlanBusy, StageFailed
from x2vlm.stores.calls import StoreUnavailable

log = logging.getLogger(__name__)

TTL_SECONDS = 60.0
ATTEMPTS = 5
GRACE_SECONDS = 20.0  # from finding the lease lost to being ended; with the third of a TTL before it, under a minute
PATIENCE_SECONDS = 5.0  # that renewing and letting go wait for a store that fails: a renewal is soon due again
FUTURE_SECONDS = 5.0  # by which a file may be newer than the present: stores round

_leaving: Callable[[str], None] | None = None
_held: set["Lease"] = set()  # of this process


class LeaseRecord(Record):
    """Who holds a lease. `expires` (the holder's clock) is for people; nothing is decided by it."""

    format: Literal[1] = 1
    name: str
    token: int
    owner: str
    host: str
    pid: int
    expires: float
    released: bool = False


class Lease:
    """A held lease, renewed by a thread until it is released. Use as a context manager."""

    def __init__(self, store: Store, name: str, token: int, ttl_seconds: float) -> None:
        self.store, self.name, self.token, self.ttl_seconds = store, name, token, ttl_seconds
        self._blobs = store.blobs.within(PATIENCE_SECONDS)
        self._me = this_process()
        self._stop = threading.Event()
        self._lost = ""
        self._thread = threading.Thread(target=self._renew_until_stopped, name=f"lease-{name}", daemon=True)

    def record(self, released: bool = False) -> LeaseRecord:
        """The lease as it is stored now."""
        return LeaseRecord(
            name=self.name,
            token=self.token,
            owner=self._me.token,
            host=self._me.host,
            pid=self._me.pid,
            expires=time.time() + self.ttl_seconds,
            released=released,
        )

    def check(self) -> None:
        """LeaseLost if another driver has taken over."""
        if self._lost:
            raise LeaseLost(self._lost)

    def confirm(self) -> None:
        """As `check`, after a look at the store."""
        self.renew()
        self.check()

    def renew(self) -> None:
        """Show that we are alive, and notice if somebody took over."""
        newest = max(_tokens(self._blobs, self.name), default=0)
        if newest > self.token:
            self._lost = (
                f"plan {self.name}: another driver took over (token {newest} after our {self.token}), because this one "
                f"did not answer for {self.ttl_seconds:.0f} s. What it committed stays; rerun once the other is done"
            )
            log.warning("event=lease_lost name=%s ours=%d newest=%d", self.name, self.token, newest)
            return
        self._blobs.write(_path(self.name, self.token), seal(self.record())[0])

    def release(self) -> None:
        """Let go. The file stays, marked, so that tokens keep counting up."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._lost and max(_tokens(self._blobs, self.name), default=0) == self.token:
            self._blobs.write(_path(self.name, self.token), seal(self.record(released=True))[0])
        _held.discard(self)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            try:
                self.release()
            except BaseException as stop:
                if not isinstance(stop, Exception):  # asked to stop at this very moment: first let go
                    self.release()
                raise
        except (OSError, StoreUnavailable) as failure:  # may be what ended the run; the lease runs out by itself
            log.warning("event=lease_not_released name=%s error=%s", self.name, failure)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self.ttl_seconds / 3) and not self._lost:
            try:
                self.renew()
            except (OSError, StoreUnavailable) as error:  # may pass; if it does not, others see the lease expire
                log.warning("event=lease_not_renewed name=%s error=%s", self.name, error)
        if self._lost and _leaving is not None and not self._stop.wait(GRACE_SECONDS):
            _leaving(self._lost)


def set_leaving(leave: Callable[[str], None] | None) -> None:
    """How this process ends, given the reason, when a lease of its was lost and it works on; None: it does not end."""
    global _leaving
    _leaving = leave


def leaving() -> Callable[[str], None] | None:
    """What `set_leaving` was given."""
    return _leaving


def acquire(
    store: Store,
    name: str,
    ttl_seconds: float = TTL_SECONDS,
    *,
    waits: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """The lease called `name`; PlanBusy, naming the holder, if a live driver has it.

    With `waits` a holder that only may have died is watched until it shows life or was silent for `ttl_seconds` of
    `clock`, where otherwise it would count as alive.
    """
    for _ in range(ATTEMPTS):
        token = latest_token(store, name)
        if token and (holder := _holder(store, name, token, ttl_seconds)) is not None:
            is_watched = waits or store.blobs.age_seconds(_path(name, token)) < -FUTURE_SECONDS
            if not is_watched or _shows_life(store, name, token, ttl_seconds, clock, sleep):
                raise PlanBusy(holder)
            log.warning("event=lease_silent name=%s token=%d seconds=%.0f", name, token, ttl_seconds)
        lease = Lease(store, name, token + 1, ttl_seconds)
        _held.add(lease)
        if store.blobs.create(_path(name, token + 1), seal(lease.record())[0]):
            for old in _tokens(store.blobs, name):
                if old <= token:
                    store.blobs.delete(_path(name, old))
            return lease
        _held.discard(lease)
    raise StageFailed(f"plan {name}: its lease kept changing hands; see who is running it, then rerun the command")


def release_held() -> None:
    """Let go of every lease that this process still holds, on its way out.

    `with` alone does not see to it: a signal handler may raise at the first instruction of `__exit__`.
    """
    for lease in list(_held):
        lease.release()


def latest_token(store: Store, name: str) -> int:
    """The highest token ever given out under this name, 0 if none."""
    return max(_tokens(store.blobs, name), default=0)


def _holder(store: Store, name: str, token: int, ttl_seconds: float) -> str | None:
    """Who holds the lease, in words with a remedy; None if it may be taken."""
    path = _path(name, token)
    data = store.blobs.read(path)
    if data is None:
        return None
    try:
        record, _ = unseal(LeaseRecord, data, store.uri_of(path))
    except CorruptArtifact:
        record = None
    if record is not None and record.released:
        return None
    owner = Identity.from_token(record.owner) if record is not None else None
    if owner is not None and owner.is_alive() is False:
        log.warning("event=lease_taken_from_dead_driver name=%s pid=%d", name, owner.pid)
        return None
    age = store.blobs.age_seconds(path)
    if age > ttl_seconds:
        log.warning("event=lease_expired name=%s age=%.0f ttl=%.0f", name, age, ttl_seconds)
        return None
    who = f"process {record.pid} on {record.host}" if record is not None else "an unreadable lease"
    return (
        f"plan {name} is being run by {who} (last sign of life {max(0.0, age):.0f} s ago). Wait for it or stop it; if "
        f"it died, the plan is free after {ttl_seconds:.0f} s of silence"
    )


def _shows_life(
    store: Store,
    name: str,
    token: int,
    ttl_seconds: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> bool:
    """Whether the holder renews its file within `ttl_seconds`; False as soon as it may be taken."""
    path = _path(name, token)
    first, began = store.blobs.version(path), clock()
    while clock() - began < ttl_seconds:
        sleep(ttl_seconds / 60)
        now = store.blobs.version(path)
        if now is None or latest_token(store, name) != token:
            return False  # released or taken by somebody else: the next attempt sees which
        if now != first:
            data = store.blobs.read(path)
            return data is not None and _holder(store, name, token, ttl_seconds) is not None
        if _holder(store, name, token, ttl_seconds) is None:
            return False
    return False


def _tokens(blobs: Blobs, name: str) -> list[int]:
    stems = [path.rsplit("/", 1)[-1].removesuffix(".json") for path in blobs.find(f"leases/{name}")]
    return [int(stem) for stem in stems if stem.isdigit()]


def _path(name: str, token: int) -> str:
    return f"leases/{name}/{token:010d}.json"
