"""Sets of files as other tools write them, through read, download and filter, and what is due again after a change."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipelines.flow.audit.artifacts import StoreAudit
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD, RETRY
from pipelines.s1_download.places import open_places
from tests.support.flow_helpers import run_stage_part
from tests.support.s3 import s3_client, s3_in_environment, s3_server
from tests.support.sets.files import pairs, picture, write_files, write_tar
from tests.support.sets.pipeline import EXPERIMENT, SetRun, make_card, run_set, set_graph
from x2vlm.data.cards import Card
from x2vlm.data.readers.own.files import Member
from x2vlm.errors import ConfigError, SourceUnavailable


def open_clip_tars(folder: Path) -> tuple[Card, dict[str, str]]:
    """As open_clip trains on: `webdataset.TarWriter`, jpg or png and txt."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for number in range(shard * 4, shard * 4 + 4):
                ending, form = ("png", "PNG") if number % 2 else ("jpg", "JPEG")
                tar.write(
                    {"__key__": f"{number:04d}", ending: picture(number, image_format=form), "txt": f"text {number}"}
                )
    expected = {f"{n // 4:05d}/{n:04d}": f"text {n}" for n in range(8)}
    return make_card("webdataset", str(folder), "{00000..00001}.tar"), expected


def datacomp_tars(folder: Path) -> tuple[Card, dict[str, str]]:
    """As DataComp's downloader leaves them: uid and url in the JSON, one bad picture."""
    for shard in range(2):
        members = []
        for number in range(shard * 3, shard * 3 + 3):
            facts = {
                "uid": f"{number:032x}",
                "url": f"https://x.example/{number}.jpg",
                "text": "ignored",
                "sha256": "0" * 64,
            }
            body = b"<html>" if number == 4 else picture(number)
            members += [(f"{number:09d}.jpg", body), (f"{number:09d}.txt", f"text {number}".encode())]
            members.append((f"{number:09d}.json", json.dumps(facts).encode()))
        write_tar(folder / f"{shard:08d}.tar", members)
    expected = {f"{n // 3:08d}/{n:09d}": f"text {n}" for n in range(6) if n != 4}
    return make_card("webdataset", str(folder), "."), expected


def packed_tars(folder: Path) -> tuple[Card, dict[str, str]]:
    """A tar behind gzip, whose members cannot be read where they lie."""
    write_tar(folder / "x.tar.gz", pairs(range(5)), mode="w:gz")
    return make_card("webdataset", str(folder), "*.tar.gz"), {f"x/{n:06d}": f"picture {n}" for n in range(5)}


def imagefolder(folder: Path) -> tuple[Card, dict[str, str]]:
    """As Hugging Face's imagefolder has it, with pictures in folders of their own."""
    rows = [{"file_name": f"{n % 2}/{n}.webp", "text": f"text {n}"} for n in range(6)]
    files = {f"train/{row['file_name']}": picture(n, image_format="WEBP") for n, row in enumerate(rows)}
    lines = "\n".join(json.dumps(row) for row in rows)
    write_files(folder, {**files, "train/metadata.jsonl": lines})
    return make_card("folder", str(folder), "**"), {f"train/{n % 2}/{n}.webp": f"text {n}" for n in range(6)}


def hugging_face_parquet(folder: Path) -> tuple[Card, dict[str, str]]:
    """As Hugging Face's hub holds pictures."""
    folder.mkdir(parents=True)
    media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for shard in range(2):
        pictures = [{"bytes": picture(shard * 3 + n), "path": f"{n}.jpg"} for n in range(3)]
        table = pa.table({"image": pa.array(pictures, media), "text": [f"text {shard * 3 + n}" for n in range(3)]})
        pq.write_table(table, folder / f"train-{shard}.parquet", row_group_size=2)
    return make_card("webdataset", str(folder), "*.parquet"), {f"train-{n // 3}/{n % 3}": f"text {n}" for n in range(6)}


Made = Callable[[Path], tuple[Card, dict[str, str]]]
SETS: list[Made] = [open_clip_tars, datacomp_tars, packed_tars, imagefolder, hugging_face_parquet]


@pytest.mark.parametrize("make", SETS)
def test_a_set_from_its_files_to_filtered_rows(tmp_path: Path, make: Made) -> None:
    card, expected = make(tmp_path / "set")
    done = run_set(tmp_path, card, rows_per_file=3)  # several download parts take from one file
    assert {s.source_row: s.captions[0].text for s in done.samples()} == expected
    assert done.dropped("read/own") == {}
    assert done.dropped("download/own") == ({"not_an_image": 1} if make is datacomp_tars else {})
    for sample in done.samples():
        assert sample.media is not None
        assert (sample.media.width, sample.media.height) == (48, 32)
        assert sample.url.startswith("https://x.example/" if make is datacomp_tars else "local://own/")
    assert run_set(tmp_path, card, rows_per_file=3).plan.is_noop


def test_clips_are_taken_as_clips(tmp_path: Path, project_root: Path) -> None:
    clips = project_root / "datasets" / "sample" / "media" / "clips"
    files = {"set/a.mp4": (clips / "chaplin.mp4").read_bytes(), "set/a.txt": "a man\nanother caption"}
    files |= {"set/b.webm": (clips / "bunny.webm").read_bytes(), "set/b.txt": "a bunny", "set/c.mp4": b"no clip"}
    write_files(tmp_path, {**files, "set/c.txt": "nothing"})
    done = run_set(tmp_path, make_card("folder", str(tmp_path / "set"), "**", grains=["video"]))
    kept = {s.source_row: s for s in done.samples("download/own")}
    assert kept.keys() == {"a.mp4", "b.webm"}
    assert all(s.media and s.media.kind == "video" and s.media.format == "frames" for s in kept.values())
    assert len(done.dropped("download/own")) == 1


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[Path], str]]:
    """Puts a folder into a bucket of an S3 server of our own and gives its URI."""
    with s3_server() as endpoint, s3_in_environment(endpoint):
        client = s3_client(endpoint)
        client.create_bucket(Bucket="sets")

        def put(folder: Path) -> str:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    key = f"{folder.parent.name}/{path.relative_to(folder)}"
                    client.put_object(Bucket="sets", Key=key, Body=path.read_bytes())
            return f"s3://sets/{folder.parent.name}"

        yield put


@pytest.mark.parametrize("make", [open_clip_tars, packed_tars, imagefolder, hugging_face_parquet])
def test_a_set_in_a_bucket_gives_the_same_rows(tmp_path: Path, bucket: Callable[[Path], str], make: Made) -> None:
    card, expected = make(tmp_path / "set")
    remote = card.model_copy(update={"root": bucket(tmp_path / "set")})
    done = run_set(tmp_path, remote)
    assert {s.source_row: s.captions[0].text for s in done.samples()} == expected
    assert {s.media.sha256 for s in done.samples() if s.media} == {
        hashlib.sha256(data).hexdigest() for data in _pictures(done)
    }
    assert run_set(tmp_path, remote).plan.is_noop


def _pictures(done: SetRun) -> list[bytes]:
    """The pictures of a set, made anew: each row's text ends with its number."""
    found = []
    for sample in done.samples():
        number, ending = int(sample.captions[0].text.split()[-1]), sample.url.rpartition(".")[2]
        form = {"png": "PNG", "webp": "WEBP"}.get(ending, "JPEG")
        found.append(picture(number, image_format=form))
    return found


# ---- what is due again

NODES = ("read/own", "download/own", "filter/own")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SetRun]:
    """A store with a run over three tars."""
    folder = tmp_path_factory.mktemp("stored")
    for shard in range(3):
        write_tar(folder / "set" / f"{shard:05d}.tar", pairs(range(shard * 3, shard * 3 + 3)))
    return folder, run_set(folder, make_card("webdataset", str(folder / "set"), "*.tar"))


@pytest.mark.parametrize("change", ["add", "replace", "touch", "move"])
def test_only_what_changed_is_due(tmp_path: Path, stored: tuple[Path, SetRun], change: str) -> None:
    shutil.copytree(stored[0], tmp_path / "copy")
    folder = tmp_path / "copy"
    card = make_card("webdataset", str(folder / "set"), "*.tar")
    if change == "add":
        write_tar(folder / "set" / "00009.tar", pairs(range(90, 93)))
    elif change == "replace":  # one picture by another, nothing else
        members = pairs(range(3, 6))
        write_tar(folder / "set" / "00001.tar", [(members[0][0], picture(200)), *members[1:]])
    elif change == "touch":
        os.utime(folder / "set" / "00001.tar", ns=(1, 1))
    else:
        (folder / "set").rename(folder / "moved")
        card = make_card("webdataset", str(folder / "moved"), "*.tar")
    run_again = run_set(folder, card)
    before = {node: {p.record.fingerprint for p in stored[1].manifest(node).parts} for node in NODES}
    made = {
        node: {p.name for p in run_again.manifest(node).parts if p.record.fingerprint not in before[node]}
        for node in NODES
    }
    parts = {"add": {"00009"}, "replace": {"00001"}, "touch": set(), "move": set()}[change]
    assert made["read/own"] == parts
    assert made["download/own"] == made["filter/own"] == {f"{name}-00000" for name in parts}
    assert len(run_again.samples()) == (12 if change == "add" else 9)


@pytest.mark.parametrize("change", ["none", "added", "removed", "altered"])
def test_an_audit_compares_a_set_with_what_was_read(tmp_path: Path, stored: tuple[Path, SetRun], change: str) -> None:
    folder = stored[0] / "set"
    kept = shutil.copytree(folder, tmp_path / "kept")
    try:
        if change == "added":
            write_tar(folder / "00008.tar", pairs([80]))
        elif change == "removed":
            (folder / "00002.tar").unlink()
        elif change == "altered":
            data = bytearray((folder / "00002.tar").read_bytes())
            data[900] ^= 1
            (folder / "00002.tar").write_bytes(data)
        audit = StoreAudit(stored[1].store)
        ref = stored[1].store.read_ref(EXPERIMENT, "download/own")
        assert ref is not None
        audit.visit(ref.manifest_path, ref.manifest_sha256)
    finally:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    assert [finding.kind for finding in audit.findings] == ([] if change == "none" else ["source_changed"])


def test_a_file_that_changes_between_read_and_download_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", pairs([1]))
    member = Member("a.tar", 512, len(picture(1)), "0" * 64)
    (tmp_path / "scratch").mkdir()
    assert open_places({"k": member}, str(tmp_path), tmp_path / "scratch")["k"].path == str(path)
    path.unlink()
    with pytest.raises(SourceUnavailable, match=r"a\.tar: no such file"):
        open_places({"k": member}, str(tmp_path), tmp_path / "scratch")


@pytest.mark.parametrize("place", [512 + 300, 511])
def test_bytes_that_are_not_those_that_were_read_are_refused(
    tmp_path: Path, stored: tuple[Path, SetRun], place: int
) -> None:
    """One bit of a picture, and a file that became shorter."""
    shutil.copytree(stored[0] / "set", tmp_path / "set")
    data = bytearray((tmp_path / "set" / "00000.tar").read_bytes())
    data[place] ^= 1
    (tmp_path / "set" / "00000.tar").write_bytes(data if place != 511 else data[:700])
    config = DownloadConfig(set_root=str(tmp_path / "set"))
    rows = stored[1].store.as_input(stored[1].manifest("read/own"))
    with pytest.raises(SourceUnavailable, match=r"00000\.tar: 00000/00000\d has sha256 .* not the one that was read"):
        run_stage_part(DOWNLOAD, config, DOWNLOAD.plan_parts(config, {"rows": (rows,)})[0], tmp_path / "out")


def test_a_retry_has_nothing_to_try_again(stored: tuple[Path, SetRun]) -> None:
    first = stored[1]
    read, download = (first.store.as_input(first.manifest(node)) for node in ("read/own", "download/own"))
    graph = set_graph(stored[0] / "card", make_card("webdataset", str(stored[0] / "set"), "*.tar"), retry=("dns",))
    config = graph["download/own"].config
    assert len(DOWNLOAD.plan_parts(config, {"rows": (read,)})) == 3
    assert RETRY.plan_parts(config, {"rows": (read,), "earlier": (download,)}) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"local_name": "{id}.jpg"}, "local_name"),
        ({"url_base": {"from": "http://x.example", "serve": "x"}}, "url_base"),
        ({"files": {"files": {"path": "*.tar", "sha256": "0" * 64}}}, "files.files.sha256"),
    ],
)
def test_fields_that_can_do_nothing_are_refused(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=rf"takes media out of the set itself; .*{named}"):
        make_card("webdataset", "/x", "*.tar", **fields)


def test_a_set_without_anything_to_read_says_so(tmp_path: Path) -> None:
    write_files(tmp_path / "set", {"a.zip": "x", "b.rar": "x"})
    with pytest.raises(ConfigError, match=r"none of 2 files is one that it reads \(a\.zip, b\.rar"):
        run_set(tmp_path, make_card("webdataset", str(tmp_path / "set"), "**"))
