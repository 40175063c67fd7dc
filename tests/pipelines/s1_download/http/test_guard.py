"""Which addresses may be contacted: vectors of every kind that were ever used to get around such a guard."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.s1_download.http.connection import tls_context
from pipelines.s1_download.http.guard import (
    PLAIN_URL,
    Policy,
    Refusal,
    Target,
    check_address,
    is_public,
    parse_target,
    take_apart,
)
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.resolver import Resolver, resolve
from pipelines.s1_download.http.transport import Fetcher, crawler_policy, guarded_opener
from tests.hostile.behaviours import hostile_server
from tests.hostile.payloads import jpeg
from tests.hostile.server import HostileServer
from tests.support.download.certificates import self_signed_certificate

FORBIDDEN = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "169.254.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
    "3fff::1",
    "5f00::1",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "2606:4700::1111",
    "11.0.0.1",
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_no_special_address_is_contacted(address: str) -> None:
    with pytest.raises(Refusal) as caught:
        check_address(address, 80, Policy())
    assert caught.value.rule == "address_forbidden"


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass_on_web_ports_only(address: str) -> None:
    check_address(address, 80, Policy())
    check_address(address, 443, Policy())
    with pytest.raises(Refusal) as caught:
        check_address(address, 22, Policy())
    assert caught.value.rule == "port_forbidden"


@given(st.ip_addresses())
def test_whatever_python_calls_special_is_not_public(ip) -> None:  # type: ignore[no-untyped-def]
    if ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        assert not is_public(ip)


def test_an_endpoint_of_ours_is_allowed_and_its_neighbours_are_not() -> None:
    policy = Policy(allowed_endpoints=(("127.0.0.1", 8123),))
    check_address("127.0.0.1", 8123, policy)
    for address, port in (("127.0.0.1", 8124), ("127.0.0.2", 8123), ("127.0.0.1", 80), ("::ffff:127.0.0.1", 8123)):
        with pytest.raises(Refusal, match="address_forbidden"):
            check_address(address, port, policy)


def test_a_card_can_allow_a_network() -> None:
    policy = Policy(allowed_networks=("10.1.0.0/16",))
    check_address("10.1.2.3", 80, policy)
    with pytest.raises(Refusal, match="address_forbidden"):
        check_address("10.2.2.3", 80, policy)
    with pytest.raises(Refusal, match="port_forbidden"):
        check_address("10.1.2.3", 22, policy)


class FixedResolver(Resolver):
    """Gives the answers of a name server that an attacker runs."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self._fixed = list(addresses)

    def addresses(self, host: str, timeout_seconds: float) -> list[str]:
        return self._fixed


def test_one_forbidden_address_among_good_ones_refuses_the_host() -> None:
    target = parse_target("http://two-faced.example/x.jpg")
    assert resolve(target, Policy(), FixedResolver("8.8.8.8", "1.1.1.1"), 1.0) == ["8.8.8.8", "1.1.1.1"]
    with pytest.raises(Refusal, match="address_forbidden"):
        resolve(target, Policy(), FixedResolver("8.8.8.8", "127.0.0.1"), 1.0)


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.1.", "LOCALHOST", "①②⑦.⓪.⓪.①"]
)
def test_no_spelling_of_loopback_passes(host: str) -> None:
    with pytest.raises(Refusal) as caught:
        resolve(parse_target(f"http://{host}/"), Policy(), Resolver(), 5.0)
    assert caught.value.rule in ("address_forbidden", "dns_failed")


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("file:///etc/passwd", "scheme_forbidden"),
        ("ftp://host/x", "scheme_forbidden"),
        ("data:image/png;base64,AAAA", "scheme_forbidden"),
        ("gopher://host/x", "scheme_forbidden"),
        ("//host/x.jpg", "scheme_forbidden"),
        ("x.jpg", "scheme_forbidden"),
        ("", "scheme_forbidden"),
        ("http://user@host/", "userinfo_forbidden"),
        ("http://user:secret@host/", "userinfo_forbidden"),
        ("http://public.example@127.0.0.1/", "userinfo_forbidden"),
        ("http:///x.jpg", "url_malformed"),
        ("http://[::1/x.jpg", "url_malformed"),
        ("http://host:99999/", "url_malformed"),
        ("http://host:port/", "url_malformed"),
        ("http://host:0/", "url_malformed"),
        ("http://ho st/", "url_malformed"),
        ("http://host\\@other/", "userinfo_forbidden"),
        ("http://host\r\nX: y/", "url_malformed"),
        ("http://host/\x00", "url_malformed"),
        ("http://¨/", "url_malformed"),
        ("http://[fe80::1%25eth0]/", "url_malformed"),
        ("http://" + "ä" * 80 + "/", "url_malformed"),
        ("http://host/\ud800", "url_malformed"),
    ],
)  # fmt: skip
def test_urls_that_need_no_network_to_be_refused(url: str, rule: str) -> None:
    with pytest.raises(Refusal) as caught:
        parse_target(url)
    assert caught.value.rule == rule
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "wire"),
    [
        ("  http://Example.COM/a%20b?x=1&y=[2]#part ", "http://example.com/a%20b?x=1&y=[2]"),
        ("http://example.com", "http://example.com/"),
        ("http://example.com:80/ü", "http://example.com/%C3%BC"),
        ("https://example.com:443/a b", "https://example.com/a%20b"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://[2606:4700::1111]:8080/x", "http://[2606:4700::1111]:8080/x"),
    ],
)
def test_urls_take_their_wire_form_once_and_for_all(url: str, wire: str) -> None:
    assert parse_target(url).url == wire
    assert parse_target(wire).url == wire


def target_of(parse: Callable[[str], Target], url: str) -> Target | str:
    try:
        return parse(url)
    except Refusal as refusal:
        return refusal.rule


@given(
    st.sampled_from(["http", "https", "HTTP", "ftp", ""]),
    st.one_of(
        st.sampled_from(["a.example", "10.0.0.1", "A.example", "a_b.example", "[::1]", "u@h", "", ".", "0x7f.1"]),
        st.text("ab.-_%@:[]\u00e4", max_size=8),
    ),
    st.sampled_from(["", ":80", ":443", ":8080", ":0", ":080", ":64999", ":65000", ":65535", ":65536", ":99999", ":"]),
    st.text("ab01/%:@!$&'()*+,;=~._-?#[]| \t\n\x00\\^\"\u00e4\u0661", max_size=12),
)
def test_an_address_that_is_spelt_plainly_means_the_same(scheme: str, host: str, port: str, rest: str) -> None:
    for url in (f"{scheme}://{host}{port}{rest}", f"{scheme}://{host}{port}/{rest}"):
        assert target_of(parse_target, url) == target_of(take_apart, url)


@pytest.mark.parametrize("url", ["http://a.example/x.jpg", "https://10.0.0.1:64999/a/b%20c.jpg?size=[l]&x=1|2"])
def test_most_addresses_are_spelt_plainly(url: str) -> None:
    assert PLAIN_URL.fullmatch(url)


@pytest.mark.parametrize(
    "url",
    ["http://a.example", "http://A.example/", "http://a.example:65535/", "http://a.example/#", "http://a.example/\n",
     "http://a.example/?", "http://u@a.example/", "http://[::1]/", "file:///etc/passwd", "http://a.example/\u0661"],
)  # fmt: skip
def test_what_is_not_spelt_plainly_is_taken_apart(url: str) -> None:
    assert not PLAIN_URL.fullmatch(url)


@given(st.text())
def test_any_text_is_a_target_or_a_refusal(text: str) -> None:
    for url in (text, f"http://{text}", f"http://host/{text}"):
        try:
            target = parse_target(url)
        except Refusal:
            continue
        assert target.url.isascii()
        assert "\n" not in target.url
        assert " " not in target.url


@pytest.fixture
def fetcher() -> Iterator[tuple[Fetcher, str]]:
    with hostile_server() as server:
        policy = Policy(allowed_endpoints=(server.endpoint,))
        limits = Limits(total_seconds=2.0, connect_seconds=1.0, retries=0, host_requests_per_second=0.0)
        yield Fetcher(policy, limits, crawler_policy("test", "test", ["noai"])), server.base


def test_urllib_knows_no_other_way_once_the_opener_is_in(fetcher: tuple[Fetcher, str]) -> None:
    fetch, base = fetcher
    opener = guarded_opener(fetch.fetch)
    with opener.open(f"{base}/good", timeout=1) as response:
        assert response.read() == jpeg()
        assert response.status == 200
    for url in ("file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x", "http://169.254.169.254/"):
        with pytest.raises(Refusal):
            opener.open(url)


def test_a_proxy_in_the_environment_is_ignored(fetcher: tuple[Fetcher, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, base = fetcher
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    assert fetch.fetch(f"{base}/good").status == "ok"


def test_tls_is_verified_and_its_context_is_built_once(fetcher: tuple[Fetcher, str]) -> None:
    fetch, base = fetcher
    assert fetch.fetch(base.replace("http:", "https:") + "/good").status == "tls_failed"
    assert tls_context() is tls_context()
    assert tls_context().check_hostname


def test_a_closed_port_and_an_unknown_name_have_their_own_rules() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        endpoint = ("127.0.0.1", closed.getsockname()[1])
        fetch = Fetcher(Policy(allowed_endpoints=(endpoint,)), Limits(retries=0), crawler_policy("test", "test", []))
        assert fetch.fetch(f"http://127.0.0.1:{endpoint[1]}/").status == "connect_failed"
        assert fetch.fetch("http://no-such-host.invalid/").status == "dns_failed"


def test_a_name_server_that_hangs_costs_its_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: released.wait(30) and [])
    with pytest.raises(Refusal, match="dns_failed"):
        Resolver().addresses("slow.example", 0.05)
    released.set()


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[HostileServer, Path]]:
    """A hostile server behind TLS, and its self-signed certificate for 127.0.0.1."""
    certificate = self_signed_certificate(tmp_path)
    with hostile_server() as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server, certificate


def test_https_is_verified_and_never_leads_back_to_http(
    tls_server: tuple[HostileServer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = tls_server
    limits = Limits(total_seconds=10.0, retries=0, host_requests_per_second=0.0)
    base = server.base.replace("http:", "https:")
    with hostile_server() as plain:
        policy = Policy(allowed_endpoints=(server.endpoint, plain.endpoint))
        fetch = Fetcher(policy, limits, crawler_policy("test", "test", []))
        assert fetch.fetch(f"{base}/good").status == "tls_failed"  # nobody vouches for this certificate
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        tls_context.cache_clear()
        try:
            assert fetch.fetch(f"{base}/good").body == jpeg()
            assert fetch.fetch(f"{base}/hops/3").body == jpeg()
            assert fetch.fetch(f"{base}/to/{plain.base}/good").status == "redirect_downgrade"
            assert fetch.fetch(f"{plain.base}/to/{base}/good").body == jpeg()
            assert fetch.fetch(f"{base.replace('127.0.0.1', 'localhost')}/good").status in (
                "tls_failed",
                "address_forbidden",
            )
        finally:
            tls_context.cache_clear()
        assert plain.num_connections == 1
