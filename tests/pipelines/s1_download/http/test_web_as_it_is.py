"""What servers send that no RFC foresees and browsers accept: good images are kept, and no head costs much."""

import gzip
import itertools
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

import pytest

from pipelines.s1_download.http.body import BodyLimits, read_body
from pipelines.s1_download.http.guard import Policy, Refusal
from pipelines.s1_download.http.head import read_head
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.transport import Fetcher, Outcome, crawler_policy

PICTURE = b"\xff\xd8\xff" + bytes(range(256)) * 4
OK = b"HTTP/1.1 200 OK\r\n"
LIMITS = BodyLimits(1 << 20, 200.0)


def body_of(data: bytes, limits: BodyLimits = LIMITS) -> bytes:
    return read_body(read_head(BytesIO(data)), limits, lambda num_bytes: None)


def answer(*lines: bytes, body: bytes = PICTURE) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines, b"", b""]) + body


WORDS = [
    "none",
    "UTF-8",
    "binary",
    "aws-chunked",
    "identity",
    "8bit",
    "image/jpeg",
    "",
    ",",
    "none, identity,",
    '"none"',
]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_that_is_no_coding_leaves_the_bytes_as_they_are(word: str) -> None:
    assert body_of(answer(b"Content-Encoding: " + word.encode())) == PICTURE
    large = PICTURE * 500  # beyond what is read in one piece
    assert body_of(answer(b"Content-Encoding: " + word.encode(), body=large)) == large


GZIP = gzip.compress(PICTURE)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["aws-chunked,gzip"], GZIP),
        (["", "gzip"], GZIP),
        (["gzip", ""], GZIP),
        (["utf-8", "GZip"], GZIP),
        (["gzip,"], GZIP),
        ([",  x-gzip ;q=1"], GZIP),
        (["none", "deflate", "identity"], zlib.compress(PICTURE)),
        (["deflate, gzip"], gzip.compress(zlib.compress(PICTURE))),
        (["gzip", "gzip"], gzip.compress(GZIP)),
    ],
)
def test_codings_of_all_lines_are_one_list(lines: list[str], body: bytes) -> None:
    heads = [b"Content-Encoding: " + line.encode() for line in lines]
    assert body_of(answer(*heads, body=body)) == PICTURE


@pytest.mark.parametrize("words", ["br", "ZSTD", "none, br", "gzip, br", "compress", "gzip, gzip, gzip"])
def test_a_coding_that_is_not_undone_here_is_named(words: str) -> None:
    with pytest.raises(Refusal, match="encoding_unsupported: content coding"):
        body_of(answer(b"Content-Encoding: " + words.encode()))


def test_a_bomb_inside_a_bomb_is_stopped_at_its_first_layer() -> None:
    bomb = gzip.compress(bytes(24 << 20))
    with pytest.raises(Refusal, match="compression_ratio"):
        body_of(answer(b"Content-Encoding: gzip, gzip", body=gzip.compress(bomb)), BodyLimits(32 << 20, 200.0))
    nothing = GZIP[:10] + b"\x00\x00\x00\xff\xff" * 1_000_000  # empty blocks, of which no byte comes out
    with pytest.raises(Refusal, match=r"body_too_large: .* before they are unpacked"):
        body_of(answer(b"Content-Encoding: gzip, gzip", body=gzip.compress(nothing)), BodyLimits(1 << 20, 1e9))


@pytest.mark.parametrize("coding", [b"chunked,", b"CHUNKED", b" chunked "])
def test_chunks_are_known_in_any_spelling(coding: bytes) -> None:
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PICTURE), PICTURE)
    assert body_of(OK + b"Transfer-Encoding: " + coding + b"\r\n\r\n" + chunks) == PICTURE


def test_a_body_in_tiny_chunks_is_refused_before_it_costs_much() -> None:
    one, many = b"1\r\nx\r\n", 1 << 20
    began = time.process_time()
    with pytest.raises(Refusal, match=r"bad_response: 16\d+ chunks for 16\d+ bytes"):
        body_of(OK + b"Transfer-Encoding: chunked\r\n\r\n" + one * many + b"0\r\n\r\n", BodyLimits(many, 200.0))
    assert time.process_time() - began < 1.0
    lines = b"3e8\r\n" + bytes(1000) + b"\r\n"  # what a page writes line by line
    data = OK + b"Transfer-Encoding: chunked\r\n\r\n" + lines * 20_000 + b"0\r\n\r\n"
    assert len(body_of(data, BodyLimits(32 << 20, 1e9))) == 20_000_000


@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 Whatever"])
@pytest.mark.parametrize("number", [1, 3, 10])
def test_answers_before_the_answer_are_skipped(status: bytes, number: int) -> None:
    interim = b"HTTP/1.1 " + status + b"\r\nLink: </x.css>; rel=preload\r\nContent-Length: 5\r\n\r\n"
    assert body_of(interim * number + answer()) == PICTURE
    with pytest.raises(Refusal, match="bad_response: more than 10 interim"):
        read_head(BytesIO(interim * 11 + answer()))


def test_a_change_of_protocol_is_no_interim_answer() -> None:
    assert read_head(BytesIO(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + answer())).status == 101


BLANKS = b" " * 60_000
TRICKS = {
    "blanks in a value": OK + (b"A: x" + BLANKS + b"y\r\n") * 4,
    "blanks in a folded line": OK + b"A: b\r\n" + (b" x" + BLANKS + b"y\r\n") * 4,
    "blanks in a reason": b"HTTP/1.1 200 " + BLANKS + b"\rx\r\n",
    "blanks before a colon": OK + (b"A" + BLANKS + b"x: y\r\n") * 4,
    "tabs": OK + (b"A:\t" + b"\t \t" * 20_000 + b"\rx\r\n") * 4,
    "folded lines": OK + b"A: b\r\n" + b" a\r\n" * 60_000,
    "lines without a colon": OK + b"x\n" * 100_000,
    "bare CRs": OK + b"A: b" + b"\r" * 60_000 + b"\n",
    "headers": OK + b"A: b\r\n" * 30_000,
    "interim heads": b"HTTP/1.1 103 E\r\n\r\n" * 10_000,
    "large interim heads": (b"HTTP/1.1 103 E\r\n" + (b"A: " + b"x" * 60_000 + b"\r\n") + b"\r\n") * 9,
    "lengths": OK + b"Content-Length: 5\r\n" * 50 + b"Content-Length: 6\r\n",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_head_costs_more_than_a_moment(trick: str) -> None:
    began = time.process_time()
    try:
        body_of(TRICKS[trick] + b"\r\nhello")
    except Refusal as refusal:
        assert refusal.rule == "bad_response"  # noqa: PT017
    assert time.process_time() - began < 0.5  # a pattern with two ways to match blanks took 10 s


@pytest.mark.parametrize("trick", ["folded lines", "lines without a colon", "headers", "interim heads", "lengths"])
def test_budgets_of_a_head_are_refused_by_name(trick: str) -> None:
    with pytest.raises(Refusal, match="bad_response"):
        body_of(TRICKS[trick] + b"\r\nhello")


class Server:
    """Answers each path with given bytes, and counts what is asked for."""

    def __init__(self, routes: dict[str, bytes]) -> None:
        self.routes, self.asked = routes, list[str]()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            data = b""
            while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
                data += more
            path = data.split(b" ")[1].decode("ascii") if data else ""
            self.asked.append(path)
            try:
                connection.sendall(self.routes.get(path, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"))
            except OSError:
                pass  # the client has seen enough

    def close(self) -> None:
        self._listening.close()


Serve = Callable[[dict[str, bytes]], tuple[Server, Callable[[str], Outcome]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(routes: dict[str, bytes]) -> tuple[Server, Callable[[str], Outcome]]:
        server = Server(routes)
        servers.append(server)
        limits = Limits(total_seconds=20.0, retries=0, host_requests_per_second=0.0)
        policy = Policy(allowed_endpoints=(("127.0.0.1", server.port),))
        fetcher = Fetcher(policy, limits, crawler_policy("test", "test", []))
        return server, lambda path: fetcher.fetch(f"http://127.0.0.1:{server.port}{path}")

    yield start
    for server in servers:
        server.close()


def leads_to(location: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/café.jpg".encode(), "/caf%C3%A9.jpg"),
        ("/café.jpg".encode("latin-1"), "/caf%E9.jpg"),
        ("/猫/a b.jpg?q=猫".encode(), "/%E7%8C%AB/a%20b.jpg?q=%E7%8C%AB"),
        ("/猫.jpg".encode("shift_jis"), "/%94L.jpg"),
        ("/ж%20x.jpg#ж".encode("cp1251"), "/%E6%20x.jpg"),
        (b"/\xff\x80\xa0.jpg", "/%FF%80%A0.jpg"),
        (b"/a?x=1&amp;y=2", "/a?x=1&amp;y=2"),
    ],
)
def test_a_redirect_is_followed_byte_for_byte(serve: Serve, location: bytes, asked: str) -> None:
    server, fetch = serve({"/from": leads_to(location), asked: answer(b"Connection: close")})
    outcome = fetch("/from")
    assert (outcome.status, outcome.body) == ("ok", PICTURE), server.asked
    assert server.asked == ["/from", asked]


def test_a_redirect_to_an_international_host_is_asked_as_such(serve: Serve) -> None:
    _, fetch = serve({"/from": leads_to("http://straße.invalid/x.jpg".encode())})
    outcome = fetch("/from")
    assert (outcome.status, outcome.final_url) == ("dns_failed", "http://xn--strae-oqa.invalid/x.jpg")


def test_hostile_heads_cost_their_own_row_and_no_other(serve: Serve) -> None:
    bad = {f"/bad{n}": trick + b"\r\nhello" for n, trick in enumerate(TRICKS.values())}
    good = {f"/good{n}": answer(b"Connection: close") for n in range(40)}
    _, fetch = serve(bad | good)
    outcomes: dict[str, Outcome] = {}

    def work(path: str) -> None:
        outcomes[path] = fetch(path)

    order = [path for pair in itertools.zip_longest(bad, good) for path in pair if path]
    began = time.process_time()
    threads = [threading.Thread(target=work, args=(path,)) for path in order]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path: outcomes[path].status for path in good} == dict.fromkeys(good, "ok")
    assert {outcomes[path].status for path in bad} <= {"ok", "bad_response"}
    assert time.process_time() - began < 5.0
