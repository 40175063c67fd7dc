"""Heads of responses: what http.client reads as well is read alike, and what cannot be read is refused by name."""

import http.client
from email.message import Message
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.s1_download.http.guard import Refusal, parse_target
from pipelines.s1_download.http.head import Headers, read_head
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.opt_out import opt_out_signal
from pipelines.s1_download.http.transport import Fetcher, crawler_policy, request_head
from x2vlm.errors import ConfigError

OK = b"HTTP/1.1 200 OK\r\n"
NAMES = st.sampled_from(
    ["X-Robots-Tag", "x-robots-tag", "Content-Type", "CONTENT-LENGTH", "Retry-After", "tdm-reservation"]
)
# http.client's readers keep blanks at the end of a value, and so does nothing that reads ours.
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f\x85"), max_size=30).map(
    lambda text: text.strip(" \t\xa0")
)


class Answer:
    """What http.client needs of a socket that has received `data`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> BytesIO:
        return BytesIO(self._data)


def read_by_http_client(data: bytes) -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(Answer(data))  # type: ignore[arg-type]
    response.begin()
    return response


@given(st.integers(200, 599), st.text("abc DEF-", max_size=12), st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_what_http_client_reads_is_read_alike(status: int, reason: str, lines: list[tuple[str, str]]) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    data = f"HTTP/1.1 {status} {reason}\r\n{head}\r\nthe body".encode("latin-1")
    ours, theirs = read_head(BytesIO(data)), read_by_http_client(data)
    assert (ours.status, ours.reason) == (theirs.status, theirs.reason)
    assert ours.fp.read() == b"the body"
    for name in {name for name, _ in lines} | {"Absent"}:
        assert ours.headers.get_all(name, []) == theirs.headers.get_all(name, [])
        assert ours.headers.get(name, "") == theirs.headers.get(name, "")
        assert (name in ours.headers) == (name in theirs.headers)
    expected = theirs.headers.get_content_type() if "Content-Type" in theirs.headers else ""
    assert ours.headers.content_type() == expected


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "connection_reset"),
        (OK[:-4], "connection_reset"),
        (OK + b"Content-Type: image/jpeg\r\n", "connection_reset"),
        (b"GIF89a, all there is", "bad_response"),
        (b"ICY 200 OK\r\n\r\n", "bad_response"),
        (b"HTTP/2 200 OK\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 twohundred OK\r\n\r\n", "bad_response"),
        (OK + b"A: " + b"x" * 65536 + b"\r\n\r\n", "bad_response"),
        (OK + b"A: b\r\n" * 101 + b"\r\n", "bad_response"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 11 + OK + b"\r\n", "bad_response"),
    ],
)
def test_what_is_no_head_is_refused_by_name(data: bytes, rule: str) -> None:
    with pytest.raises(Refusal) as refusal:
        read_head(BytesIO(data))
    assert refusal.value.rule == rule


def test_a_hundred_headers_after_ten_interim_heads_are_read() -> None:
    interim = b"HTTP/1.1 100 Continue\r\nA: interim\r\n\r\n"
    response = read_head(BytesIO(interim * 10 + OK + b"A: b\n" * 100 + b"\nbody"))
    assert (response.status, response.headers.get_all("a"), response.fp.read()) == (200, ["b"] * 100, b"body")


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"no colon here\r\n",
        b" folded: onto nothing\r\n",
        b"a name: with a blank\r\n",
        b"no colon\r\n and folded\r\n",
        b"n\xe4me: \xff\x00\r\n",
        b"X-Robots-Tag: all\r\n",
    ],
)
@pytest.mark.parametrize("line", [b"X-Robots-Tag: noai", b"X-Robots-Tag : noai", b"x-robots-tag:all,\r\n\tnoai"])
def test_an_opt_out_is_seen_wherever_it_stands(before: bytes, line: bytes) -> None:
    headers = read_head(BytesIO(OK + before + line + b"\r\n\r\n")).headers
    assert opt_out_signal(headers, "ours", {"noai"}) == "x-robots-tag: noai"


@pytest.mark.parametrize("between", [b"\r", b"\x00", b"\x0b"])
def test_a_byte_that_hides_an_opt_out_does_not_help(between: bytes) -> None:
    headers = read_head(BytesIO(OK + b"X-Robots-Tag: all" + between + b"noai\r\n\r\n")).headers
    assert opt_out_signal(headers, "ours", {"noai"})


def test_no_header_is_shared_between_answers() -> None:
    first = Headers([("A", "b")])
    assert Headers().get_all("A") == []
    assert first.get("a") == "b"


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_request_is_one_head_whatever_the_url_says(path: str, query: str) -> None:
    try:
        target = parse_target(f"http://a.example:8080/{path}?{query}")
    except Refusal:
        return
    lines = request_head(target, "ours/1.0").split(b"\r\n")
    assert lines[0] == f"GET {target.path} HTTP/1.1".encode()
    assert lines[0].count(b" ") == 2
    assert lines[1] == b"Host: a.example:8080"
    assert lines[-2:] == [b"", b""]
    assert len(lines) == 7
    assert not any(character < 0x20 or character > 0x7E for line in lines for character in line)


@pytest.mark.parametrize(
    ("url", "host"), [("http://a.example/x", b"a.example"), ("https://[2606::1]:444/", b"[2606::1]:444")]
)
def test_the_host_is_named_as_the_url_does(url: str, host: bytes) -> None:
    assert b"\r\nHost: " + host + b"\r\n" in request_head(parse_target(url), "ours")


def test_a_user_agent_that_would_end_its_line_is_a_config_error() -> None:
    from pipelines.s1_download.http.guard import Policy

    with pytest.raises(ConfigError, match="user_agent"):
        Fetcher(Policy(), Limits(), crawler_policy("ours\r\nX: y", "ours", ()))


def test_a_mail_message_is_understood_too() -> None:
    message = Message()
    message["X-Robots-Tag"] = "noai"
    assert opt_out_signal(message, "ours", {"noai"}) == "x-robots-tag: noai"
