"""Names asked of a real name server that lies, is late, fails, or is asked by many processes at once."""

import ipaddress
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipelines.project import PROJECT_ROOT
from pipelines.s1_download.child.protocol import Item
from pipelines.s1_download.child.runner import child_environment, fetch_items
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.guard import Policy, Refusal, parse_target
from pipelines.s1_download.http.name_cache import NameStore, open_name_store
from pipelines.s1_download.http.name_servers import ask_name_servers
from pipelines.s1_download.http.resolver import (
    Memory,
    Resolver,
    numeric_address,
    open_resolver,
    parse_name_server,
    resolve,
)
from tests.hostile.behaviours import hostile_server
from tests.hostile.names import AAAA, NXDOMAIN, REFUSED, SERVFAIL, A, NameServer, Reply, always, first, name_server

LIE = Reply(("127.0.0.2",))
TRUTH = Reply(("192.0.2.1", "192.0.2.2", "2001:db8::1"))
ANSWERS = {
    "plain.test": always("192.0.2.1", "192.0.2.2", "2001:db8::1"),
    "four.test": always("192.0.2.1"),
    "six.test": always("2001:db8::1"),
    "late.test": always("192.0.2.1", delay=0.2),
    "chain.test": always("192.0.2.1", aliases=("a.test", "b.test", "c.test", "end.test")),
    "truncated.test": always("192.0.2.1", is_truncated=True),
    "many.test": always(*(f"192.0.2.{number}" for number in range(100))),
    "forged-id.test": always("192.0.2.1", after=(Reply(("127.0.0.2",), wrong_id=True),)),
    "forged-question.test": always("192.0.2.1", after=(Reply(("127.0.0.2",), wrong_question=True),)),
    "noise.test": always("192.0.2.1", after=(Reply(is_garbage=True),) * 20),
    "half.test": lambda nth: Reply(("192.0.2.1",)),
}
FAILURES: dict[str, tuple[Callable[[int], Reply], int | None]] = {
    "nothing.test": (always(), socket.EAI_NODATA),
    "absent.test": (always(rcode=NXDOMAIN), socket.EAI_NONAME),
    "loop.test": (always(aliases=("a.test", "loop.test")), socket.EAI_NONAME),
    "long-chain.test": (always(aliases=tuple(f"a{number}.test" for number in range(30))), socket.EAI_NONAME),
    "dangling.test": (always(aliases=("nowhere.test",)), socket.EAI_NODATA),
    "failing.test": (always(rcode=SERVFAIL), socket.EAI_AGAIN),
    "refused.test": (always(rcode=REFUSED), socket.EAI_AGAIN),
    "silent.test": (always(is_silent=True), None),
    "wrong-id.test": (always("192.0.2.1", wrong_id=True), None),
    "wrong-question.test": (always("192.0.2.1", wrong_question=True), None),
    "garbage.test": (always(is_garbage=True), None),
    "pointer.test": (always(pointer_loop=True), None),
    "cut.test": (always("192.0.2.1", is_truncated=True, refuses_tcp=True), None),
    "a..b": (always("192.0.2.1"), socket.EAI_NONAME),
    "x" * 64 + ".test": (always("192.0.2.1"), socket.EAI_NONAME),
}


@pytest.fixture(scope="module")
def server():  # type: ignore[no-untyped-def]
    with name_server({**ANSWERS, **{name: behaviour for name, (behaviour, _) in FAILURES.items()}}) as running:
        yield running


def ask(server: NameServer, host: str, seconds: float = 5.0) -> tuple[list[str], float | None]:
    return ask_name_servers([parse_name_server(server.address)], host, seconds)


@pytest.mark.parametrize("host", ANSWERS)
def test_what_answers_the_question_is_the_answer(server: NameServer, host: str) -> None:
    addresses, seconds = ask(server, host)
    truth = ANSWERS[host](0).addresses
    assert addresses == [address for address in truth if "." in address] + [a for a in truth if ":" in a]
    assert seconds == 60


@pytest.mark.parametrize("host", FAILURES)
def test_what_does_not_answer_it_is_a_failure_of_its_kind(server: NameServer, host: str) -> None:
    with pytest.raises(OSError) as caught:
        ask(server, host, 0.2)
    expected = FAILURES[host][1]
    assert caught.value.errno == expected if expected is not None else not isinstance(caught.value, socket.gaierror)


def test_one_family_is_enough_if_the_other_fails() -> None:
    names = {"half.test": always("192.0.2.1", types=(A,)), "other-half.test": always("2001:db8::1", types=(AAAA,))}
    with name_server(names) as server:
        assert ask(server, "half.test", 0.3) == (["192.0.2.1"], 60)
        assert ask(server, "other-half.test", 0.3) == (["2001:db8::1"], 60)


def test_the_next_name_server_is_asked_and_a_closed_port_costs_nothing(server: NameServer) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        closed = bound.getsockname()
    with name_server({"plain.test": always(rcode=SERVFAIL)}) as failing:
        servers = [closed, parse_name_server(failing.address), parse_name_server(server.address)]
        assert ask_name_servers(servers, "plain.test", 5.0)[0] == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
        with pytest.raises(OSError):
            ask_name_servers([closed], "plain.test", 5.0)


def test_questions_cannot_be_guessed() -> None:
    with name_server(other=lambda name: always("192.0.2.1")) as server:
        for number in range(40):
            ask(server, f"host-{number}.test")
        assert len(server.senders) == 80
        # 80 of 65,536 at random: more than two pairs alike is one case in 10^5. Ports: 40 of 28,232.
        assert len({identity for _, identity in server.senders}) >= 78
        assert len({port for port, _ in server.senders}) >= 38


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]", None),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("dns.example", None),
        ("192.0.2.1:", None),
        ("192.0.2.1:0", None),
        ("192.0.2.1:65536", None),
        ("192.0.2.1:-1", None),
        ("", None),
    ],
)
def test_name_servers_are_addresses(text: str, server: tuple[str, int] | None) -> None:
    if server is None:
        with pytest.raises(ValueError):
            parse_name_server(text)
        with pytest.raises(ValueError):
            DownloadConfig(name_servers=(text,))
    else:
        assert parse_name_server(text) == server


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("::1", "::1"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
        ("1.2.3.4.5", ""),
        ("999.1.1.1", ""),
        ("host.1x", ""),
        ("dead.beef", ""),
        ("127.0.0.1.example", ""),
    ],
)
def test_addresses_in_any_spelling_are_no_names(host: str, address: str) -> None:
    if address:
        assert ipaddress.ip_address(numeric_address(host)) == ipaddress.ip_address(address)
        with name_server() as server:
            assert open_resolver([server.address], None).addresses(host, 1.0) == [numeric_address(host)]
            assert not server.questions
    else:
        assert numeric_address(host) == ""


def test_a_name_that_changes_its_answer_is_judged_by_each_and_asked_for_once() -> None:
    policy = Policy(allowed_networks=("192.0.2.0/24",))
    target = parse_target("http://rebind.test/x.jpg")
    names = {"rebind.test": first(Reply(("192.0.2.1",), seconds_to_live=0), Reply(("127.0.0.1",), seconds_to_live=0))}
    with name_server(names) as server:
        resolver = resolver_of(server)
        assert [resolve(target, policy, resolver, 5.0) for _ in range(5)] == [["192.0.2.1"]] * 5
        assert server.hosts_asked() == {"rebind.test": 1}
        uncached = resolver_of(server, min_seconds=0.0)
        server.questions.clear()
        assert resolve(target, policy, uncached, 5.0) == ["192.0.2.1"]
        with pytest.raises(Refusal, match="address_forbidden"):
            resolve(target, policy, uncached, 5.0)


def resolver_of(server: NameServer, store: NameStore | None = None, **memory: float) -> Resolver:
    servers = [parse_name_server(server.address)]
    return Resolver(
        lambda host, seconds: ask_name_servers(servers, host, seconds),
        Memory(**memory),  # type: ignore[arg-type]
        store=store,
    )


def test_a_store_is_shared_and_outlives_its_process(tmp_path: Path) -> None:
    with name_server({"known.test": always("192.0.2.1", "2001:db8::1")}) as server:
        for _ in range(3):  # each as a new process would: nothing in memory, the file on disk
            resolver = resolver_of(server, NameStore(tmp_path / "names"))
            assert resolver.addresses("known.test", 5.0) == ["192.0.2.1", "2001:db8::1"]
            with pytest.raises(Refusal, match=r"dns_failed.*no such name"):
                resolver.addresses("unknown.test", 5.0)
        assert server.hosts_asked() == {"known.test": 1, "unknown.test": 1}


def test_failures_that_may_pass_are_not_shared(tmp_path: Path) -> None:
    with name_server({"busy.test": first(Reply(rcode=SERVFAIL), Reply(("192.0.2.1",)))}) as server:
        with pytest.raises(Refusal, match="SERVFAIL"):
            resolver_of(server, NameStore(tmp_path / "names"), retries=0).addresses("busy.test", 5.0)
        assert resolver_of(server, NameStore(tmp_path / "names")).addresses("busy.test", 5.0) == ["192.0.2.1"]


def test_what_is_stored_holds_as_long_as_it_should(tmp_path: Path) -> None:
    store = NameStore(tmp_path / "names")
    store.put("a.test", ["192.0.2.1"], 1000.0)
    store.put("old.test", ["192.0.2.1"], -1.0)
    store.put("none.test", socket.gaierror(socket.EAI_NONAME, "no such name"), 1000.0)
    found = store.get("a.test")
    assert found is not None
    assert found[0] == ["192.0.2.1"]
    assert 990 < found[1] <= 1000
    assert store.get("old.test") is store.get("other.test") is None
    found = store.get("none.test")
    assert found is not None
    assert isinstance(found[0], socket.gaierror)
    assert found[0].errno == socket.EAI_NONAME


def test_a_broken_store_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with name_server({"known.test": always("192.0.2.1")}) as server:
        store = NameStore(tmp_path / "names")
        (tmp_path / "names").write_bytes(b"not a database, as after a full disk" * 1000)
        for leftover in tmp_path.glob("names-*"):
            leftover.unlink()
        assert resolver_of(server, store).addresses("known.test", 5.0) == ["192.0.2.1"]
        (tmp_path / "folder").write_bytes(b"a file where the folder should be")
        assert open_name_store([server.address], tmp_path / "folder") is None


def test_a_folder_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert open_name_store([]) is not None
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    assert open_name_store([]) is None
    folder.rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    assert open_name_store([]) is None


ASK_ALL = """
import sys, json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipelines.s1_download.http.guard import Refusal
from pipelines.s1_download.http.resolver import open_resolver
resolver = open_resolver([sys.argv[1]], Path(sys.argv[2]))
def look_up(host):
    try:
        return resolver.addresses(host, 10.0)
    except Refusal as refusal:
        return refusal.rule
with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(look_up, json.loads(sys.stdin.read())))))
"""


def test_processes_that_start_together_ask_once(tmp_path: Path) -> None:
    hosts = [f"host-{number}.test" for number in range(150)]
    with name_server(other=lambda name: always("192.0.2.1", delay=0.02)) as server:
        command = [sys.executable, "-c", ASK_ALL, server.address, str(tmp_path)]
        environment = child_environment()
        children = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
            for _ in range(3)
        ]
        answers = []
        for child in children:
            assert child.stdin
            child.stdin.write(json.dumps(hosts))
            child.stdin.close()
        for child in children:
            assert child.stdout
            answers.append(json.loads(child.stdout.read()))
            assert child.wait() == 0
        assert answers == [[["192.0.2.1"]] * 150] * 3
        assert server.hosts_asked() == dict.fromkeys(hosts, 1)


def test_a_process_that_dies_while_it_asks_holds_nobody_up(tmp_path: Path) -> None:
    script = "\n".join(
        [
            "import sys, pathlib, os",
            "from pipelines.s1_download.http.name_cache import NameStore",
            "with NameStore(pathlib.Path(sys.argv[1])).asking('host.test', 1.0):",
            "    print('asking', flush=True)",
            "    sys.stdin.read()",
        ]
    )
    command = [sys.executable, "-c", script, str(tmp_path / "names")]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONPATH": str(PROJECT_ROOT)}, text=True
    )
    try:
        assert child.stdout
        assert child.stdout.readline() == "asking\n"
        with name_server({"host.test": always("192.0.2.1")}) as server:
            resolver = resolver_of(server, NameStore(tmp_path / "names"))
            started = threading.Event()
            found: list[list[str]] = []

            def look_up() -> None:
                started.set()
                found.append(resolver.addresses("host.test", 60.0))

            thread = threading.Thread(target=look_up)
            thread.start()
            assert started.wait(10)
            assert not server.questions  # it waits for the other process
            child.kill()
            thread.join()
            assert found == [["192.0.2.1"]]
    finally:
        child.kill()
        child.wait()


def run_list(server: NameServer, resolver: Resolver, urls: list[str], threads: int = 64) -> dict[str, str]:
    """What each host of a list of URLs ended as: "ok", or the rule, once any of its URLs failed."""
    verdicts: dict[str, str] = {}

    def look_up(host: str) -> None:
        try:
            assert resolver.addresses(host, 10.0) == ["192.0.2.1"]
            verdicts.setdefault(host, "ok")
        except Refusal as refusal:
            verdicts[host] = refusal.rule

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(look_up, urls):
            pass
    return verdicts


def five_in_a_hundred_fail_at_first(name: str) -> Callable[[int], Reply]:
    number = int(name.split(".")[0].removeprefix("host-"))
    good = Reply(("192.0.2.1",), delay=0.05)
    return first(Reply(rcode=SERVFAIL, delay=0.05), good) if number % 20 == 0 else always("192.0.2.1", delay=0.05)


@pytest.mark.parametrize(
    ("num_urls", "num_hosts"), [(2_000, 200), pytest.param(100_000, 5_000, marks=pytest.mark.slow)]
)
def test_a_list_asks_once_a_host_and_loses_none(tmp_path: Path, num_urls: int, num_hosts: int) -> None:
    """A question is A and AAAA of a name, sent together; each SERVFAIL gets one more."""
    hosts = [f"host-{number}.test" for number in range(num_hosts)]
    random.Random(0).shuffle(hosts)
    with name_server(other=five_in_a_hundred_fail_at_first) as server:
        resolver = resolver_of(server, NameStore(tmp_path / "names"))
        verdicts = run_list(server, resolver, [hosts[url % num_hosts] for url in range(num_urls)])
        assert verdicts == dict.fromkeys(hosts, "ok")
        asked = server.hosts_asked()
        assert sum(asked.values()) == num_hosts + num_hosts // 20  # 1.05 a host
        assert sum(server.questions.values()) == 2 * sum(asked.values())
        # The next child, or the next part on this machine, asks nothing.
        again = resolver_of(server, NameStore(tmp_path / "names"))
        assert run_list(server, again, hosts) == verdicts
        assert server.hosts_asked() == asked


@pytest.mark.slow
def test_no_host_is_lost_where_five_questions_in_a_hundred_fail_at_any_time() -> None:
    """Each question for itself, retries too, so that 1 / 0.95 = 1.053 a host is the least that loses nobody."""
    hosts = [f"host-{number}.test" for number in range(2_000)]
    dice = random.Random(0)

    def unreliable(name: str) -> Callable[[int], Reply]:
        return always("192.0.2.1") if dice.random() >= 0.05 else always(rcode=SERVFAIL)

    with name_server(other=unreliable) as server:
        resolver = resolver_of(server)
        verdicts = run_list(server, resolver, hosts * 5)
        assert verdicts == dict.fromkeys(hosts, "ok")
        assert sum(server.hosts_asked().values()) <= 1.08 * 2_000


def test_no_host_is_lost_after_an_outage(tmp_path: Path) -> None:
    hosts = [f"host-{number}.test" for number in range(100)]
    with name_server(other=lambda name: always("192.0.2.1")) as server:
        memory = {"failure_seconds": 0.05, "retry_wait_seconds": 0.01, "broken_seconds": 3600.0}
        resolver = resolver_of(server, NameStore(tmp_path / "names"), **memory)
        server.is_down = True
        for _ in range(4):  # more than patience: every host counts as broken
            assert run_list(server, resolver, hosts) == dict.fromkeys(hosts, "dns_failed")
        before = sum(server.hosts_asked().values())
        assert run_list(server, resolver, hosts) == dict.fromkeys(hosts, "dns_failed")
        assert sum(server.hosts_asked().values()) == before  # and is not asked for
        server.is_down = False
        assert resolver.addresses("another.test", 5.0) == ["192.0.2.1"]  # whoever notices
        assert run_list(server, resolver, hosts) == dict.fromkeys(hosts, "ok")


def fetch(folder: Path, urls: list[str], port: int, server: NameServer, **values: Any) -> list[str]:
    """What a part's children make of these videos."""
    folder.mkdir()
    config = DownloadConfig(
        name_servers=(server.address,), allow_networks=("127.0.0.1/32",), allow_ports=(port,), reads_robots=False,
        video_threads=1, retries=0, **values
    )  # fmt: skip
    items = [Item(index, "video", url) for index, url in enumerate(urls)]
    results = fetch_items(items, folder, config, config.policy())
    return [results[item.id].status for item in items]


def test_children_and_parts_of_one_machine_share_what_they_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with hostile_server() as web, name_server(other=lambda name: always("127.0.0.1")) as server:
        first_part = [f"http://a.test:{web.port}/clip", f"http://b.test:{web.port}/kill-once"]
        assert fetch(tmp_path / "0", first_part, web.port, server) == ["kept", "not_a_video"]
        assert web.requests["/kill-once"] == 2  # its first child died, and the second one knew the name
        second_part = [f"http://b.test:{web.port}/clip/1", f"http://a.test:{web.port}/clip/2"]
        assert fetch(tmp_path / "1", second_part, web.port, server) == ["kept", "kept"]
        assert server.hosts_asked() == {"a.test": 1, "b.test": 1}


def test_a_later_round_asks_again_for_what_did_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with hostile_server() as web, name_server() as server:
        urls = [f"http://young.test:{web.port}/clip"]
        assert fetch(tmp_path / "0", urls, web.port, server) == ["dns_failed"]
        server.names["young.test"] = always("127.0.0.1")
        assert fetch(tmp_path / "1", urls, web.port, server) == ["dns_failed"]  # as remembered
        assert fetch(tmp_path / "2", urls, web.port, server, retry=("dns",)) == ["kept"]
        assert server.hosts_asked() == {"young.test": 2}
