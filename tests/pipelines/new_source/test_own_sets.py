"""`jobs/new_source.py` on folders, tars and Parquet with media: what it understands, what it refuses and why."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from pipelines.experiment import load_experiment
from pipelines.new_source import sets
from pipelines.new_source.arguments import COLUMN_OPTIONS
from pipelines.new_source.places import find_place
from tests.support.sets.files import pairs, picture, write_files, write_tar
from tests.support.sets.img2dataset_runs import BROKEN, GONE, NUM_ROWS
from tests.support.sets.new_source import look, rows_of
from x2vlm.data.cards import load_card
from x2vlm.data.readers.own.layout import ALIASES
from x2vlm.errors import ConfigError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def open_clip_tars(folder: Path) -> str:
    folder.mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as tar:
            for n in range(shard * 4, shard * 4 + 4):
                tar.write({"__key__": f"{n:04d}", "jpg": picture(n), "txt": f"text {n}"})
    return str(folder)


def datacomp_tars(folder: Path) -> str:
    """Below a folder of their own, beside tables of addresses."""
    for shard in range(2):
        facts = {"uid": "0", "url": f"http://10.0.0.1:81/{shard}.jpg"}
        write_tar(folder / "shards" / f"{shard:08d}.tar", pairs(range(shard * 4, shard * 4 + 4), **facts))
    (folder / "metadata").mkdir()
    pq.write_table(pa.table({"url": ["http://x.example/1"], "text": ["a"]}), folder / "metadata" / "0.parquet")
    return str(folder)


def one_tar(folder: Path) -> str:
    write_tar(folder / "other.tar", pairs(range(90, 95)))
    return str(write_tar(folder / "a [1],{b}.tar", pairs(range(8))))


def packed_tars(folder: Path) -> str:
    write_tar(folder / "x.tar.gz", pairs(range(4)), mode="w:gz")
    write_tar(folder / "y.tar.gz", pairs(range(4, 8)), mode="w:gz")
    return str(folder)


def tars_by_pattern(folder: Path) -> str:
    for shard in range(4):
        write_tar(folder / f"{shard:05d}.tar", pairs(range(shard * 4, shard * 4 + 4)))
    return f"{folder}/{{00001..00002}}.tar"


def photos_with_texts(folder: Path) -> str:
    return str(
        write_files(
            folder,
            {f"{n % 3}/{n}.{e}": picture(n) if e == "png" else f"text {n}" for n in range(8) for e in ("png", "txt")},
        )
    )


def photos_with_facts(folder: Path) -> str:
    files = {f"{n}.jpg": picture(n) for n in range(8)}
    return str(write_files(folder, {**files, **{f"{n}.json": json.dumps({"caption": f"text {n}"}) for n in range(8)}}))


def imagefolder(folder: Path) -> str:
    lines = "\n".join(f"{n}.jpg,text {n}" for n in range(8))
    files = {f"train/{n}.jpg": picture(n) for n in range(8)}
    return str(write_files(folder, {**files, "train/metadata.csv": f"file_name,text\n{lines}\n"}))


def hugging_face_parquet(folder: Path) -> str:
    folder.mkdir()
    for shard in range(2):
        images = pa.array([{"bytes": picture(shard * 4 + n), "path": None} for n in range(4)], STRUCT)
        pq.write_table(pa.table({"text": ["a", "b", "c", "d"], "image": images}), folder / f"train-{shard}.parquet")
    return str(folder)


SETS: list[tuple[Callable[[Path], str], str, str]] = [
    (open_clip_tars, "webdataset", "*.tar"),
    (datacomp_tars, "webdataset", "shards/*.tar"),
    (one_tar, "webdataset", "a ?1???b?.tar"),
    (packed_tars, "webdataset", "*.tar.gz"),
    (tars_by_pattern, "webdataset", "{00001..00002}.tar"),
    (photos_with_texts, "folder", "**"),
    (photos_with_facts, "folder", "**"),
    (imagefolder, "folder", "**"),
    (hugging_face_parquet, "webdataset", "*.parquet"),
]


@pytest.mark.parametrize(("make", "reader", "path"), SETS)
def test_a_set_becomes_a_card_and_an_experiment(
    tmp_path: Path, make: Callable[[Path], str], reader: str, path: str
) -> None:
    text, data = look(tmp_path / "out", make(tmp_path / "my set"), "--name", "mine")
    assert (data["reader"], data["num_rows"], data["is_counted"], data["dropped"]) == (reader, 8, True, {})
    card = load_card(Path(data["card"]))
    assert (card.root, card.url_base, card.allow_networks) == (str(tmp_path / "my set"), None, ())
    assert [file.path for file in card.files.values()] == [path]
    experiment = load_experiment(data["experiment"])
    assert [stream.kind for stream in experiment.pretrain.data.streams] == ["image"]
    shown = [line.split()[1] for line in text.splitlines() if line.startswith("image ")]
    rows = [row["source_row"] for row in rows_of(tmp_path / "store", data)]
    assert len(rows) == 8
    assert len(shown) == 5
    assert set(shown) <= {row.split()[0] for row in rows}


@pytest.mark.parametrize("name", ["webdataset", "parquet", "files"])
def test_what_img2dataset_wrote_is_understood(tmp_path: Path, img2dataset_outputs: Path, name: str) -> None:
    text, data = look(tmp_path / "out", img2dataset_outputs / name)
    reader, path = {"webdataset": ("webdataset", "*.tar"), "files": ("folder", "**")}.get(
        name, ("webdataset", "*.parquet")
    )
    assert (data["reader"], data["num_rows"]) == (reader, NUM_ROWS)
    assert [file.path for file in load_card(Path(data["card"])).files.values()] == [path]
    failed = {"failed_to_download": len(GONE), **({"failed_to_resize": len(BROKEN)} if name == "parquet" else {})}
    assert data["dropped"] == failed
    stored = NUM_ROWS - sum(failed.values())
    assert f"with _stats.json: 3, with a table of their addresses: 3; of 24 addresses {stored} were stored" in text
    assert f"{len(GONE)} failed_to_download, {failed.get('failed_to_resize', 0)} failed_to_resize" in text
    assert "did not finish" not in text


def test_a_shard_that_img2dataset_did_not_finish_is_named(tmp_path: Path, img2dataset_outputs: Path) -> None:
    shutil.copytree(img2dataset_outputs / "webdataset", tmp_path / "tars")
    (tmp_path / "tars" / "00001_stats.json").unlink()
    (tmp_path / "tars" / "00002_stats.json").write_text('{"count": "many"}')
    text, _ = look(tmp_path / "out", tmp_path / "tars")
    assert "with _stats.json: 1," in text
    assert "no _stats.json for 1 shards (00001): img2dataset did not finish them" in text


def test_the_table_beside_a_shard_is_no_source(img2dataset_outputs: Path) -> None:
    for folder, there in (("webdataset", "00000.tar"), ("files", "00000")):
        with pytest.raises(ConfigError, match=f"whose media lie in {there}; to use those give their folder"):
            find_place([str(img2dataset_outputs / folder / "00000.parquet")])


def test_clips_make_a_stream_of_clips(tmp_path: Path, project_root: Path) -> None:
    clip = (project_root / "datasets/sample/media/clips/nasa.mp4").read_bytes()
    files: dict[str, bytes | str] = {f"{n}.mp4": clip for n in range(4)} | {"p.jpg": picture(1), "p.txt": "a photo"}
    write_files(tmp_path / "clips", {**files, **{f"{n}.txt": "a rocket" for n in range(4)}})
    _, data = look(tmp_path / "out", tmp_path / "clips")
    assert sorted(load_card(Path(data["card"])).grains) == ["image", "video"]
    experiment = load_experiment(data["experiment"])
    assert [stream.kind for stream in experiment.pretrain.data.streams] == ["image", "video"]
    assert experiment.pretrain.model.num_frames == 3


@pytest.mark.parametrize(
    ("columns", "reader"),
    [
        ({"url": ["https://a.example/1.jpg"], "caption": ["a"]}, "table"),
        ({"url": [b"https://a.example/1.jpg"], "caption": [b"a"]}, "table"),
        ({"image": [b"https://a.example/1.jpg"], "caption": ["caf\xe9".encode("latin-1")]}, "table"),
        ({"image": [None, b"photos/1.jpg"], "caption": ["a", "b"]}, "table"),
        ({"image": pa.array([{"bytes": None, "path": "x"}], STRUCT), "caption": ["a"]}, "webdataset"),
        (
            {"jpg": [None, picture(1)], "caption": ["a", "b"], "url": ["https://a.example", "https://b.example"]},
            "webdataset",
        ),
        ({"content": [b"\0\0\0\x20ftypisom" + bytes(40)], "text": ["a clip"]}, "webdataset"),
        ({"png": [picture(1, image_format="PNG"), b"<html>"], "txt": ["a", "b"]}, "webdataset"),
    ],
)
def test_parquet_with_media_is_told_from_a_table(tmp_path: Path, columns: dict[str, Any], reader: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    assert find_place([str(tmp_path / "x.parquet")]).reader == reader


@pytest.mark.parametrize(
    ("files", "typed", "arguments", "message"),
    [
        ({}, "nothing", (), "nothing: no such file or folder"),
        ({}, "", (), "no such folder, or it is empty"),
        ({"a.zip": "x", "b/c.zip": "x", "d": "x"}, "", (), r"its 3 files are: zip \(2\), no suffix \(1\). Unpack"),
        ({"a.csv": "url,caption\n"}, "", (), r"give the table itself: .*/a\.csv$"),
        ({"b/1.parquet.gz": "x", "b/2.tsv": "x"}, "", (), r"give the table itself: .*\.gz \(it holds 2 tables"),
        ({"1.jpg": picture(1)}, "*.jpg", (), "would leave out the texts beside the media; give their folder"),
        ({"1.tar": "x"}, "{2..3}.tar", (), r"no file is called like that .*1 files matches \{2\.\.3\}\.tar"),
        ({"1.jpg": picture(1)}, "1.jpg", (), r"1\.jpg: no table; give the folder"),
        ({"1.jpg": picture(1)}, "", (), r"none of the first 1 rows can be used: no_caption 1 \(1\.jpg"),
        ({"1.tar": "no tar"}, "", (), r"none of the first 1 rows can be used: truncated_shard 1"),
        ({"1.jpg": picture(1), "1.txt": "a"}, "", ("--start", "x"), "--start: is for tables; .* can be named: caption"),
        ({"1.jpg": picture(1), "1.txt": "a"}, "", ("--media", "x"), "--media: is for tables"),
        ({"1.tar": "x", "2.tar": "x"}, "1.tar", ("2.tar",), "2 paths were given .* a pattern in quotes"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_before_anything_is_written(
    tmp_path: Path, files: dict[str, bytes | str], typed: str, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "set").mkdir()
    write_files(tmp_path / "set", files)
    with pytest.raises(ConfigError, match=message):
        look(tmp_path / "out", tmp_path / "set" / typed, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("make", [open_clip_tars, hugging_face_parquet, photos_with_texts])
def test_of_large_sets_a_part_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], str]
) -> None:
    typed = make(tmp_path / "set")
    monkeypatch.setattr(sets, "LOOK_BYTES", 5_000)
    monkeypatch.setattr(sets, "LOOK_ROWS", 3)
    text, data = look(tmp_path / "out", typed)
    assert not data["is_counted"]
    assert 5 <= data["num_rows"] <= 12
    assert data["dropped"] == {}  # what was not read is not said to be missing
    assert ": about " in text
    assert "note: looked into 1 of" in text


def test_every_field_of_a_table_is_an_option() -> None:
    assert set(COLUMN_OPTIONS) == set(ALIASES)
    assert len(COLUMN_OPTIONS) == len(ALIASES)


@pytest.mark.parametrize("field", ["beschreibung", "Alt Text", "说明"])
def test_captions_in_a_field_of_another_name(tmp_path: Path, field: str) -> None:
    files = {f"{n}.jpg": picture(n) for n in range(6)} | {
        f"{n}.json": json.dumps({field: f"text {n}"}) for n in range(6)
    }
    folder = write_files(tmp_path / "photos", files)
    text, data = look(tmp_path / "out", str(folder), "--caption", field, "--name", "mine")
    assert "text 4" in text
    assert load_card(Path(data["card"])).columns == {"caption": (field,)}
