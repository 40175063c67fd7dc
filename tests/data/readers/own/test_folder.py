"""Folders of pictures with texts, Hugging Face's imagefolder, and names that are hard to read."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.readers.helpers import read, rules, source
from tests.support.sets.files import picture, write_files
from x2vlm.data.readers.own.files import group_names


def texts(folder: Path) -> dict[str, list[str]]:
    samples, _ = read("folder", source(files=folder))
    return {sample.source_row: [caption.text for caption in sample.captions] for sample in samples}


def test_texts_beside_pictures(tmp_path: Path) -> None:
    files = {
        "one.jpg": picture(1),
        "one.txt": "first caption\n\nsecond caption\nfirst caption\n",
        "sub/two.v2.PNG": picture(2, image_format="PNG"),
        "sub/two.v2.caption": "\ufeffwith a mark",
        "sub/three.webp": picture(3, image_format="WEBP"),
        "sub/three.webp.txt": "named after the whole file",
        "sub/four.gif": picture(4, image_format="GIF"),
        "sub/four.json": json.dumps({"captions": ["a", "b"]}),
        "sub/clip.mp4": b"any bytes",
        "sub/clip.txt": "utf-16".encode("utf-16").decode("latin-1").encode("latin-1"),
        "five.jpg": picture(5),
        "five.json": json.dumps({"caption": "one caption\nof two lines", "url": "https://x.example/5.jpg"}),
        "five.txt": "one caption\nof two lines",
        ".DS_Store": b"x",
        "__MACOSX/._one.jpg": b"x",
        "notes.md": "# passed over",
    }
    folder = write_files(tmp_path / "set", files)
    assert texts(folder) == {
        "one.jpg": ["first caption", "second caption"],
        "five.jpg": ["one caption of two lines"],
        "sub/two.v2.PNG": ["with a mark"],
        "sub/three.webp": ["named after the whole file"],
        "sub/four.gif": ["a", "b"],
        "sub/clip.mp4": ["utf-16"],
    }
    samples, drops = read("folder", source(files=folder))
    assert {s.source_row: s.kind for s in samples}["sub/clip.mp4"] == "video"
    assert {s.source_row: s.url for s in samples}["five.jpg"] == "https://x.example/5.jpg"
    assert {s.source_row: s.url for s in samples}["one.jpg"] == "local://test/one.jpg"
    assert not drops


def test_what_is_alone_is_counted(tmp_path: Path) -> None:
    files = {
        "a.jpg": picture(1),
        "b.txt": "no picture",
        "c/d.json": json.dumps({"caption": "no picture either"}),
        "c/e.png": picture(2),
        "c/e.txt": "\n \n",
        "f.jpg": picture(3),
        "f.txt": "ü".encode("latin-1"),
        "g.jpg": picture(4),
        "g.json": "[1, 2]",
    }
    samples, drops = read("folder", source(files=write_files(tmp_path / "set", files)))
    assert not samples
    assert {row: rule for row, _, _, rule in rules(drops)} == {
        "a.jpg": "no_caption",
        "b.txt": "no_media",
        "c/d.json": "no_media",
        "c/e.png": "no_caption",
        "f.jpg": "text_not_utf8",
        "g.jpg": "no_caption",
    }


def metadata_csv(rows: list[dict[str, str]]) -> bytes:
    return ("file_name,text\r\n" + "".join(f'{r["file_name"]},"{r["text"]}"\r\n' for r in rows)).encode("utf-8-sig")


def metadata_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def metadata_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "write"),
    [("metadata.csv", metadata_csv), ("metadata.jsonl", metadata_jsonl), ("metadata.parquet", metadata_parquet)],
)
def test_a_hugging_face_imagefolder(tmp_path: Path, name: str, write: object) -> None:
    rows = [
        {"file_name": "one.jpg", "text": "a, b"},
        {"file_name": "deep/two.jpg", "text": "two"},
        {"file_name": "one.jpg", "text": "a second caption"},
        {"file_name": "gone.jpg", "text": "no such file"},
        {"file_name": "../one.jpg", "text": "outside"},
    ]
    files = {f"train/{file}": picture(n) for n, file in enumerate(["one.jpg", "deep/two.jpg", "unlisted.jpg"])}
    folder = write_files(tmp_path / "set", {**files, f"train/{name}": write(rows)})  # type: ignore[operator]
    assert texts(folder) == {"train/one.jpg": ["a, b", "a second caption"], "train/deep/two.jpg": ["two"]}
    _, drops = read("folder", source(files=folder))
    assert sorted(rule for _, _, _, rule in rules(drops)) == ["bad_metadata", "no_caption", "no_media"]


@pytest.mark.parametrize(
    ("name", "data", "num_bad"),
    [
        ("metadata.csv", b"file_name,text\na.jpg,one\nb.jpg,\xff\nc.jpg,one,too many\n\nd.jpg,two\n", 2),
        ("metadata.jsonl", b'{"file_name": "a.jpg", "text": "one"}\n{bad\n[]\n{"file_name": "d.jpg", "text": "\xc3"}\n'
                           b'{"file_name": "d.jpg", "text": "two"}\n', 3),
        ("metadata.csv", b"file_name,text\na.jpg,one\nd.jpg,two\nx.jpg,\"" + b"x" * (2 << 20) + b"\"\n", 1),
    ],
)  # fmt: skip
def test_one_bad_row_of_metadata_ends_nothing(tmp_path: Path, name: str, data: bytes, num_bad: int) -> None:
    folder = write_files(tmp_path / "set", {"a.jpg": picture(1), "d.jpg": picture(2), name: data})
    assert texts(folder) == {"a.jpg": ["one"], "d.jpg": ["two"]}
    _, drops = read("folder", source(files=folder))
    assert [rule for _, _, _, rule in rules(drops)] == ["bad_metadata"] * num_bad


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"\xff\xfe.jpg", b"d\x80r/x.jpg"])
def test_names_that_are_not_utf8_are_a_counted_drop(tmp_path: Path, name: bytes) -> None:
    folder = write_files(tmp_path / "set", {"a.jpg": picture(1), "a.txt": "fine"})
    path = os.fsencode(folder) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(picture(2))
    samples, drops = read("folder", source(files=folder))
    assert [sample.source_row for sample in samples] == ["a.jpg"]
    assert [rule for _, _, _, rule in rules(drops)] == ["name_not_utf8"]
    drops[0].source_row.encode("utf-8")


def test_groups_of_folders() -> None:
    assert list(group_names("folder", ["a.jpg", "b/c.jpg", "b/d/e.jpg"]).values()) == [
        ["a.jpg"],
        ["b/c.jpg"],
        ["b/d/e.jpg"],
    ]
    below = group_names("folder", ["b/metadata.csv", "b/d/e.jpg", "c/f.jpg"])
    assert list(below.values()) == [["b/d/e.jpg", "b/metadata.csv"], ["c/f.jpg"]]
    files = group_names("folder", ["0/1.jpg", "0.parquet", "0_stats.json"])
    assert [sorted(names) for names in files.values()] == [["0.parquet", "0/1.jpg", "0_stats.json"]]
    many = group_names("folder", [f"{n % 7}/{n}/x.jpg" for n in range(3000)])
    assert len(many) == 7
