"""The download stage against a server that misbehaves in every way it knows, on a real loopback connection."""

import csv
import hashlib
import tarfile
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.experiment import load_experiment
from pipelines.flow.fingerprint import canonical_json
from pipelines.flow.stage import Input, InputFile, InputPart, part_fingerprint
from pipelines.s1_download.download import DOWNLOAD, DownloadConfig
from pipelines.s1_download.read import READ, read_config
from tests.hostile.behaviours import hostile_server
from tests.hostile.payloads import clip, jpeg
from tests.support.download.stage import Downloaded, download, make_samples
from tests.support.flow_helpers import artifact_input, run_stage_part, upstream_input
from x2vlm.data.cards import file_paths, load_card
from x2vlm.data.media.images import open_image, probe
from x2vlm.data.media.video import decode_frames
from x2vlm.errors import ConfigError
from x2vlm.samples import sample_table, samples_of, write_table

EXPECTED = {
    "good": "kept",
    "png-as-jpeg": "kept",
    "no-length": "kept",
    "gzip": "kept",
    "recovers": "kept",
    "noai-other": "kept",
    "hops/5": "kept",
    "hops/6": "too_many_redirects",
    "nowhere": "http_404",
    "gone": "http_410",
    "busy": "http_429",
    "broken": "http_500",
    "no-location": "http_302",
    "loop": "too_many_redirects",
    "to-metadata": "address_forbidden",
    "to-file": "scheme_forbidden",
    "to-user": "userinfo_forbidden",
    "drip": "too_slow",
    "header-drip": "too_slow",
    "hang": "deadline_exceeded",
    "lying-long": "truncated_body",
    "lying-short": "decode_failed",
    "huge": "body_too_large",
    "endless": "body_too_large",
    "cut-chunk": "truncated_body",
    "bad-chunk": "bad_response",
    "gzip-bomb": "compression_ratio",
    "gzip-cut": "truncated_body",
    "gzip-lie": "bad_response",
    "brotli": "encoding_unsupported",
    "gif-bomb": "too_many_pixels",
    "png-bomb": "too_many_pixels",
    "html": "not_an_image",
    "svg": "format_unsupported",
    "truncated": "decode_failed",
    "empty": "empty_body",
    "no-content": "empty_body",
    "reset": "connection_reset",
    "hang-up": "connection_reset",
    "not-http": "bad_response",
    "many-headers": "bad_response",
    "long-header": "bad_response",
    "noai": "opted_out",
    "noai-dated": "opted_out",
    "noai-us": "opted_out",
    "noai-garbled": "opted_out",
    "usage": "opted_out",
    "tdm": "opted_out",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The stage run once over every behaviour, and over URLs that must not be contacted at all."""
    with hostile_server() as server, hostile_server("127.0.0.2") as forbidden:
        urls = [f"{server.base}/{path}" for path in EXPECTED]
        urls += [f"{forbidden.base}/good", f"{server.base}/to/{forbidden.base}/good", f"{server.base}/good"]
        urls += ["file:///etc/hostname", "ftp://example.invalid/x.jpg", "not a url", "", "http://user:pw@127.0.0.1/"]
        port = server.endpoint[1]
        run = download(
            tmp_path_factory.mktemp("hostile"),
            make_samples(urls),
            allow_ports=(80, 443, port, forbidden.endpoint[1]),
            max_image_bytes=8 << 20,
            image_deadline_seconds=2.0,
            rate_grace_seconds=0.5,
            retries=1,
            threads=8,
            host_connections=50,
            store={"kind": "original", "check": "decode"},
        )
        yield run, server, forbidden


@pytest.mark.parametrize("path", EXPECTED)
def test_every_behaviour_ends_as_kept_or_as_its_rule(hostile: Any, path: str) -> None:
    run, server, _ = hostile
    assert run.verdicts[f"{server.base}/{path}"] == EXPECTED[path]


def test_nothing_forbidden_is_contacted_and_what_needs_no_network_is_refused_by_name(hostile: Any) -> None:
    run, server, forbidden = hostile
    assert forbidden.num_connections == 0
    verdicts = run.verdicts
    assert verdicts[f"{forbidden.base}/good"] == "address_forbidden"
    assert verdicts[f"{server.base}/to/{forbidden.base}/good"] == "address_forbidden"
    assert verdicts["file:///etc/hostname"] == verdicts["ftp://example.invalid/x.jpg"] == "scheme_forbidden"
    assert verdicts["not a url"] == "scheme_forbidden"
    assert verdicts[""] == "missing_url"
    assert verdicts["http://user:pw@127.0.0.1/"] == "userinfo_forbidden"


def test_the_ledger_names_the_signal_of_every_row_that_was_opted_out(hostile: Any) -> None:
    run, server, _ = hostile
    signals = {row["url"]: row["opt_out"] for row in run.ledger}
    assert signals[f"{server.base}/noai"] == "x-robots-tag: noai"
    assert signals[f"{server.base}/tdm"] == "tdm-reservation: 1"
    assert {row["status"] for row in run.ledger if row["opt_out"]} == {"opted_out"}
    assert all(row["opt_out"] for row in run.ledger if row["status"] == "opted_out")


def test_totals_and_tables_agree(hostile: Any) -> None:
    run, _, _ = hostile
    statuses = Counter(row["status"] for row in run.ledger)
    kept = statuses.pop("kept")
    count = run.result.counts["rows"]
    assert (count.num_out, dict(count.dropped)) == (kept, dict(statuses))
    summary = run.result.summary
    assert summary["dropped"] == dict(statuses)
    assert summary["metrics"]["success_rate"] == pytest.approx(kept / len(run.ledger))
    assert summary["metrics"]["rows_per_second"] * summary["fetch_seconds"] == pytest.approx(len(run.ledger))
    assert summary["metrics"]["bytes_per_second"] * summary["fetch_seconds"] == pytest.approx(summary["fetched_bytes"])
    drops = pq.read_table(run.path / "drops.parquet").to_pylist()
    assert Counter(drop["rule"] for drop in drops) == statuses
    assert run.result.counts["captions"].dropped == {"row_dropped": len(drops)}
    assert [sample.key for sample in run.kept] == [row["key"] for row in run.ledger if row["status"] == "kept"]


def test_each_url_is_fetched_once_and_each_media_stored_once(hostile: Any) -> None:
    run, server, _ = hostile
    assert [row["url"] for row in run.ledger].count(f"{server.base}/good") == 2
    assert server.requests["/good"] == 2  # once for its two rows, once at the end of /hops/5
    assert server.requests["/hang"] == 1
    assert server.requests["/recovers"] == 2
    assert server.user_agents == {DownloadConfig().user_agent}
    # good, no-length, gzip, recovers and hops/5 serve the same bytes.
    media = {sample.media.sha256 for sample in run.kept if sample.media}
    assert media == {hashlib.sha256(jpeg()).hexdigest(), *media}
    assert len(media) == len(run.pack) == 3


def test_kept_rows_carry_what_was_fetched(hostile: Any) -> None:
    run, server, _ = hostile
    by_url = {sample.url: sample for sample in run.kept}
    sample = by_url[f"{server.base}/hops/5"]
    assert sample.media is not None
    assert sample.fetch is not None
    assert (sample.media.format, sample.media.width, sample.media.height) == ("jpeg", 64, 48)
    assert sample.media.bytes == len(jpeg())
    assert run.pack.read(sample.media.sha256) == jpeg()
    assert (sample.fetch.final_url, sample.fetch.http_status) == (f"{server.base}/good", 200)
    times = [datetime.fromisoformat(row["fetched_at"]) for row in run.ledger if row["status"] == "kept"]
    assert all(time.utcoffset() == timedelta(0) and time.microsecond == 0 for time in times)
    mislabelled = by_url[f"{server.base}/png-as-jpeg"]
    assert mislabelled.media is not None
    assert mislabelled.media.format == "png"


def test_what_a_site_forbids_is_in_the_ledger(tmp_path: Path) -> None:
    with hostile_server() as server, hostile_server() as closed:
        server.robots = ("200 OK", b"User-agent: *\nDisallow: /good/private")
        closed.robots = ("500 Internal Server Error", b"")
        (tmp_path / "deny.txt").write_text("denied.example\n127.0.0.1/good/denied\n")
        paths = ["good", "good/private", "good/denied"]
        paths += [f"to/{server.base}/{path}" for path in paths[1:]]
        urls = [f"{server.base}/{path}" for path in paths]
        urls += [f"{closed.base}/good", "http://www.denied.example/x"]
        run = download(
            tmp_path,
            make_samples(urls),
            allow_ports=(server.endpoint[1], closed.endpoint[1]),
            deny_list=str(tmp_path / "deny.txt"),
        )
        assert server.requests["/good/private"] == server.requests["/good/denied"] == closed.requests["/good"] == 0
        assert server.requests["/robots.txt"] == 1
    assert [(row["status"], row["reason"], row["robots"]) for row in run.ledger] == [
        ("kept", "", "allowed"),
        ("robots_disallowed", "disallow: /good/private", ""),
        ("denied_by_list", "127.0.0.1/good/denied", ""),
        ("robots_disallowed", "disallow: /good/private", "allowed"),  # its first hop was
        ("denied_by_list", "127.0.0.1/good/denied", "allowed"),
        ("robots_unreachable", "robots.txt answered 500, so nothing may be asked for", ""),
        ("denied_by_list", "denied.example", ""),
    ]


def test_another_deny_list_makes_other_parts(tmp_path: Path) -> None:
    path = tmp_path / "deny.txt"
    path.write_text("denied.example\n")
    config = DownloadConfig(deny_list=str(path))
    files = (InputFile("rows-00000.parquet", 1, "0" * 64, "x"),)
    inputs = {"rows": (Input("read/a", "root", (InputPart("all", files),)),)}

    def fingerprint(config: DownloadConfig) -> str:
        return part_fingerprint(DOWNLOAD, config, DOWNLOAD.plan_parts(config, inputs)[0])

    first = fingerprint(config)
    path.write_text("denied.example\nother.example\n")
    (stale,) = DOWNLOAD.plan_parts(config, inputs)
    assert len({first, fingerprint(config), fingerprint(DownloadConfig())}) == 3
    path.write_text("changed while the job was running\n".replace(" ", "-"))
    rows = tmp_path / "rows"
    rows.mkdir()
    write_table(sample_table(make_samples(["http://a.example/"])), rows / "rows-00000.parquet")
    (real,) = DOWNLOAD.plan_parts(config, {"rows": (artifact_input("read/test", {"all": rows}),)})
    with pytest.raises(ConfigError, match="planned"):
        run_stage_part(DOWNLOAD, config, replace(real, spec=stale.spec), tmp_path / "out")


def test_stored_images_have_lost_their_gps_but_not_their_identity(tmp_path: Path, excerpts_dir: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    names = ["jpeg_exif_gps_typeerror.jpg", "landscape_exif_8.jpg", "webp_flower.webp"]
    for name in names:
        (media / name).write_bytes((excerpts_dir / "tricky" / name).read_bytes())
    base = "http://sample.invalid"
    config: dict[str, Any] = {"url_base": {"from": base, "serve": str(media)}}
    run = download(tmp_path, make_samples([f"{base}/{name}" for name in names]), **config)
    assert len(run.kept) == 3
    for name, sample in zip(names, run.kept, strict=True):
        original = (media / name).read_bytes()
        assert sample.media
        assert sample.media.sha256 == hashlib.sha256(original).hexdigest()
        assert sample.media.bytes == len(original)
        stored = run.pack.read(sample.media.sha256)
        assert run.pack.entry(sample.media.sha256).payload_sha256 == hashlib.sha256(stored).hexdigest()
        assert len(stored) < len(original)
        header = probe(stored)
        assert (header.width, header.height) == (sample.media.width, sample.media.height)
        assert open_image(stored).tobytes() == open_image(original).tobytes()


def test_the_pack_is_a_plain_tar_in_the_order_of_keys(hostile: Any) -> None:
    """Media of several rows lie where the first of these, by key, has its place."""
    run, _, _ = hostile
    by_key = [sample.media.sha256 for sample in sorted(run.kept, key=lambda sample: sample.key) if sample.media]
    with tarfile.open(run.path / "media.tar") as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        assert [name.split(".")[0] for name in names] == list(dict.fromkeys(by_key)) == list(run.pack)
        assert {(m.mtime, m.uid, m.gid, m.isreg()) for m in members} == {(0, 0, 0, True)}
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            assert hashlib.sha256(file.read()).hexdigest() == member.name.split(".")[0]


def test_loopback_is_forbidden_unless_the_card_allows_it(tmp_path: Path) -> None:
    with hostile_server() as server:
        port = server.endpoint[1]
        hosts = [
            "127.0.0.1",
            "localhost",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
        ]
        samples = make_samples([f"http://{host}:{port}/good" for host in hosts], kind="video")
        run = download(tmp_path, samples, allow_ports=(80, port), allow_networks=())
        assert run.result.counts["rows"].dropped == {"address_forbidden": len(hosts)}
        assert server.num_connections == 0


def test_a_folder_is_served_and_no_port_shows(
    tmp_path: Path, excerpts_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    media = tmp_path / "media"
    (media / "photos").mkdir(parents=True)
    (media / "photos" / "ä b.jpg").write_bytes(jpeg())
    nasa = (excerpts_dir / "videos/torchcodec_nasa_13013.mp4").read_bytes()
    (media / "clip.mp4").write_bytes(nasa)
    (media / "broken.mp4").write_bytes((excerpts_dir / "videos/decord_corrupted.mp4").read_bytes())
    base = "http://sample.invalid"
    images = make_samples([f"{base}/photos/ä b.jpg", f"{base}/absent.jpg", "http://127.0.0.1:9/x.jpg"])
    videos = make_samples([f"{base}/clip.mp4", f"{base}/broken.mp4", f"{base}/photos/ä b.jpg"], kind="video")
    ranged = make_samples([f"{base}/clip.mp4"], kind="video", start_seconds=2.0, end_seconds=4.5)
    samples = [replace(sample, key=f"{i:032x}") for i, sample in enumerate([*images, *videos, *ranged])]
    # An absolute `serve` stands for a folder outside the project, as in a test.
    config = {"url_base": {"from": base, "serve": str(media)}, "allow_networks": ()}
    run = download(tmp_path, samples, **config)
    statuses = [row["status"] for row in run.ledger]
    assert statuses == ["kept", "http_404", "address_forbidden", "kept", "decode_failed", "not_a_video", "kept"]
    assert run.ledger[0]["final_url"] == f"{base}/photos/%C3%A4%20b.jpg"
    assert run.ledger[0]["url"] == samples[0].url
    assert run.ledger[1]["final_url"] == f"{base}/absent.jpg"
    photo, whole, part = run.kept
    assert photo.fetch
    assert photo.fetch.content_type == "image/jpeg"
    assert whole.media
    assert part.media
    assert whole.media.sha256 == hashlib.sha256(nasa).hexdigest()
    assert (whole.media.format, whole.media.width, whole.media.height) == ("frames", 320, 180)
    assert part.media.sha256 != whole.media.sha256
    frames, times = decode_frames(run.pack.read(whole.media.sha256))
    assert len(frames) == whole.media.num_frames == 13
    assert times[0] == 0.0
    frames, times = decode_frames(run.pack.read(part.media.sha256))
    assert len(frames) == part.media.num_frames == 3
    assert times == pytest.approx([2, 3, 4], abs=0.02)


@pytest.fixture(scope="module")
def shipped(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Downloaded:
    """The shipped corpus, read from its upstream formats and downloaded as one part."""
    folder, samples = tmp_path_factory.mktemp("shipped"), []
    for name in ("coco", "visual_genome", "cc3m", "laion", "openimages", "webvid"):
        path = project_root / "datasets" / "sample" / f"{name}.yaml"
        card = load_card(path)
        files = tuple(upstream_input(Path(file), name) for file in file_paths(card, project_root).values())
        (part,) = READ.plan_parts(read_config(card), {"card": (upstream_input(path, name),), "files": files})
        run_stage_part(READ, read_config(card), part, folder / name)
        samples += samples_of(pq.read_table(folder / name / "rows-00000.parquet"))
    (folder / "download").mkdir()
    store = load_experiment("sample").download.store
    return download(folder / "download", samples, url_base=card.url_base, allow_networks=(), store=store)


def test_planted_rows_get_their_verdict_and_nothing_else_goes(shipped: Downloaded, project_root: Path) -> None:
    with (project_root / "datasets/sample/planted.csv").open(newline="") as stream:
        planted = [row for row in csv.DictReader(stream) if row["stage"] == "download"]
    drops = pq.read_table(shipped.path / "drops.parquet").to_pylist()
    got = {(drop["source"], drop["source_row"], drop["rule"]) for drop in drops}
    assert got == {(row["source"], row["row_key"], row["rule"]) for row in planted}
    assert len(planted) >= 9


def test_kept_rows_of_the_shipped_corpus_have_media_and_boxes_in_pixels(shipped: Downloaded) -> None:
    for sample in shipped.kept:
        assert sample.media is not None
        assert sample.fetch is not None
        assert sample.fetch.final_url == sample.url
        if sample.kind == "image":
            header = probe(shipped.pack.read(sample.media.sha256))
            assert (header.width, header.height) == (sample.media.width, sample.media.height)
    boxes = [concept for sample in shipped.kept if sample.source == "openimages" for concept in sample.concepts]
    assert boxes
    assert not any(concept.annotation_id.startswith("norm:") for concept in boxes)
    assert sorted(max(concept.box.w, concept.box.h) for concept in boxes)[len(boxes) // 2] > 16


def test_equal_responses_give_equal_bytes(tmp_path: Path) -> None:
    # Clips, because their children start in a second; the order of images is checked above, with eight threads.
    media = tmp_path / "media"
    media.mkdir()
    lengths = [31, 5, 12, 40, 1, 22]
    for length in lengths:
        (media / f"{length}.mp4").write_bytes(clip(length))
    samples = make_samples([f"http://sample.invalid/{length}.mp4" for length in lengths], kind="video")
    config: dict[str, Any] = {"url_base": {"from": "http://sample.invalid", "serve": str(media)}}
    runs = []
    for threads in (1, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        runs.append(download(folder, samples, video_threads=threads, **config))
    assert len(runs[0].pack) == len(lengths)
    for name in ("media.tar", "media.parquet", "rows.parquet", "drops.parquet"):
        assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes()
    ledgers = [pq.read_table(run.path / "ledger.parquet").drop_columns("fetched_at") for run in runs]
    assert ledgers[0].equals(ledgers[1])


def test_speed_and_placement_do_not_change_what_a_config_is() -> None:
    fast = DownloadConfig(threads=99, video_threads=9, host_connections=99, host_requests_per_second=0)
    assert canonical_json(fast) == canonical_json(DownloadConfig()) == b"{}"
    assert canonical_json(DownloadConfig(max_frame_short_edge=224)) != b"{}"


def test_two_rows_files_of_one_name_are_refused() -> None:
    files = (InputFile("rows-00000.parquet", 1, "0" * 64, "x"), InputFile("drops.parquet", 1, "0" * 64, "x"))
    artifact = Input("read/a", "root", (InputPart("all", files),))
    parts = DOWNLOAD.plan_parts(DownloadConfig(), {"rows": (artifact,)})
    assert [part.name for part in parts] == ["00000"]
    with pytest.raises(ConfigError, match="one name"):
        DOWNLOAD.plan_parts(DownloadConfig(), {"rows": (artifact, artifact)})
