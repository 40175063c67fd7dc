"""Tars and Parquet files of samples: pairing, captions, facts, boxes, drops."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from tests.data.readers.helpers import read, rules, source
from tests.support.sets.files import pairs, picture, write_tar
from x2vlm.data.readers.own.files import group_names
from x2vlm.samples import Grain


def test_pairs_as_webdataset_pairs_them(tmp_path: Path) -> None:
    """The same keys as webdataset's own reader, with dots, folders and capitals in names."""
    members = [
        ("a.jpg", picture(1)),
        ("a.txt", b"one"),
        ("b.b.JPG", picture(2)),
        ("b.b.TXT", b"two"),
        ("d.d/c.seg.png", picture(3, image_format="PNG")),
        ("d.d/c.txt", b"three"),
        ("README", b"no sample"),
    ]
    path = write_tar(tmp_path / "set" / "s.tar", members)
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    theirs = [sample["__key__"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)]
    assert [sample.source_row for sample in samples] == [f"s/{key}" for key in theirs] == ["s/a", "s/b", "s/d.d/c"]
    assert [sample.captions[0].text for sample in samples] == ["one", "two", "three"]
    assert not drops


def test_members_of_a_key_may_lie_apart(tmp_path: Path) -> None:
    together = pairs(range(5), url="http://x.example/1.jpg")
    apart = sorted(together, key=lambda member: member[0].rpartition(".")[2])
    write_tar(tmp_path / "a" / "0.tar", together)
    write_tar(tmp_path / "b" / "0.tar", apart)
    first, second = (read("webdataset", source(files=tmp_path / name)) for name in "ab")
    assert {s.key: s for s in first[0]} == {s.key: s for s in second[0]}
    assert len(first[0]) == 5
    assert not first[1]
    assert not second[1]


def test_what_has_no_partner_or_comes_twice_is_counted(tmp_path: Path) -> None:
    members = [
        *pairs([1]),
        ("alone.jpg", picture(5)),
        ("text.txt", b"no picture"),
        ("class.cls", b"7"),
        *pairs([1]),
        *pairs([1]),
        ("two.jpg", picture(6)),
        ("two.png", picture(7, image_format="PNG")),
        ("two.txt", b"two pictures"),
        ("bad.jpg", picture(8)),
        ("bad.json", b"{no json"),
        ("latin.jpg", picture(9)),
        ("latin.txt", "café".encode("latin-1")),
        ("blank.jpg", picture(9)),
        ("blank.txt", b" \n "),
    ]
    write_tar(tmp_path / "set" / "s.tar", members)
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert [sample.source_row for sample in samples] == ["s/000001", "s/two"]
    assert {row: rule for row, _, _, rule in rules(drops)} == {
        "s/alone": "no_caption",
        "s/text": "no_media",
        "s/class": "no_media",
        "s/000001#2": "duplicate_key",
        "s/000001#3": "duplicate_key",
        "s/two.png": "second_media",
        "s/bad": "bad_json",
        "s/latin": "text_not_utf8",
        "s/blank": "no_caption",
    }


@pytest.mark.parametrize(
    ("facts", "texts"),
    [
        ({"caption": "from json"}, ["from json"]),
        ({"captions": ["one", "two", "one", " "]}, ["one", "two"]),
        ({"TEXT": "capitals"}, ["capitals"]),
        (["a list", "of texts"], ["a list", "of texts"]),
        ("a text", ["a text"]),
        ({"caption": None, "text": "the next name"}, ["the next name"]),
        ({"caption": float("nan"), "alt": "not the word nan"}, ["not the word nan"]),
        ({"caption": 5, "txt": "ignored: caption is no text"}, []),
        ({"caption": "lone \ud800 surrogate"}, []),
    ],
)
def test_captions_of_json(tmp_path: Path, facts: object, texts: list[str]) -> None:
    write_tar(tmp_path / "set" / "s.tar", [("a.jpg", picture(1)), ("a.json", json.dumps(facts).encode())])
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert [caption.text for sample in samples for caption in sample.captions] == texts
    assert [rule for _, _, _, rule in rules(drops)] == ([] if texts else ["no_caption"])


def test_facts_are_kept(tmp_path: Path) -> None:
    digest = hashlib.sha256(picture(1)).hexdigest()
    facts = {
        "uid": "0" * 32,
        "url": "https://x.example/a.jpg",
        "sha256": digest.upper(),
        "width": 48,
        "height": 32.0,
        "original_width": 4000,
        "LICENSE": "CC-BY",
        "NSFW": "UNLIKELY",
        "similarity": 0.31,
        "language": "de",
    }
    members = [("a.jpg", picture(1)), ("a.txt", b"ein Hund"), ("a.json", json.dumps(facts).encode())]
    write_tar(tmp_path / "set" / "s.tar", members)
    ((sample,), _) = read("webdataset", source(files=tmp_path / "set"))
    assert (sample.url, sample.published_hash) == ("https://x.example/a.jpg", f"sha256:{digest}")
    assert (sample.claimed_width, sample.claimed_height, sample.licence) == (48, 32, "CC-BY")
    assert sample.captions[0].language == "de"
    assert sample.source_scores is not None
    assert sample.source_scores.similarity == 0.31


@pytest.mark.parametrize(
    "objects",
    [
        {"boxes": [{"box": [1, 2, 30, 20], "text": "a dog"}, {"box": [0, 0, "x", 1], "text": "bad"}]},
        {"regions": [{"bbox": [1, 2, 30, 20], "phrase": "a dog"}, {"bbox": [0, 0], "phrase": "bad"}]},
        {"objects": {"bbox": [[1, 2, 30, 20], [0, 0, 1, float("inf")]], "caption": ["a dog", "bad"]}},
    ],
)
def test_boxes_of_every_layout(tmp_path: Path, objects: dict[str, object]) -> None:
    write_tar(tmp_path / "set" / "s.tar", [("a.jpg", picture(1)), ("a.json", json.dumps(objects).encode())])
    ((sample,), drops) = read("webdataset", source(files=tmp_path / "set"))
    (concept,) = sample.concepts
    assert (concept.text, concept.grain) == ("a dog", Grain.REGION)
    assert (concept.box.x, concept.box.y, concept.box.w, concept.box.h) == (1, 2, 30, 20)
    assert [rule for _, _, _, rule in rules(drops)] == ["malformed_box"]


@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "struct"])
def test_parquet_with_media_inside(tmp_path: Path, kind: str) -> None:
    values = [picture(1), None, picture(3)]
    if kind == "struct":
        column = pa.array(
            [{"bytes": v, "path": None} for v in values], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        )
    else:
        column = pa.array(values, getattr(pa, kind)())
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": column, "text": ["one", "two", "three"]}), tmp_path / "set" / "train-0.parquet")
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert [(s.source_row, s.captions[0].text) for s in samples] == [("train-0/0", "one"), ("train-0/2", "three")]
    assert rules(drops) == [("train-0/1", "row", "", "no_media")]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_broken_parquet_file_is_counted(tmp_path: Path, keep: float) -> None:
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "0.parquet"
    pq.write_table(pa.table({"jpg": [picture(n) for n in range(50)], "caption": ["x"] * 50}), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert not samples
    assert rules(drops) == [("0", "row", "", "truncated_shard")]


def test_damage_inside_a_parquet_file_keeps_the_rows_before(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "0.parquet"
    table = pa.table({"jpg": [picture(n, (200, 200)) for n in range(64)], "caption": ["x"] * 64})
    pq.write_table(table, path, row_group_size=32, use_dictionary=False, compression="zstd")
    chunk = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    samples, drops = read("webdataset", source(files=tmp_path / "set"))
    assert len(samples) == 32
    assert [rule for _, _, _, rule in rules(drops)] == ["truncated_shard"] * 32


def test_files_of_a_shard_are_one_group() -> None:
    names = ["a/0.tar", "a/0.parquet", "a/0_stats.json", "a/1.tar.gz", "b/0.tar", "notes.json", "x y.tar"]
    groups = group_names("webdataset", names)
    assert [sorted(members) for members in groups.values()] == [
        ["a/0.parquet", "a/0.tar", "a/0_stats.json"],
        ["a/1.tar.gz"],
        ["b/0.tar"],
        ["x y.tar"],
    ]
    assert len({name.lower() for name in groups}) == 4
    assert all(name.replace("-", "").replace("_", "").isalnum() for name in groups)
