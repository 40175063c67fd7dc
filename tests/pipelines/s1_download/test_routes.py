"""Media that a user holds, in a folder or a bucket outside of the project, and videos behind pages through yt-dlp."""

import hashlib
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

import boto3
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from pipelines.experiment import Experiment
from pipelines.flow.run.planner import Plan, check_due, plan
from pipelines.flow.stage import Graph, Node, PartSummary, SourceFile
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.s1_download.child.yt_dlp import arguments, check_command, find_command
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD, finish_download
from pipelines.s1_download.http.deny_list import DenyList
from pipelines.s1_download.http.guard import Policy
from pipelines.s1_download.http.guarded_proxy import guarded_proxy
from pipelines.s1_download.http.resolver import Resolver
from pipelines.s1_download.read import READ, ReadConfig, read_config
from pipelines.s1_download.routes import LocalMedia
from tests.hostile.behaviours import hostile_server
from tests.hostile.payloads import clip, jpeg
from tests.hostile.server import HostileServer
from tests.support.flow_helpers import artifact_input, run_stage_part, upstream_input
from x2vlm.config import parse_config
from x2vlm.data.cards import Card, load_card
from x2vlm.errors import ConfigError, SourceUnavailable
from x2vlm.samples import Caption, Sample, sample_key, sample_table, samples_of, write_table

Ledger = list[dict[str, Any]]


def download(folder: Path, samples: Sequence[Sample], **values: Any) -> tuple[Ledger, list[Sample], Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows").mkdir()
    write_table(sample_table(samples), folder / "rows" / "rows-00000.parquet")
    config = DownloadConfig.model_validate({"retries": 0, "host_requests_per_second": 0.0, **values})
    (part,) = DOWNLOAD.plan_parts(config, {"rows": (artifact_input("read/test", {"all": folder / "rows"}),)})
    result = run_stage_part(DOWNLOAD, config, part, folder / "out")
    kept = samples_of(pq.read_table(folder / "out" / "rows.parquet"))
    return pq.read_table(folder / "out" / "ledger.parquet").to_pylist(), kept, result


def read_card(folder: Path, card: Card, texts: dict[str, str]) -> list[Sample]:
    """The samples that a shipped card's reader makes of small files in upstream's format."""
    files = []
    for role, file in card.files.items():
        path = folder / "upstream" / Path(file.path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts[role], encoding="utf-8")
        files.append(upstream_input(path, card.id))
    config = read_config(card)
    inputs = {"card": (files[0],), "files": tuple(files)}
    run_stage_part(READ, config, READ.plan_parts(config, inputs)[0], folder / "read")
    return samples_of(pq.read_table(folder / "read" / "rows-00000.parquet"))


HOWTO = {
    "videos": "video_id,category_1,category_2,rank,task_id\n-abcdefghij,A,B,1,2\nKLMNOPQRSTU,A,B,1,2\n",
    "raw_captions": json.dumps(
        {
            "-abcdefghij": {
                "text": ["cut the", "to the bowl", "and stir"],
                "start": [0, 0.8, 1.5],
                "end": [0.9, 1.6, 2.4],
            },
            "KLMNOPQRSTU": {"text": ["you see"], "start": [0], "end": [1]},
        }
    ),
}


@pytest.mark.parametrize(
    ("name", "row", "url", "path"),
    [
        (
            "webvid",
            "1066674784",
            "https://ak.picdn.net/shutterstock/videos/1066674784/preview/stock.mp4",
            "1066674784.mp4",
        ),
        ("howto100m", "-abc_def#12", "https://www.youtube.com/watch?v=-abc_def", "-abc_def.mp4"),
        ("yttemporal", "a/b#0", "https://www.youtube.com/watch?v=a%2Fb", "a%2Fb.mp4"),
        ("coco", "9", "http://images.cocodataset.org/train2017/000000000009.jpg", "000000000009.jpg"),
        ("visual_genome", "1", "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg", "VG_100K_2/1.jpg"),
        ("objects365", "420917", "http://objects365.invalid/patch8/o_v1_00420917.jpg", "patch8/o_v1_00420917.jpg"),
        ("openimages", "000002b66c9c498e", "https://c7.staticflickr.com/6/5/x_o.jpg", "000002b66c9c498e.jpg"),
    ],
)
def test_shipped_cards_say_how_a_copy_names_its_files(
    name: str, row: str, url: str, path: str, project_root: Path
) -> None:
    card = load_card(project_root / "datasets" / "pretrain" / f"{name}.yaml")
    assert card.local_name is not None
    sample = Sample("k", name, row, "train", card.grains[0], url)
    assert LocalMedia(root="/x", name=card.local_name).path(sample) == path


def test_names_with_unknown_fields_are_refused() -> None:
    for name in ("{key}.jpg", "fixed.jpg", "{id.__class__}.jpg"):
        with pytest.raises(ConfigError, match="use at least one of file, folder, id, row"):
            parse_config(LocalMedia, {"root": "/x", "name": name}, "test")


def test_videos_of_a_copy_outside_the_project_are_read_once_each_and_cut_into_clips(
    tmp_path: Path, project_root: Path
) -> None:
    card = load_card(project_root / "datasets" / "pretrain" / "howto100m.yaml")
    samples = read_card(tmp_path, card, HOWTO)
    assert [sample.source_row for sample in samples] == [
        "-abcdefghij#0",
        "-abcdefghij#1",
        "-abcdefghij#2",
        "KLMNOPQRSTU#0",
    ]
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "-abcdefghij.mp4").write_bytes(clip())
    local = {"root": str(tmp_path / "copy"), "name": card.local_name}
    # As the graph would say it: yt-dlp is neither allowed nor needed.
    ledger, kept, _ = download(tmp_path, samples, local_media=local, yt_dlp_domains=card.yt_dlp_domains)
    assert [row["status"] for row in ledger] == ["kept", "kept", "kept", "http_404"]
    assert {row["final_url"] for row in ledger[:3]} == {"https://www.youtube.com/watch?v=-abcdefghij"}
    assert len({sample.media.sha256 for sample in kept if sample.media}) == 3


def openimages(folder: Path, project_root: Path) -> tuple[Card, list[Sample]]:
    card = load_card(project_root / "datasets" / "pretrain" / "openimages.yaml")
    header = (
        "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5"
    )
    rows = [
        "a1,train,https://c1.staticflickr.com/1/x_o.jpg,,https://creativecommons.org/licenses/by/2.0/,,Ada,t,1,,,0.0",
        'b2,train,https://c2.staticflickr.com/2/y_o.jpg,,,,"Bo ""B"" Lund",t,1,,,0.0',
    ]
    box = "xclick,/m/dog,1,0.1,0.9,0.1,0.9,0,0,0,0,0"
    texts = {
        "images": "\n".join([f"{header},Thumbnail300KURL,Rotation", *rows]),
        "classes": "/m/dog,Dog\n/m/cat,Cat\n",
        "attributes": "/m/big,Big\n",
        "boxes": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
        "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        + "".join(f"{image},{box}\n" for image in ("a1", "b2")),
        "relations": "ImageID,LabelName1,LabelName2,"
        "XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationshipLabel\n",
    }
    return card, read_card(folder, card, texts)


def coco(folder: Path, project_root: Path) -> list[Sample]:
    card = load_card(project_root / "datasets" / "pretrain" / "coco.yaml")
    url = "http://images.cocodataset.org/train2017/9.jpg"
    images = [{"id": 9, "license": 3, "coco_url": url, "width": 64, "height": 48, "file_name": "9.jpg"}]
    licenses = [{"id": 3, "url": "http://creativecommons.org/licenses/by-nc-nd/2.0/", "name": "BY-NC-ND"}]
    captions = {"images": images, "licenses": licenses, "annotations": [{"id": 1, "image_id": 9, "caption": "a bowl"}]}
    instances = {"images": images, "licenses": licenses, "annotations": [], "categories": []}
    return read_card(folder, card, {"captions": json.dumps(captions), "instances": json.dumps(instances)})


def test_images_of_a_copy_in_a_bucket_keep_url_licence_and_author(
    tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "t", "AWS_SECRET_ACCESS_KEY": "t"}
        for name, value in {**settings, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="copy")
        client.put_object(Bucket="copy", Key="oi/train/b2.jpg", Body=jpeg())
        client.put_object(Bucket="copy", Key="oi/train/9.jpg", Body=jpeg())
        card, samples = openimages(tmp_path / "openimages", project_root)
        samples += coco(tmp_path / "coco", project_root)
        ledger, kept, result = download(
            tmp_path, samples, local_media={"root": "s3://copy/oi/train", "name": card.local_name}
        )
    finally:
        server.stop()
    assert [row["status"] for row in ledger] == ["http_404", "kept", "kept"]
    assert kept[0].media is not None
    assert kept[0].media.sha256 == hashlib.sha256(jpeg()).hexdigest()
    assert kept[0].fetch is not None
    assert kept[0].fetch.final_url == kept[0].url == "https://c2.staticflickr.com/2/y_o.jpg"
    # Rights are in the ledger of every row, kept or not, and in the rows; an image without a licence has its card's.
    assert [(row["licence"], row["author"]) for row in ledger] == [
        ("https://creativecommons.org/licenses/by/2.0/", "Ada"),
        (card.licence, 'Bo "B" Lund'),
        ("http://creativecommons.org/licenses/by-nc-nd/2.0/", ""),
    ]
    assert [(sample.licence, sample.author) for sample in kept] == [(r["licence"], r["author"]) for r in ledger[1:]]
    assert result.summary["licences"] == {card.licence: 1, "http://creativecommons.org/licenses/by-nc-nd/2.0/": 1}
    total = finish_download(DownloadConfig(), [PartSummary("a", result.counts, result.summary)] * 2)
    assert total["licences"] == {name: 2 for name in result.summary["licences"]}
    assert total["hash_checks"] == {"unpublished": 6}


def experiment(**source: Any) -> Experiment:
    values = {
        "name": "x",
        "sources": {"a": {"data_root": "/data", **source}},
        "partition": {"num_shards": 1},
        "vocabulary": "vocab.txt",
    }
    return parse_config(Experiment, values, "test")


def test_the_graph_takes_the_copy_of_the_user_instead_of_the_web() -> None:
    def config(**source: Any) -> DownloadConfig:
        found = build_graph(experiment(**source))["download/a"].config
        assert isinstance(found, DownloadConfig)
        return found

    assert config(card="pretrain/howto100m").yt_dlp_domains == ("youtube.com",)
    assert config(card="pretrain/howto100m").local_media is None
    own = config(card="pretrain/objects365", media_root="s3://b/o365")
    assert own.local_media == LocalMedia(root="s3://b/o365", name="{folder}/{file}")
    assert own.url_base is None
    assert not own.crawler_policy().reads_robots
    named = config(card="pretrain/webvid", media_root="/clips", media_name="{id}.webm")
    assert named.local_media == LocalMedia(root="/clips", name="{id}.webm")
    with pytest.raises(ConfigError, match=r"sources\.a: card cc3m has no `local_name`"):
        config(card="pretrain/cc3m", media_root="/pictures")


def test_a_card_that_needs_yt_dlp_must_state_its_terms() -> None:
    values = {"id": "a", "title": "t", "licence": "", "availability": "open", "grains": ["video"], "files": {}}
    with pytest.raises(ConfigError, match="must state the `terms`"):
        parse_config(Card, {**values, "yt_dlp_domains": ["youtube.com"]}, "test")


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
        ledger, _, result = download(tmp_path, samples, **allowed(server, allow_yt_dlp=False))
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
        ledger, kept, result = download(tmp_path, videos(server, paths), **values)
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
        ledger, _, _ = download(tmp_path, videos(server, ["clip/a"]), **allowed(server, max_video_bytes=1000))
    assert {row["status"] for row in ledger} == {"body_too_large"}


def test_a_program_that_does_not_end_is_ended(tmp_path: Path, program: Path) -> None:
    with hostile_server() as server:
        ledger, _, _ = download(tmp_path, videos(server, ["hang"]), **allowed(server, video_deadline_seconds=2.0))
    assert {row["status"] for row in ledger} == {"deadline_exceeded"}


@pytest.mark.slow
@pytest.mark.skipif(find_command() is None, reason="needs yt-dlp: pip install 'x2vlm[video]'")
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
        ledger, kept, _ = download(tmp_path, videos(server, paths), **values)
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

    with pytest.raises(SourceUnavailable, match=r"download/a: .*youtube.com.*pip install 'x2vlm\[video\]'"):
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
