"""How hosts are treated: names asked for once, silence given up on, Retry-After obeyed."""

import contextlib
import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pipelines.s1_download.http.guard import Policy, Refusal
from pipelines.s1_download.http.hosts import BACK_OFF_SECONDS, Breaker, retry_after, wait_before_retry
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.resolver import Memory, Resolver
from pipelines.s1_download.http.transport import Fetcher, crawler_policy
from tests.hostile.behaviours import hostile_server


class NameServer:
    """A name server with a clock: an answer takes 50 ms, and each host that is `in_trouble` fails until its time."""

    def __init__(self) -> None:
        self.time = 0.0
        self.questions: Counter[str] = Counter()
        self.in_trouble: dict[str, float] = {}
        self.unknown: set[str] = set()

    def ask(self, host: str, timeout_seconds: float) -> tuple[list[str], float | None]:
        assert timeout_seconds > 0
        self.questions[host] += 1
        self.time += 0.05
        if host in self.unknown:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        if self.time < self.in_trouble.get(host, 0.0):
            raise socket.gaierror(socket.EAI_AGAIN, "SERVFAIL")
        return ["192.0.2.1"], 30.0

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def resolver(self, **memory: float) -> Resolver:
        return Resolver(self.ask, Memory(**memory), lambda: self.time, self.sleep)  # type: ignore[arg-type]


def test_a_hundred_thousand_urls_of_five_thousand_hosts_ask_once_a_host() -> None:
    server = NameServer()
    resolver = server.resolver()
    hosts = [f"host-{number}.example" for number in range(5000)]
    for url in range(100_000):  # as in a shuffled list: all hosts, twenty times
        host = hosts[url % 5000]
        if url < 5000 and url % 20 == 0:  # 5 % of the hosts answer SERVFAIL at first
            server.in_trouble[host] = server.time + 0.3
        assert resolver.addresses(host, 10.0) == ["192.0.2.1"]
    assert sum(server.questions.values()) <= 1.05 * 5000
    assert set(server.questions) == set(hosts)


def test_no_host_is_lost_to_an_outage_that_passes() -> None:
    server = NameServer()
    resolver = server.resolver()
    hosts = [f"host-{number}.example" for number in range(1000)]
    server.in_trouble = dict.fromkeys(hosts, 3600.0)
    for host in hosts:
        with pytest.raises(Refusal, match=r"dns_failed.*SERVFAIL"):
            resolver.addresses(host, 10.0)
    memory = Memory()
    # All hosts failing at once must not double the load of a server that has too much of it.
    assert sum(server.questions.values()) <= 1000 + memory.free_retries + memory.max_retry_fraction * 1200
    server.time = 3600.0
    before = server.questions.copy()
    assert all(resolver.addresses(host, 10.0) for host in hosts)
    assert set((server.questions - before).values()) == {1}


def test_a_failure_is_waited_out_and_an_unknown_name_is_remembered() -> None:
    server = NameServer()
    memory = {"retries": 0, "failure_seconds": 5.0, "broken_seconds": 60.0, "no_such_name_seconds": 100.0}
    resolver = server.resolver(min_seconds=1000.0, **memory)
    server.unknown = {"unknown.example"}
    server.in_trouble = {"busy.example": 12.0, "short.example": 3000.0}

    def asked(host: str, at: float, seconds: float = 10.0) -> tuple[int, float]:
        """How many questions `host` has cost when it is wanted at this time too, and how long that took."""
        server.time = at
        with contextlib.suppress(Refusal):
            resolver.addresses(host, seconds)
        return server.questions[host], round(server.time - at, 2)

    assert asked("busy.example", 0.0) == (1, 0.05)
    assert asked("busy.example", 1.0) == (2, 4.1)  # at 5.05, when the failure is forgotten
    assert asked("busy.example", 6.0, seconds=2.0) == (2, 0.0)  # whoever has less time than that goes without
    assert asked("busy.example", 6.0) == (3, 4.15)  # at 10.1, the third time: the host counts as broken
    assert asked("busy.example", 13.0) == (3, 0.0)
    assert asked("busy.example", 70.1) == (3, 0.0)
    assert asked("busy.example", 70.2) == (4, 0.05)
    assert asked("busy.example", 1070.0) == (4, 0.0)
    assert asked("busy.example", 1070.3) == (5, 0.05)
    assert [asked("unknown.example", at)[0] for at in (2000.0, 2099.0, 2100.1)] == [1, 1, 2]


def test_retries_end_with_the_callers_time() -> None:
    server = NameServer()
    server.in_trouble = {"busy.example": 1e9}
    with pytest.raises(Refusal):
        server.resolver(retries=10).addresses("busy.example", 2.0)
    assert server.time <= 2.0
    assert server.questions["busy.example"] == 4  # at 0, 0.3, 0.85 and 1.9; the next would come too late


def test_threads_that_want_one_host_wait_for_one_answer() -> None:
    asking, answer = threading.Event(), threading.Event()
    questions: list[str] = []

    def ask(host: str, timeout_seconds: float) -> tuple[list[str], None]:
        questions.append(host)
        asking.set()
        assert answer.wait(30)
        return ["192.0.2.1", "192.0.2.1"], None

    resolver = Resolver(ask)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(resolver.addresses("one.example", 30.0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert asking.wait(30)
    with pytest.raises(Refusal, match="no answer in time"):
        resolver.addresses("one.example", 0.01)  # who has less time goes without
    answer.set()
    for thread in threads:
        thread.join()
    assert found == [["192.0.2.1"]] * 8
    assert questions == ["one.example"]


NOW = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Wed, 01 Jul 2026 12:00:30 GMT", 30.0),
        ("Wed, 01 Jul 2026 14:00:30 +0200", 30.0),
        ("Wednesday, 01-Jul-26 12:01:00 GMT", 60.0),
        ("Wed Jul  1 12:02:00 2026", 120.0),
        ("Wed, 01 Jul 2026 11:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("\u0661", None),
        ("Wed, 99 Jul 2026 12:00:30 GMT", None),
        ("9" * 400, 999_999_999.0),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    headers = http.client.HTTPMessage()
    headers.add_header("Retry-After", value)
    assert retry_after(headers, NOW) == seconds


def test_waits_grow_by_class_and_the_server_has_the_last_word() -> None:
    nothing = http.client.HTTPMessage()
    asked = http.client.HTTPMessage()
    asked.add_header("Retry-After", "33")
    for rule, seconds in BACK_OFF_SECONDS.items():
        assert [wait_before_retry(rule, nothing, attempt) for attempt in range(3)] == [
            seconds,
            2 * seconds,
            4 * seconds,
        ]
    assert wait_before_retry("http_503", asked, 1, NOW) == 33.0
    assert wait_before_retry("connect_failed", asked, 0, NOW) == BACK_OFF_SECONDS["connect_failed"]
    for rule in ("http_404", "address_forbidden", "deadline_exceeded", "robots_disallowed", "host_unavailable"):
        assert wait_before_retry(rule, nothing, 0) is None


def no_end() -> float:
    return 30.0


def attempt(breaker: Breaker, end: Callable[[], None]) -> str:
    """What became of one more request, if it was admitted."""
    try:
        breaker.admit(no_end)
    except Refusal as refusal:
        return refusal.rule
    end()
    return "asked"


def test_a_silent_host_is_given_up_after_one_probe() -> None:
    breaker = Breaker(3)
    assert [attempt(breaker, breaker.failed) for _ in range(6)] == ["asked"] * 4 + ["host_unavailable"] * 2


def test_one_answer_restores_trust() -> None:
    breaker = Breaker(3)
    for _ in range(3):
        assert [attempt(breaker, breaker.failed) for _ in range(3)] == ["asked"] * 3
        assert attempt(breaker, breaker.answered) == "asked"  # the probe
    assert attempt(Breaker(0), breaker.failed) == "asked"


def test_others_wait_for_the_probe_and_then_know() -> None:
    breaker = Breaker(1)
    breaker.admit(no_end)
    breaker.failed()
    breaker.admit(no_end)  # the probe is out
    verdicts: list[str] = []
    threads = [threading.Thread(target=lambda: verdicts.append(attempt(breaker, breaker.answered))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert verdicts == []
    breaker.failed()
    for thread in threads:
        thread.join()
    assert verdicts == ["host_unavailable"] * 4


def test_a_closed_port_costs_few_connections_and_each_url_a_rule() -> None:
    with socket.socket() as closed, hostile_server() as server:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        endpoint = ("127.0.0.1", closed.getsockname()[1])
        limits = Limits(retries=0, host_requests_per_second=0.0, host_max_failures=3, total_seconds=10.0)
        fetcher = Fetcher(
            Policy(allowed_endpoints=(endpoint, server.endpoint)), limits, crawler_policy("test", "test", [])
        )
        dead = [fetcher.fetch(f"http://127.0.0.1:{endpoint[1]}/{number}").status for number in range(20)]
        assert dead == ["connect_failed"] * 4 + ["host_unavailable"] * 16
        # Another port is another server, and bad answers are answers.
        statuses = [fetcher.fetch(f"{server.base}/nowhere").status for _ in range(5)]
        assert statuses == ["http_404"] * 5
        assert fetcher.fetch(f"{server.base}/good").status == "ok"
