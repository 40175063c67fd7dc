"""The download stage, children and all, run once over every misbehaviour that the hostile web knows.

Each case is a URL whose host the hostile name server answers for, and what must become of it: kept, or dropped by
exactly one rule. Servers listen on 127.0.0.2 and ::1 too, on the very port that is allowed, where nothing is: whatever
they are sent, a single connection is a failure.
"""

import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest

from tests.hostile.behaviours import hostile_server
from tests.hostile.names import NXDOMAIN, SERVFAIL, A, Behaviour, Reply, always, first, name_server
from tests.hostile.payloads import jpeg
from tests.hostile.server import HostileServer
from tests.hostile.web_cases import WEB_CASES
from tests.support.download.certificates import self_signed_certificate
from tests.support.download.stage import Downloaded, download, make_samples

WEB, LIE = "127.0.0.1", "127.0.0.2"


# Where a redirect leads to. {port} is the one port that is allowed beside 80 and 443; servers listen on it at addresses
# that are not.
REDIRECT_CASES = {
    "private-v4": ("http://10.0.0.1:{port}/", "address_forbidden"),
    "loopback-neighbour": ("http://127.0.0.2:{port}/good", "address_forbidden"),
    "loopback-v6": ("http://[::1]:{port}/good", "address_forbidden"),
    "mapped": ("http://[::ffff:127.0.0.2]:{port}/good", "address_forbidden"),
    "mapped-hex": ("http://[::ffff:7f00:2]:{port}/good", "address_forbidden"),
    "compatible": ("http://[::127.0.0.2]:{port}/good", "address_forbidden"),
    "6to4": ("http://[2002:7f00:2::]:{port}/good", "address_forbidden"),
    "nat64": ("http://[64:ff9b::7f00:2]:{port}/good", "address_forbidden"),
    "teredo": ("http://[2001::7f00:2]:{port}/good", "address_forbidden"),
    "link-local-v6": ("http://[fe80::1]:{port}/good", "address_forbidden"),
    "scoped-v6": ("http://[fe80::1%25lo]:{port}/good", "url_malformed"),
    "decimal": ("http://2130706434:{port}/good", "address_forbidden"),
    "hex": ("http://0x7f000002:{port}/good", "address_forbidden"),
    "hex-dotted": ("http://0x7f.0.0.0x2:{port}/good", "address_forbidden"),
    "octal": ("http://0177.0.0.2:{port}/good", "address_forbidden"),
    "short": ("http://127.2:{port}/good", "address_forbidden"),
    "dotted-end": ("http://127.0.0.2.:{port}/good", "address_forbidden"),
    "circled-digits": ("http://%E2%91%A0%E2%91%A1%E2%91%A6.0.0.2:{port}/good", "address_forbidden"),
    "unspecified": ("http://0.0.0.0:{port}/good", "address_forbidden"),
    "metadata": ("http://169.254.169.254/latest/meta-data", "address_forbidden"),
    "metadata-v6": ("http://[fd00:ec2::254]/latest/meta-data", "address_forbidden"),
    "name-of-private": ("http://private.test:{port}/good", "address_forbidden"),
    "other-port": ("http://web.test:22/", "port_forbidden"),
    "file": ("file:///etc/hostname", "scheme_forbidden"),
    "ftp": ("ftp://web.test/x.jpg", "scheme_forbidden"),
    "data": ("data:image/gif;base64,R0lGODlhAQABAAAAACw=", "scheme_forbidden"),
    "javascript": ("javascript:alert(1)", "scheme_forbidden"),
    "gopher": ("gopher://127.0.0.2:{port}/_GET", "scheme_forbidden"),
    "userinfo": ("http://web.test@127.0.0.2:{port}/good", "userinfo_forbidden"),
    "backslashes": ("http:\\\\127.0.0.2:{port}\\good", "http_404"),  # a path of the same host, to us
    "no-host": ("http:///good", "kept"),  # likewise, by RFC 3986's backward compatible way
    "broken-v6": ("http://[::1/good", "url_malformed"),
    "tab": ("http://web.test:{port}/go\tod", "kept"),  # urljoin leaves it out, as browsers do
    "same-scheme": ("//web.test:{port}/good", "kept"),
    "relative": ("../../good", "kept"),
    "only-a-query": ("?x=y", "too_many_redirects"),
    "upper-case": ("HTTP://WEB.TEST:{port}/good#part", "kept"),
}

# Names, each asked for /good. The web server listens at 127.0.0.1 only, which alone is allowed.
NAME_CASES: dict[str, tuple[Behaviour, str]] = {
    "plain": (always(WEB), "kept"),
    "rebinds": (first(Reply((WEB,), seconds_to_live=0), Reply((LIE,), seconds_to_live=0)), "kept"),
    "rebinds-back": (first(Reply((LIE,), seconds_to_live=0), Reply((WEB,), seconds_to_live=0)), "address_forbidden"),
    "two-faced": (always(WEB, LIE), "address_forbidden"),
    "two-faced-v6": (always(WEB, "::1"), "address_forbidden"),
    "private": (always("10.0.0.1"), "address_forbidden"),
    "mapped-answer": (always("::ffff:127.0.0.1"), "address_forbidden"),
    "nat64-answer": (always("64:ff9b::7f00:1"), "address_forbidden"),
    "metadata-answer": (always("169.254.169.254"), "address_forbidden"),
    "alias": (always(WEB, aliases=("a.test", "b.test", "c.test")), "kept"),
    "alias-of-private": (always(LIE, aliases=("innocent.test",)), "address_forbidden"),
    "alias-loop": (always(aliases=("a.test", "alias-loop.test")), "dns_failed"),
    "alias-of-nothing": (always(aliases=("nowhere.test",)), "dns_failed"),
    "forged-id": (always(WEB, after=(Reply((LIE,), wrong_id=True),)), "kept"),
    "forged-question": (always(WEB, after=(Reply((LIE,), wrong_question=True),)), "kept"),
    "only-forged": (always(LIE, wrong_id=True), "dns_failed"),
    "noise": (always(WEB, after=(Reply(is_garbage=True),) * 5), "kept"),
    "pointer-loop": (always(pointer_loop=True), "dns_failed"),
    "truncated": (always(WEB, is_truncated=True), "kept"),
    "truncated-for-ever": (always(WEB, is_truncated=True, refuses_tcp=True), "dns_failed"),
    "truncated-lie": (always(WEB, LIE, is_truncated=True), "address_forbidden"),
    "slow-answer": (always(WEB, delay=0.5), "kept"),
    "no-answer": (always(is_silent=True), "dns_failed"),
    "half-an-answer": (always(WEB, types=(A,)), "kept"),
    "failing": (always(rcode=SERVFAIL), "dns_failed"),
    "failing-once": (first(Reply(rcode=SERVFAIL), Reply((WEB,))), "kept"),
    "absent": (always(rcode=NXDOMAIN), "dns_failed"),
    "without-addresses": (always(), "dns_failed"),
}

# URLs of the list itself. {tls} is a server with a certificate for 127.0.0.1 that the children trust.
LIST_CASES = {
    "http://127.0.0.2:{port}/good": "address_forbidden",
    "http://[::1]:{port}/good": "address_forbidden",
    "http://2130706434:{port}/good": "address_forbidden",
    "http://0x7f.2:{port}/good": "address_forbidden",
    "http://127.0.0.1:22/": "port_forbidden",
    "https://127.0.0.1:{tls}/good": "kept",
    "https://127.0.0.1:{tls}/redirect/downgrade": "redirect_downgrade",
    "https://web.test:{tls}/good": "tls_failed",
    "https://127.0.0.1:{port}/good": "tls_failed",
    "file:///etc/hostname": "scheme_forbidden",
    "http://user:secret@web.test:{port}/good": "userinfo_forbidden",
    "http://web.test:99999/": "url_malformed",
    "not a url": "scheme_forbidden",
    "": "missing_url",
}


def name_of(path: str) -> str:
    return path.replace("/", "-").replace(".", "-") + ".web.test"


def cases(port: int, tls: int) -> dict[str, str]:
    """URL -> what must become of it."""
    expected = {f"http://{name_of(path)}:{port}/{path}": verdict for path, verdict in WEB_CASES.items()}
    for name, (_, verdict) in REDIRECT_CASES.items():
        expected[f"http://{name}.from.test:{port}/redirect/{name}"] = verdict
    for name, (_, verdict) in NAME_CASES.items():
        expected[f"http://{name}.test:{port}/good"] = verdict
    # Once more at the name that rebinds: by now it would lead to the server that must not be contacted.
    expected[f"http://rebinds.test:{port}/good/red"] = "kept"
    expected[f"http://rebinds.test:{port}/redirect/to-itself"] = "kept"
    return expected | {url.format(port=port, tls=tls): verdict for url, verdict in LIST_CASES.items()}


@dataclass
class Hostile:
    """The one run, and who was contacted in it."""

    run: Downloaded
    web: HostileServer
    tls: HostileServer
    forbidden: list[HostileServer]
    questions: Counter[str]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile-web")

    def web_name(name: str) -> Behaviour | None:
        return always(WEB) if name.endswith((".web.test", ".from.test")) or name == "web.test" else None

    with ExitStack() as stack:
        web, tls = stack.enter_context(hostile_server()), stack.enter_context(hostile_server())
        forbidden = [stack.enter_context(hostile_server(address, web.port)) for address in (LIE, "::1")]
        certificate = self_signed_certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        tls.socket = context.wrap_socket(tls.socket, server_side=True)
        web.locations = {name: location.format(port=web.port) for name, (location, _) in REDIRECT_CASES.items()}
        web.locations["to-itself"] = f"http://rebinds.test:{web.port}/good/blue"
        tls.locations["downgrade"] = f"http://web.test:{web.port}/good"
        known = {f"{name}.test": behaviour for name, (behaviour, _) in NAME_CASES.items()}
        names = stack.enter_context(name_server(known, web_name))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("TMPDIR", str(folder))  # what the children remember of names
        patch.setenv("SSL_CERT_FILE", str(certificate))
        run = download(
            folder,
            make_samples(list(cases(web.port, tls.port))),
            store={"kind": "original", "check": "decode"},
            name_servers=(names.address,),
            allow_ports=(80, 443, web.port, tls.port),
            max_image_bytes=8 << 20,
            connect_timeout_seconds=2.0,
            image_deadline_seconds=8.0,
            rate_grace_seconds=0.5,
            retries=1,
        )
        yield Hostile(run, web, tls, forbidden, names.hosts_asked())


def test_every_case_ends_as_it_must(hostile: Hostile) -> None:
    expected = cases(hostile.web.port, hostile.tls.port)
    verdicts = hostile.run.verdicts
    assert {url: (verdicts[url], must) for url, must in expected.items() if verdicts[url] != must} == {}
    assert verdicts.keys() == expected.keys()
    assert len(expected) >= 170


def test_not_one_byte_comes_from_where_nothing_may_be_asked(hostile: Hostile) -> None:
    assert [server.num_connections for server in hostile.forbidden] == [0, 0]
    assert hostile.web.num_connections > 150


def test_each_row_has_one_verdict_and_totals_add_up(hostile: Hostile) -> None:
    statuses = Counter(row["status"] for row in hostile.run.ledger)
    kept = statuses.pop("kept")
    count = hostile.run.result.counts["rows"]
    count.check("hostile web")
    assert (count.num_in, count.num_out, dict(count.dropped)) == (len(hostile.run.ledger), kept, dict(statuses))
    drops = pq.read_table(hostile.run.path / "drops.parquet").to_pylist()
    assert Counter(drop["rule"] for drop in drops) == statuses
    assert all(drop["reason"] for drop in drops if drop["rule"] != "missing_url")


def test_a_name_is_asked_for_once_whatever_its_time_to_live_says(hostile: Hostile) -> None:
    failing = {f"{name}.test" for name in ("failing", "only-forged", "pointer-loop", "truncated-for-ever", "no-answer")}
    asked = {name: count for name, count in hostile.questions.items() if name not in failing}
    assert asked == {name: 2 if name == "failing-once.test" else 1 for name in asked}
    assert all(2 <= hostile.questions[name] <= 5 for name in failing)  # as often as there is time for
    assert hostile.questions["rebinds.test"] == 1


def test_what_hides_behind_an_image_is_not_stored(hostile: Hostile) -> None:
    stored = {}
    for sample in hostile.run.kept:
        assert sample.media
        assert sample.url
        stored[sample.url.rpartition("/")[2]] = hostile.run.pack.read(sample.media.sha256)
    assert b"PK\x03\x04" not in stored["jpeg-zip"]
    assert b"<script>" not in stored["png-trailing"]
    assert stored["trailing"] == stored["second-response"] == stored["good"] == jpeg()
