"""Whatever bytes a server sends, the answer is an outcome with one name; nothing else leaves the fetcher."""

import socket
import threading
from collections.abc import Iterator
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.s1_download.http.body import BodyLimits, read_body
from pipelines.s1_download.http.guard import Policy, Refusal
from pipelines.s1_download.http.head import read_head
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.transport import Fetcher, crawler_policy


class Parrot:
    """Sends `data` to whoever connects, whatever they ask."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.data = b""
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return  # closed
            with connection:
                try:
                    while not connection.recv(65536).endswith(b"\r\n\r\n"):
                        pass
                    connection.sendall(self.data)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(1)  # until the client has gone, so that nothing unread turns into a reset
                except OSError:
                    pass


@pytest.fixture(scope="module")
def parrot() -> Iterator[tuple[Parrot, Fetcher]]:
    parrot = Parrot()
    endpoint = ("127.0.0.1", parrot.listening.getsockname()[1])
    limits = Limits(max_bytes=100_000, total_seconds=20.0, retries=0, host_requests_per_second=0.0)
    yield parrot, Fetcher(Policy(allowed_endpoints=(endpoint,)), limits, crawler_policy("test", "test", ["noai"]))
    parrot.listening.close()


NAMES = st.sampled_from(
    ["Content-Length", "Transfer-Encoding", "Content-Encoding", "Location", "Content-Type", "X-Robots-Tag",
     "Retry-After", "Connection", "tdm-reservation", ""]
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(["chunked", "gzip", "deflate", "gzip, chunked", "-1", "0", "5", "5, 6", "9" * 30, "noai", ":::"]),
    st.sampled_from(["http://[::1/", "//[", "\\\\x", "http://\x7f/", "%", "http://%zz/", "?", "http://1.2.3.4.5/"]),
    st.sampled_from([';charset="', "\xff\xfe"]),
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=40),
)
STATUS = st.sampled_from(
    ["200 OK", "301 Moved", "206 Partial", "204 No", "100 Continue", "101 Up", "429 Busy", "999", "x"]
)
PIECES = [b"5\r\n", b"hello", b"\r\n", b"0\r\n\r\n", b"-1\r\n", b"ffffffffffffffff\r\n", b"\x1f\x8b\x08"]
BODIES = st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    heads = draw(st.lists(st.tuples(NAMES, VALUES), max_size=6))
    lines = [f"HTTP/1.{draw(st.sampled_from('019'))} {draw(STATUS)}", *(f"{name}: {value}" for name, value in heads)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + draw(BODIES)


RULES = {
    "ok", "bad_response", "truncated_body", "empty_body", "body_too_large", "compression_ratio", "encoding_unsupported",
    "opted_out", "connection_reset", "too_many_redirects", "scheme_forbidden", "url_malformed", "userinfo_forbidden",
    "address_forbidden", "port_forbidden", "dns_failed",
}  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(responses(), st.binary(max_size=400)))
def test_any_response_is_an_outcome_of_one_name(parrot: tuple[Parrot, Fetcher], data: bytes) -> None:
    server, fetcher = parrot
    server.data = data
    host, port = server.listening.getsockname()
    outcome = fetcher.fetch(f"http://{host}:{port}/x.jpg")
    assert outcome.status in RULES or outcome.status.startswith("http_")
    assert (outcome.body is not None) == (outcome.status == "ok")
    assert outcome.body is None or 0 < len(outcome.body) <= 100_000


def body_of(data: bytes, limits: BodyLimits) -> bytes:
    return read_body(read_head(BytesIO(data)), limits, lambda num_bytes: None)


@given(st.binary(min_size=1, max_size=2000), st.lists(st.integers(1, 700), max_size=8))
def test_chunks_give_back_what_was_cut_up(body: bytes, sizes: list[int]) -> None:
    pieces, start = [], 0
    for size in [*sizes, len(body)]:
        if piece := body[start : start + size]:
            pieces.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        start += size
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head + b"".join(pieces) + b"0\r\n\r\n"
    assert body_of(data, BodyLimits(2000, 200.0)) == body
    with pytest.raises(Refusal, match="truncated_body"):
        body_of(data[: -len(b"0\r\n\r\n") - 1], BodyLimits(2000, 200.0))


@pytest.mark.parametrize("size", [1000, 256 << 10, (256 << 10) + 1, 1_000_000])
@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_of_exactly_the_cap_passes_and_one_more_byte_does_not(size: int, is_announced: bool) -> None:
    body = bytes(range(250)) * (size // 250 + 1)
    for extra in (0, 1):
        sent = body[: size + extra]
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(sent)}\r\n\r\n" if is_announced else "HTTP/1.1 200 OK\r\n\r\n"
        data = head.encode() + sent
        if extra:
            with pytest.raises(Refusal, match="body_too_large"):
                body_of(data, BodyLimits(size, 200.0))
        else:
            assert body_of(data, BodyLimits(size, 200.0)) == sent
        assert body_of(data, BodyLimits(size, 200.0, cuts_long_bodies=True)) == sent[:size]
