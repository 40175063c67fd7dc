"""SBU: both published forms, and forms whose parts do not fit together."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Caption

LISTS = {
    "image_urls": ["http://static.flickr.com/1/a.jpg", " http://static.flickr.com/2/b.jpg ", "", "http://x/d.jpg"],
    "user_ids": ["1@N00", "2@N00", "3@N00", "4@N00"],
    "captions": ["The dog in\nmy chair.", 'A "red" car', "lost", "  "],
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "sbu-captions-all.json"
    path.write_text(json.dumps(content))
    return path


def test_the_json_of_lists(tmp_path: Path) -> None:
    samples, drops = read("sbu", source("sbu", rows=write(tmp_path, LISTS)))
    assert [(sample.source_row, sample.url, sample.captions) for sample in samples] == [
        ("0", "http://static.flickr.com/1/a.jpg", (Caption("The dog in my chair.", "en", "alt"),)),
        ("1", "http://static.flickr.com/2/b.jpg", (Caption('A "red" car', "en", "alt"),)),
    ]
    assert rules(drops) == [("2", "row", "", "missing_url"), ("3", "row", "", "empty_caption")]


def test_the_two_text_files_give_the_same_samples(tmp_path: Path) -> None:
    from_json, _ = read("sbu", source("sbu", rows=write(tmp_path, LISTS)))
    (tmp_path / "urls.txt").write_text("\n".join(url.strip() for url in LISTS["image_urls"]) + "\n")
    (tmp_path / "captions.txt").write_text("".join(f"{' '.join(text.split())}\r\n" for text in LISTS["captions"]))
    files = {"urls": tmp_path / "urls.txt", "captions": tmp_path / "captions.txt"}
    from_text, drops = read("sbu", source("sbu", **files))
    assert from_text == from_json
    assert rules(drops) == [("2", "row", "", "missing_url"), ("3", "row", "", "empty_caption")]


def test_values_that_are_no_texts_and_lines_that_are_not_utf8(tmp_path: Path) -> None:
    content = {"image_urls": ["http://x/1", None, "http://x/3"], "captions": ["a", "b", 7]}
    samples, drops = read("sbu", source(rows=write(tmp_path, content)))
    assert [sample.source_row for sample in samples] == ["0"]
    assert rules(drops) == [("1", "row", "", "malformed_row"), ("2", "row", "", "malformed_row")]
    (tmp_path / "urls.txt").write_bytes(b"http://x/1\nhttp://x/2")
    (tmp_path / "captions.txt").write_bytes(b"caf\xe9\nb")
    samples, drops = read("sbu", source(urls=tmp_path / "urls.txt", captions=tmp_path / "captions.txt"))
    assert [sample.captions[0].text for sample in samples] == ["b"]
    assert rules(drops) == [("0", "row", "", "not_utf8")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LISTS | {"captions": ["a"]}, "its lists differ in length: image_urls 4, captions 1, user_ids 4. Download it"),
        (LISTS | {"user_ids": []}, "its lists differ in length: image_urls 4, captions 4, user_ids 0"),
        ({"image_urls": []}, "no list called captions at the top level. Expected sbu-captions-all.json"),
        (LISTS | {"captions": {"0": "a"}}, "captions is not a list"),
        ([LISTS], "not a JSON object at the top level"),
    ],
)
def test_another_json(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(SourceUnavailable, match=f"card test_card: rows file sbu-captions-all.json: {message}"):
        read("sbu", source(rows=write(tmp_path, content)))


def test_text_files_of_different_length(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://x/1\nhttp://x/2\n")
    (tmp_path / "captions.txt").write_text("a\n")
    with pytest.raises(SourceUnavailable, match=r"urls file urls.txt: 2 lines, but captions.txt has 1\. Lines belong"):
        read("sbu", source(urls=tmp_path / "urls.txt", captions=tmp_path / "captions.txt"))


def test_truncated_json_and_missing_roles(tmp_path: Path) -> None:
    path = tmp_path / "sbu.json"
    path.write_text('{"image_urls": ["http://x/1", "htt')
    with pytest.raises(SourceUnavailable, match=r"not valid JSON: Unterminated string starting at at byte 30\."):
        read("sbu", source(rows=path))
    with pytest.raises(SourceUnavailable, match="SBU needs a file for role `rows`"):
        read("sbu", source(urls=path))
