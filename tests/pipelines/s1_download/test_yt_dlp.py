"""Videos that come through yt-dlp: when it may be asked, what it gives, and what it cannot get around."""

import json
import os
import socket
import stat
import sys
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.flow.run.planner import Plan, check_due, plan
from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.store import Store
from pipelines.s1_download.child.yt_dlp import arguments, check_command, find_command
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD
from pipelines.s1_download.http.deny_list import DenyList
from pipelines.s1_download.http.guard import Policy
from pipelines.s1_download.http.guarded_proxy import guarded_proxy
from pipelines.s1_download.http.resolver import Resolver
from pipelines.s1_download.read import READ, ReadConfig
from tests.hostile.behaviours import hostile_server
from tests.hostile.payloads import jpeg
from tests.hostile.server import HostileServer
from tests.support.download.routes import download_by_route
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Caption, Sample, sample_key

PROGRAM = """#!{python}
# Behaves like yt-dlp where it meets us: options, proxy, the file it leaves, its words and its exit status.
import json, os, sys, urllib.error, urllib.request
options, url = sys.argv[1:-2], sys.argv[-1]
assert sys.argv[-2] == "--"
value = lambda name: options[options.index(name) + 1]
with open({log!r}, "a") as file:
    file.write(json.dumps({{"argv": sys.argv[1:], "env": dict(os.environ), "files": os.listdir(".")}}) + chr(10))
proxies = dict.fromkeys(("http", "https"), value("--proxy"))
opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
name, _, agent = value("--add-headers").partition(":")
try:
    data = opener.open(urllib.request.Request(url, headers={{name: agent}})).read()
except urllib.error.HTTPError as error:
    sys.exit("ERROR: [generic] Unable to download webpage: HTTP Error %d: %s" % (error.code, error.reason))
if len(data) > int(value("--max-filesize")):
    print("[download] File is larger than max-filesize (%d bytes > x). Aborting." % len(data))
    sys.exit(0)
open(value("--output") % {{"ext": "mp4"}}, "wb").write(data)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program called yt-dlp on PATH; the log of its runs."""
    log, path = tmp_path / "runs.jsonl", tmp_path / "bin" / "yt-dlp"
    path.parent.mkdir()
    path.write_text(PROGRAM.format(python=sys.executable, log=str(log)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def videos(server: HostileServer, paths: Sequence[str]) -> list[Sample]:
    """Two clips of every video."""
    samples = []
    for number, path in enumerate(paths):
        for start in (0.0, 1.0):
            row = f"{number}#{start}"
            sample = Sample(
                sample_key("t", row), "t", row, "train", "video", f"{server.base}/{path}", (Caption("a test"),)
            )
            samples.append(replace(sample, start_seconds=start, end_seconds=start + 1))
    return samples


def allowed(server: HostileServer, **values: Any) -> dict[str, Any]:
    network = {"allow_networks": ("127.0.0.1/32",), "allow_ports": (80, 443, server.endpoint[1])}
    own = {"yt_dlp_domains": ("127.0.0.1",), "allow_yt_dlp": True, "yt_dlp_videos_per_second": 0.0, "video_threads": 1}
    return {**network, **own, **values}


def test_without_the_experiments_word_the_site_is_not_contacted(tmp_path: Path, program: Path) -> None:
    with hostile_server() as server:
        samples = videos(server, ["clip/a"])
        ledger, _, result = download_by_route(tmp_path, samples, **allowed(server, allow_yt_dlp=False))
        assert server.num_connections == 0
    assert result.counts["rows"].dropped == {"needs_yt_dlp": 2}
    assert "see `terms` of the card" in ledger[0]["reason"]
    assert not program.exists()


def test_videos_come_through_the_program_once_each_and_everything_else_by_its_rule(
    tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with hostile_server() as server, hostile_server("127.0.0.2") as forbidden:
        server.robots = ("200 OK", b"User-agent: *\nDisallow: /clip/private")
        paths = ["clip/a", "clip/private", "nowhere", f"to/{forbidden.base}/clip", "clip/b", "busy", "clip/after"]
        values = allowed(server, allow_ports=(80, 443, server.endpoint[1], forbidden.endpoint[1]))
        ledger, kept, result = download_by_route(tmp_path, videos(server, paths), **values)
        assert forbidden.num_connections == 0
        assert server.user_agents == {DownloadConfig().user_agent}
        assert {path: server.requests[f"/{path}"] for path in paths} == dict.fromkeys(paths, 1) | {
            "clip/private": 0,
            "clip/after": 0,
        }
    rules = ["kept", "robots_disallowed", "http_404", "address_forbidden", "kept", "http_429", "http_429"]
    assert [row["status"] for row in ledger] == [rule for rule in rules for _ in range(2)]
    assert "not asked again" in ledger[-1]["reason"]
    assert Counter(result.counts["rows"].dropped) == Counter(rule for rule in rules * 2 if rule != "kept")
    assert len({sample.media.sha256 for sample in kept if sample.media}) == 2  # both videos are the same file
    runs = [json.loads(line) for line in program.read_text().splitlines()]
    assert len(runs) == 5  # neither what robots.txt forbids nor what comes after a 429
    for run in runs:
        assert "canary" not in run["env"].values()
        assert not {"HTTP_PROXY", "http_proxy", "AWS_SECRET_ACCESS_KEY"} & set(run["env"])
        assert run["files"] == ["words"]  # its home: no settings, cookies or netrc of anybody
        assert {"--ignore-config", "--no-cookies", "--no-cookies-from-browser", "--no-plugin-dirs"} <= set(run["argv"])
        assert not {"--cookies", "--netrc", "--username", "--geo-bypass", "--no-check-certificates"} & set(run["argv"])
        assert run["argv"][-2:][0] == "--"


def test_size_is_capped_by_the_program_and_by_us(tmp_path: Path, program: Path) -> None:
    with hostile_server() as server:
        ledger, _, _ = download_by_route(tmp_path, videos(server, ["clip/a"]), **allowed(server, max_video_bytes=1000))
    assert {row["status"] for row in ledger} == {"body_too_large"}


def test_a_program_that_does_not_end_is_ended(tmp_path: Path, program: Path) -> None:
    with hostile_server() as server:
        ledger, _, _ = download_by_route(
            tmp_path, videos(server, ["hang"]), **allowed(server, video_deadline_seconds=2.0)
        )
    assert {row["status"] for row in ledger} == {"deadline_exceeded"}


@pytest.mark.slow
@pytest.mark.skipif(find_command() is None, reason="needs yt-dlp: pip install 'x2vlm[yt-dlp]'")
def test_the_real_program_takes_our_options(tmp_path: Path) -> None:
    with hostile_server() as server, hostile_server("127.0.0.2") as forbidden:
        paths = [
            "clip/film.mp4",
            "nowhere/x.mp4",
            f"to/{forbidden.base}/clip/film.mp4",
            "html",
            "busy/x.mp4",
            "clip/film.mp4?again",
        ]
        values = allowed(server, allow_ports=(server.endpoint[1], forbidden.endpoint[1]))
        ledger, kept, _ = download_by_route(tmp_path, videos(server, paths), **values)
        assert forbidden.num_connections == 0
        assert server.user_agents == {DownloadConfig().user_agent}
    rules = ["kept", "http_404", "address_forbidden", "yt_dlp_failed", "http_429", "http_429"]
    assert [row["status"] for row in ledger] == [rule for rule in rules for _ in range(2)]
    assert len(kept) == 2


def test_a_missing_program_is_told_with_its_remedy_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pipelines.s1_download.child.yt_dlp.find_command", lambda: None)
    (tmp_path / "clips.csv").write_text("videoid,contentUrl,name\n1,https://www.youtube.com/watch?v=1,a test\n")
    read = ReadConfig(reader="webvid", source="a", card="a", files={"rows": "clips.csv"})
    files = {slot: (SourceFile(str(tmp_path / "clips.csv"), "a"),) for slot in ("card", "files")}

    def planned(**values: Any) -> tuple[Graph, Plan]:
        config = DownloadConfig(yt_dlp_domains=("youtube.com",), **values)
        graph = Graph([Node("read/a", READ, read, files), Node("download/a", DOWNLOAD, config, {"rows": ("read/a",)})])
        return graph, plan(graph, Store(tmp_path / "store"), "x")

    with pytest.raises(SourceUnavailable, match=r"download/a: .*youtube.com.*pip install 'x2vlm\[yt-dlp\]'"):
        check_due(*planned(allow_yt_dlp=True))
    check_due(*planned())


def test_the_program_is_found_on_path(program: Path, tmp_path: Path) -> None:
    assert find_command() == [str(tmp_path / "bin" / "yt-dlp")]
    assert check_command(DownloadConfig(yt_dlp_domains=("youtube.com",)), "download/a") == []


def test_a_url_is_never_an_option() -> None:
    options = arguments(DownloadConfig(), "http://127.0.0.1:1", "--exec=rm")
    assert options[-2:] == ["--", "--exec=rm"]


def test_the_proxy_judges_tunnels_too_and_counts_what_comes() -> None:
    with hostile_server() as server:
        policy = Policy(("127.0.0.1/32",), (server.endpoint[1],))
        denied = DenyList(frozenset({"denied.example"}))

        def tunnel(proxy_url: str, address: str) -> bytes:
            host, port = proxy_url.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall(f"CONNECT {address} HTTP/1.1\r\n\r\n".encode())
                first = connection.recv(4096)
                if b" 200 " in first:
                    connection.sendall(b"GET /good HTTP/1.1\r\n\r\n")
                    while chunk := connection.recv(65536):
                        first += chunk
                return first

        with guarded_proxy(policy, Resolver(), denied, 100_000, 2.0) as proxy:
            assert jpeg() in tunnel(proxy.url, f"127.0.0.1:{server.endpoint[1]}")
            for address in ("127.0.0.2:443", "127.0.0.1:22", "denied.example:443", "169.254.169.254:80", "[::1]:443"):
                assert tunnel(proxy.url, address).startswith(b"HTTP/1.1 403")
            rules = [refusal.rule for refusal in proxy.refusals]
            assert rules == [
                "address_forbidden",
                "port_forbidden",
                "denied_by_list",
                "address_forbidden",
                "address_forbidden",
            ]
            assert len(jpeg()) < proxy.num_bytes < len(jpeg()) + 500
            for nonsense in (b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\xff\r\n\r\n", b"GET /relative HTTP/1.1\r\n\r\n"):
                with socket.create_connection(("127.0.0.1", proxy.server_address[1]), timeout=20) as connection:
                    connection.sendall(nonsense)
                    assert connection.recv(100).split(b" ")[1] in (b"400", b"403")
        with guarded_proxy(policy, Resolver(), denied, 10, 2.0) as proxy:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy.url}))
            with pytest.raises(OSError):
                opener.open(f"{server.base}/good").read()
            assert [refusal.rule for refusal in proxy.refusals] == ["body_too_large"]
