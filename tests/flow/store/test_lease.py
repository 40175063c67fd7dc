"""One driver at a time; the dead, the silent and the released make room; nobody's wall clock decides."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.flow.store import lease as lease_module
from pipelines.flow.store.artifact import seal, unseal
from pipelines.flow.store.identity import Identity, host_name, start_time, this_process
from pipelines.flow.store.lease import Lease, LeaseRecord, acquire, latest_token
from pipelines.flow.store.store import Store
from x2vlm.errors import LeaseLost, PlanBusy, StageFailed
from x2vlm.stores.calls import StoreUnavailable

HOLD = """
import sys
from pipelines.flow.store.lease import acquire
from pipelines.flow.store.store import Store
with acquire(Store(sys.argv[1]), "plan"):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


def holder(store: Store, project_root: Path) -> subprocess.Popen:
    """Another process that holds the lease "plan" until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=project_root,
    )
    assert process.stdout.readline() == "held\n"
    return process


def write_lease(store: Store, token: int, **changes) -> Path:
    record = Lease(store, "plan", token, 60.0).record().model_copy(update=changes)
    path = f"leases/plan/{token:010d}.json"
    store.blobs.write(path, seal(record)[0])
    return Path(store.uri) / path


def foreign_owner() -> dict:
    identity = Identity("elsewhere_boot_1", 1, 2)
    return {"owner": identity.token, "host": identity.host, "pid": identity.pid}


def test_a_lease_has_one_holder_at_a_time(store: Store):
    with acquire(store, "plan") as held:
        held.check()
        with pytest.raises(
            PlanBusy, match=rf"plan plan is being run by process {os.getpid()} .*the plan is free after"
        ):
            acquire(store, "plan")
        with acquire(store, "other plan"):
            pass
    with acquire(store, "plan") as again:
        assert again.token == held.token + 1
    assert store.blobs.find("leases/plan") == ["leases/plan/0000000002.json"]


def test_two_processes_never_hold_it_together(local_store: Store, project_root: Path):
    process = holder(local_store, project_root)
    with pytest.raises(PlanBusy, match=str(process.pid)):
        acquire(local_store, "plan")
    assert process.communicate()[0] == "released\n"
    with acquire(local_store, "plan") as mine:
        assert mine.token == 2


def test_the_lease_of_a_killed_process_is_free_at_once(local_store: Store, project_root: Path):
    process = holder(local_store, project_root)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with acquire(local_store, "plan") as mine:
        assert mine.token == 2


def test_a_later_process_with_the_same_pid_is_not_the_holder(local_store: Store):
    me = this_process()
    reused = Identity(me.host, me.pid, me.started - 1)
    write_lease(local_store, 1, owner=reused.token)
    with acquire(local_store, "plan") as mine:
        assert mine.token == 2


def test_a_silent_lease_of_another_host_expires_by_the_stores_clock(local_store: Store, age):
    path = write_lease(local_store, 1, **foreign_owner())
    with pytest.raises(PlanBusy, match="elsewhere"):
        acquire(local_store, "plan")
    age(path, 59)
    with pytest.raises(PlanBusy, match="elsewhere"):
        acquire(local_store, "plan")
    age(path, 3)
    with acquire(local_store, "plan") as mine:
        assert mine.token == 2


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
def test_wrong_clocks_decide_nothing(local_store: Store, skew: float, monkeypatch, age):
    path = write_lease(local_store, 1, **foreign_owner(), expires=0.0)
    wrong = path.stat().st_mtime + skew
    monkeypatch.setattr(lease_module.time, "time", lambda: wrong)
    with pytest.raises(PlanBusy):
        acquire(local_store, "plan")
    write_lease(local_store, 1, **foreign_owner(), expires=wrong + 10**6)
    age(path, 61)
    with acquire(local_store, "plan") as mine:
        assert mine.token == 2


def test_renewing_keeps_a_lease_alive_and_shows_a_takeover(local_store: Store, age):
    held = acquire(local_store, "plan", ttl_seconds=60)
    path = Path(local_store.uri) / f"leases/plan/{held.token:010d}.json"
    age(path, 100)
    held.renew()
    assert local_store.blobs.age_seconds(f"leases/plan/{held.token:010d}.json") < 50
    age(path, 100)
    new_holder = acquire(local_store, "plan")  # by the same process, which is alive, but was silent
    held.check()
    held.renew()
    with pytest.raises(PlanBusy, match="took over"):
        held.check()
    held.release()
    record, _ = unseal(LeaseRecord, local_store.blobs.read(f"leases/plan/{new_holder.token:010d}.json"), "lease")
    assert record.released is False
    new_holder.check()


def test_the_thread_renews_until_the_lease_is_released(local_store: Store):
    renewed = threading.Event()

    class Watched(Lease):
        def renew(self) -> None:
            super().renew()
            renewed.set()

    held = Watched(local_store, "plan", 1, ttl_seconds=0.03)
    with held:
        assert renewed.wait(30)
    assert not held._thread.is_alive()


def test_trouble_with_the_store_while_renewing_is_survived(local_store: Store, monkeypatch, caplog):
    tried = threading.Event()

    class Failing(Lease):
        def renew(self) -> None:
            if tried.is_set():
                return
            tried.set()
            raise StoreUnavailable("no answer")

        def release(self) -> None:
            super().release()
            raise OSError("still no answer")

    with Failing(local_store, "plan", 1, ttl_seconds=0.03) as held:
        assert tried.wait(30)
    held.check()
    assert "event=lease_not_renewed" in caplog.text
    assert "event=lease_not_released" in caplog.text


def test_an_unreadable_lease_counts_until_it_is_old(local_store: Store, age):
    local_store.blobs.write("leases/plan/0000000004.json", b"garbage")
    with pytest.raises(PlanBusy, match="unreadable"):
        acquire(local_store, "plan")
    age(Path(local_store.uri) / "leases/plan/0000000004.json", 61)
    with acquire(local_store, "plan") as mine:
        assert mine.token == 5


def test_many_contenders_for_a_free_lease_have_one_winner(store: Store):
    barrier, won, lost = threading.Barrier(6), [], []

    def contend() -> None:
        barrier.wait()
        try:
            won.append(acquire(store, "plan"))
        except PlanBusy as error:
            lost.append(error)

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 5)
    assert latest_token(store, "plan") == 1


def test_a_lease_that_keeps_changing_hands_is_given_up(local_store: Store, monkeypatch):
    monkeypatch.setattr(local_store.blobs, "create", lambda path, data: False)
    with pytest.raises(StageFailed, match="changing hands"):
        acquire(local_store, "plan")


def test_processes_are_told_apart():
    me = this_process()
    assert Identity.from_token(me.token) == me
    assert me.is_alive() is True
    assert Identity(me.host, me.pid, me.started + 1).is_alive() is False
    assert Identity("elsewhere_boot_1", me.pid, me.started).is_alive() is None
    assert Identity.from_token("nonsense") is None
    assert host_name() == host_name()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is dead now, but nobody has fetched its exit code
    assert start_time(child.pid) == -1
    child.wait()
    assert start_time(child.pid) == -1


class FakeClock:
    """A monotonic clock that only sleeping moves; `on_sleep` is called at each sleep."""

    def __init__(self, on_sleep=lambda: None) -> None:
        self.now, self._on_sleep = 0.0, on_sleep

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self._on_sleep()


WEEKS = 3 * 7 * 86_400.0


@pytest.mark.parametrize("waits", [False, True])
def test_a_clock_set_back_by_weeks_keeps_no_dead_lease_alive(local_store: Store, waits: bool, age):
    """The file seems to come from the future; whether its holder lives is then measured by a clock that none sets."""
    path = write_lease(local_store, 1, **foreign_owner())
    age(path, -WEEKS)
    clock = FakeClock()
    with acquire(local_store, "plan", waits=waits, clock=clock, sleep=clock.sleep) as mine:
        assert mine.token == 2
    assert 60 <= clock.now <= 62


@pytest.mark.parametrize("seconds", [0.0, -WEEKS])
def test_a_holder_that_renews_is_seen_alive_whatever_its_file_says(local_store: Store, seconds: float, age):
    path = write_lease(local_store, 1, **foreign_owner())
    age(path, -WEEKS)

    def renew() -> None:
        if clock.now > 20:
            write_lease(local_store, 1, **foreign_owner(), expires=clock.now)
            age(path, seconds)

    clock = FakeClock(renew)
    with pytest.raises(PlanBusy, match="elsewhere"):
        acquire(local_store, "plan", waits=True, clock=clock, sleep=clock.sleep)
    assert 20 < clock.now < 30


def test_a_clock_that_jumps_forward_lets_a_silent_lease_go(local_store: Store, age):
    """Its live holder, if there is one, finds itself fenced at its next renewal; nothing waits for weeks."""
    held = acquire(local_store, "plan")
    age(Path(local_store.uri) / f"leases/plan/{held.token:010d}.json", WEEKS)
    with acquire(local_store, "plan") as mine:
        assert mine.token == 2
        with pytest.raises(LeaseLost, match="took over"):
            held.confirm()


def test_a_lost_lease_ends_a_process_that_works_on(local_store: Store, monkeypatch):
    """After the time in which it could have stopped by itself; not where it has done so."""
    told = threading.Event()
    monkeypatch.setattr(lease_module, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(lease_module, "_leaving", lambda reason: told.set() if "took over" in reason else None)
    held = acquire(local_store, "plan", ttl_seconds=0.3)
    with held:
        local_store.blobs.create(f"leases/plan/{held.token + 1:010d}.json", b"{}")
        assert told.wait(30)
        with pytest.raises(LeaseLost):
            held.check()
