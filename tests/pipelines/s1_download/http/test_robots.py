"""robots.txt, header signals and the deny list: what a site may forbid us, read strictly."""

import http.client
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.s1_download.http.deny_list import read_deny_list
from pipelines.s1_download.http.guard import Policy, Refusal, parse_target
from pipelines.s1_download.http.limits import Limits
from pipelines.s1_download.http.opt_out import opt_out_signal, usage_signal
from pipelines.s1_download.http.robots import ASK_AGAIN_SECONDS, MAX_ROBOTS_BYTES, RobotsCache, parse_robots
from pipelines.s1_download.http.transport import Fetcher, crawler_policy
from tests.hostile.behaviours import hostile_server
from x2vlm.errors import ConfigError

ALL_AGENTS = "User-agent: *\n"


@pytest.mark.parametrize(
    ("robots", "path", "forbidden"),
    [
        ("", "/a", False),
        (ALL_AGENTS + "Disallow: /", "/a", True),
        (ALL_AGENTS + "Disallow:", "/a", False),
        (ALL_AGENTS + "Disallow: /a", "/abc", True),
        (ALL_AGENTS + "Disallow: /a/", "/a", False),
        (ALL_AGENTS + "Disallow: /A", "/a", False),
        (ALL_AGENTS + "disallow : /a # not this", "/a", True),
        (ALL_AGENTS + "Disallow: /\nAllow: /photos/", "/photos/1.jpg", False),  # the longest match, whatever the order
        (ALL_AGENTS + "Allow: /photos/\nDisallow: /", "/other", True),
        (ALL_AGENTS + "Disallow: /page\nAllow: /page", "/page", False),  # equal length: the allowing one
        (ALL_AGENTS + "Disallow: /*.jpg$", "/x/y.jpg", True),
        (ALL_AGENTS + "Disallow: /*.jpg$", "/x/y.jpg?size=1", False),
        (ALL_AGENTS + "Disallow: /*?", "/x?y", True),
        (ALL_AGENTS + "Disallow: *secret*", "/a/secret/b", True),
        (ALL_AGENTS + "Disallow: /a*b*c$", "/a-b-c-c", True),
        (ALL_AGENTS + "Disallow: /ab*b$", "/ab", False),  # the star cannot use the same b again
        (ALL_AGENTS + "Disallow: /caf%C3%A9", "/café", True),
        (ALL_AGENTS + "Disallow: /café", "/caf%c3%a9", True),
        (ALL_AGENTS + "Disallow: /%61", "/a", True),
        (ALL_AGENTS + "Disallow: /a%2Fb", "/a/b", False),
        (ALL_AGENTS + "Disallow: /", "/robots.txt", False),
        ("User-agent: x2vlm-download\nDisallow: /", "/a", True),
        ("User-agent: X2VLM-Download/9.1\nDisallow: /", "/a", True),
        ("User-agent: x2vlm\nDisallow: /", "/a", False),
        ("User-agent: otherbot\nDisallow: /", "/a", False),
        (ALL_AGENTS + "Disallow: /\nUser-agent: x2vlm-download\nAllow: /", "/a", False),  # the named group alone counts
        (ALL_AGENTS + "Disallow: /\nUser-agent: x2vlm-download\nCrawl-delay: 1", "/a", False),
        ("User-agent: otherbot\nUser-agent: x2vlm-download\nDisallow: /", "/a", True),
        ("User-agent: otherbot\nSitemap: /s\nUser-agent: *\nDisallow: /", "/a", True),
        ("User-agent: otherbot\nDisallow: /x\nUser-agent: *\nDisallow: /y", "/x", False),
        ("User-agent: x2vlm-download\nDisallow: /a\nUser-agent: b\nDisallow: /\n"
         "User-agent: x2vlm-download\nDisallow: /c", "/c", True),  # groups of one name are one group
        ("Disallow: /", "/a", False),  # belongs to no group
        ("\ufeffUser-agent: *\r\nDisallow: /\r\n", "/a", True),
        ("<html>not robots</html>", "/a", False),
        (ALL_AGENTS + "Content-Usage: train-ai=n", "/a", True),
        (ALL_AGENTS + "Content-Usage: train-ai=y", "/a", False),
        (ALL_AGENTS + "Content-Usage: /art train-ai=n\nAllow: /", "/art/1", True),
        (ALL_AGENTS + "Content-Usage: /art train-ai=n\nAllow: /", "/photo/1", False),
        (ALL_AGENTS + "Content-Signal: search=yes, ai-train=no", "/a", True),
        (ALL_AGENTS + "Content-Signal: search=no, ai-train=yes", "/a", False),
    ],
)  # fmt: skip
def test_robots_files(robots: str, path: str, forbidden: bool) -> None:
    assert bool(parse_robots(robots.encode(), "x2vlm-download").refusal(path)) is forbidden


def naive_match(pattern: str, path: str) -> bool:
    """Wildcards by definition, in exponential time."""
    if not pattern:
        return True
    if pattern == "$":
        return not path
    if pattern[0] == "*":
        return any(naive_match(pattern[1:], path[start:]) for start in range(len(path) + 1))
    return bool(path) and path[0] == pattern[0] and naive_match(pattern[1:], path[1:])


@given(st.text("ab*", max_size=8), st.booleans(), st.text("ab", max_size=10))
def test_wildcards_agree_with_their_definition(middle: str, ends: bool, path: str) -> None:
    pattern = f"/{middle}{'$' if ends else ''}"
    robots = parse_robots(f"{ALL_AGENTS}Disallow: {pattern}".encode(), "ours")
    assert bool(robots.refusal(f"/{path}")) is naive_match(pattern, f"/{path}")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_robots_file(body: bytes) -> None:
    robots = parse_robots(ALL_AGENTS.encode() + body, "ours")
    allowed_or_named = {"", *(rule.text for rule in robots.rules if not rule.allows)}
    assert robots.refusal("/a") in allowed_or_named
    assert robots.refusal("/robots.txt") == ""


def test_what_lies_behind_the_size_limit_does_not_count() -> None:
    rule = b"Disallow: /late\n"
    filler = b"#" * (MAX_ROBOTS_BYTES - len(ALL_AGENTS) - 1) + b"\n"
    assert parse_robots(ALL_AGENTS.encode() + rule + filler, "ours").refusal("/late")
    assert not parse_robots(ALL_AGENTS.encode() + filler + rule, "ours").refusal("/late")


def test_a_site_is_asked_once_and_a_failing_one_again_after_a_while() -> None:
    answers = [(503, b""), (503, b""), (200, b"User-agent: *\nDisallow: /no")]
    asked: list[str] = []
    time = 0.0

    def fetch(url: str) -> tuple[int, bytes]:
        asked.append(url)
        return answers.pop(0)

    cache = RobotsCache("ours", tries=2, now=lambda: time)
    page = parse_target("http://site.example:8080/yes?q")
    for _ in range(5):
        with pytest.raises(Refusal, match=r"robots_unreachable: .* answered 503"):
            cache.check(page, fetch)
    assert asked == ["http://site.example:8080/robots.txt"] * 2
    time = ASK_AGAIN_SECONDS
    assert [cache.check(page, fetch) for _ in range(3)] == ["allowed"] * 3
    with pytest.raises(Refusal, match="robots_disallowed: disallow: /no"):
        cache.check(parse_target("http://site.example:8080/no"), fetch)
    assert len(asked) == 3
    answers.append((404, b""))
    assert cache.check(parse_target("http://site.example/no"), fetch) == "no_file"  # another port is another site
    assert len(asked) == 4


def test_a_fetcher_asks_first_and_obeys(tmp_path: Path) -> None:
    with hostile_server() as server:
        policy = Policy(allowed_endpoints=(server.endpoint,))
        limits = Limits(total_seconds=10.0, connect_seconds=1.0, retries=1, host_requests_per_second=0.0)

        def fetch(path: str, status: str | None, body: bytes) -> tuple[str, str]:
            server.robots = None if status is None else (status, body)
            outcome = Fetcher(policy, limits, crawler_policy("ours/1", "ours", ["noai"], reads_robots=True)).fetch(
                f"{server.base}/{path}"
            )
            return outcome.status, outcome.robots

        assert fetch("good", None, b"") == ("ok", "no_file")
        assert fetch("good", "410 Gone", b"") == ("ok", "no_file")
        assert fetch("good", "200 OK", b"") == ("ok", "no_file")
        assert fetch("good", "200 OK", b"User-agent: *\nDisallow: /bad") == ("ok", "allowed")
        assert server.requests["/good"] == 4
        assert fetch("good", "200 OK", b"User-agent: ours\nDisallow: /good")[0] == "robots_disallowed"
        late = b"User-agent: *\nDisallow: /good\n" + b"# \n" * MAX_ROBOTS_BYTES
        assert fetch("good", "200 OK", late)[0] == "robots_disallowed"
        assert fetch("good", "302 Found", b"")[0] == "robots_unreachable"
        assert server.requests["/good"] == 4
        assert fetch("hops/2", "200 OK", b"User-agent: *\nDisallow: /good")[0] == "robots_disallowed"
        assert server.requests["/good"] == 4  # every hop is asked about, not only the first
        before = server.requests["/robots.txt"]
        assert fetch("good", "503 Busy", b"")[0] == "robots_unreachable"
        assert server.requests["/robots.txt"] == before + 2  # one retry
        assert server.requests["/good"] == 4


@pytest.mark.parametrize(
    ("values", "signal"),
    [
        (["noai"], "noai"),
        (["NoAI, NoImageAI"], "noai"),
        (["all"], ""),
        (["nofollow, noimageai"], "noimageai"),
        (["otherbot: noai"], ""),
        (["ours: noai"], "noai"),
        (["OURS : noai"], "noai"),
        (["*: noai"], "noai"),
        (["otherbot: nofollow, noai"], ""),
        (["otherbot: nofollow, ours: noai"], "noai"),
        (["noai, unavailable_after: 25 Jun 2030 15:00:00 PST"], "noai"),
        (["unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT"], ""),
        (["unavailable_after: Wed, 25 Jun 2030 15:00:00 GMT, noai"], "noai"),
        (["max-snippet: 20, noai"], "noai"),
        (["ours: max-image-preview: large"], ""),
        (["index", "noai"], "noai"),
        ([""], ""),
        ([" , ,"], ""),
        (["noai-ish"], ""),
        # What cannot be read counts.
        (["noai; noimageai"], "unreadable"),
        (["no ai"], "unreadable"),
        (["noai=1"], "unreadable"),
        (['"noai"'], "unreadable"),
        (["ours:"], "unreadable"),
        ([": noai"], "unreadable"),
        (["otherbot; ours: all"], "unreadable"),
        (["all\xff"], "unreadable"),
        (["all, " * 2000], "unreadable"),
        (["all", "<noai>"], "unreadable"),
    ],
)
def test_x_robots_tag(values: list[str], signal: str) -> None:
    headers = http.client.HTTPMessage()
    for value in values:
        headers.add_header("X-Robots-Tag", value)
    expected = f"x-robots-tag: {signal}" if signal else ""
    assert opt_out_signal(headers, "ours", {"noai", "noimageai"}) == expected
    assert opt_out_signal(headers, "ours", ()) == ""


@pytest.mark.parametrize(
    ("name", "value", "signal"),
    [
        ("tdm-reservation", "1", "tdm-reservation: 1"),
        ("tdm-reservation", "0", ""),
        ("TDM-Reservation", "yes", "tdm-reservation: unreadable"),
        ("tdm-reservation", "", "tdm-reservation: unreadable"),
        ("Content-Usage", "train-ai=n", "content-usage: train-ai=n"),
        ("Content-Usage", "search=n", ""),
        ("Content-Usage", "train-ai=y, bots=n", ""),
        ("Content-Usage", "bots=n, search=y", "content-usage: bots=n"),
    ],
)
def test_reservations(name: str, value: str, signal: str) -> None:
    headers = http.client.HTTPMessage()
    headers.add_header(name, value)
    assert opt_out_signal(headers, "ours", {"noai"}) == signal


def test_a_usage_that_is_neither_yes_nor_no_counts() -> None:
    assert usage_signal("train-ai=maybe") == "train-ai=maybe"
    assert usage_signal("train-ai") == "train-ai="
    assert usage_signal("train-genai=n;x=1, train-ai=y") == "train-genai=n"
    assert usage_signal("") == ""


def test_a_deny_list_names_domains_and_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "deny.txt"
    path.write_text("# sites\nexample.com\nBücher.example # a book shop\n\nhttps://photos.example/private/\n")
    denied, sha256 = read_deny_list(path)
    assert len(sha256) == 64
    for url, rule in [
        ("http://example.com/x", "example.com"),
        ("https://a.b.EXAMPLE.com:8443/x", "example.com"),
        ("http://example.com./x", "example.com"),
        ("http://bücher.example/", "xn--bcher-kva.example"),
        ("http://photos.example/private/1.jpg", "photos.example/private/"),
        ("http://photos.example/priv%61te/1.jpg", "photos.example/private/"),
    ]:
        with pytest.raises(Refusal) as caught:
            denied.check(parse_target(url))
        assert (caught.value.rule, caught.value.reason) == ("denied_by_list", rule)
    for url in ("http://notexample.com/", "http://photos.example/private", "http://com/", "http://example.com.org/"):
        denied.check(parse_target(url))


@pytest.mark.parametrize("line", ["ftp://host/", "two words", "http://"])
def test_a_bad_line_of_a_deny_list_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "deny.txt"
    path.write_text(f"fine.example\n{line}\n")
    with pytest.raises(ConfigError, match=r"deny\.txt, line 2"):
        read_deny_list(path)
    with pytest.raises(ConfigError, match="absent"):
        read_deny_list(tmp_path / "absent")
