"""GQA: objects with attributes, and graphs that are no good. No real graph was at hand when this was written."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.readers.helpers import read, rules, source
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Concept, Grain

WINDOW = {"name": "window", "x": 10, "y": 20, "w": 30, "h": 40, "attributes": ["large", "white"], "relations": []}


def write(folder: Path, content: Any) -> Path:
    path = folder / "train_sceneGraphs.json"
    path.write_text(json.dumps(content))
    return path


def test_objects_with_attributes(tmp_path: Path) -> None:
    sky = {"name": "sky", "x": 0, "y": 0, "w": 500, "h": 100, "relations": [{"name": "above", "object": "681267"}]}
    graphs = {"2407890": {"width": 640, "height": 480, "objects": {"681267": WINDOW, "681268": sky}}}
    [sample], drops = read("gqa", source("gqa", scene_graphs=write(tmp_path, graphs)))
    assert (sample.source_row, sample.url, drops) == ("2407890", "http://gqa.invalid/2407890.jpg", [])
    assert (sample.claimed_width, sample.claimed_height) == (640, 480)
    assert sample.concepts == (
        Concept(Grain.OBJECT, "window", Box(10, 20, 30, 40), ("large", "white"), "681267"),
        Concept(Grain.OBJECT, "sky", Box(0, 0, 500, 100), (), "681268"),
    )


def test_graphs_and_objects_that_are_no_good(tmp_path: Path) -> None:
    objects = {"1": WINDOW, "2": WINDOW | {"name": " "}, "3": WINDOW | {"h": None}, "4": "window"}
    path = tmp_path / "g.json"
    parts = [{"a": {"objects": objects}}, {"b": {"width": 3}}, {"a": {"objects": {"5": WINDOW}}}]
    path.write_text("{" + ",".join(json.dumps(part)[1:-1] for part in parts) + "}")
    [sample], drops = read("gqa", source(scene_graphs=path))
    assert [concept.annotation_id for concept in sample.concepts] == ["1"]
    assert rules(drops) == [
        ("a", "concept", "2", "empty_text"),
        ("a", "concept", "3", "malformed_box"),
        ("a", "concept", "4", "malformed_record"),
        ("b", "row", "", "malformed_row"),
        ("a", "row", "", "duplicate_row"),
        ("a", "concept", "5", "row_dropped"),
    ]


def test_questions_are_no_scene_graphs(excerpts_dir: Path) -> None:
    path = excerpts_dir / "gqa" / "questions.json"
    with pytest.raises(
        SourceUnavailable, match=r"scene_graphs file questions.json: no image in it has objects. Expected"
    ):
        read("gqa", source(scene_graphs=path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "not a JSON object at the top level"), ('{"a": {"objects"', "not valid JSON: .* at byte 16")],
)
def test_another_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "g.json"
    path.write_text(text)
    with pytest.raises(SourceUnavailable, match=message):
        read("gqa", source(scene_graphs=path))


def test_a_list_of_urls_says_where_images_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = tmp_path / "urls.tsv"
    urls.write_text("1\thttp://mirror/one.jpg\n2.jpg\thttp://mirror/two.jpg\n")
    graphs = {number: {"objects": {"5": WINDOW}} for number in ("1", "2", "n3")}
    samples, _ = read("gqa", source(scene_graphs=write(tmp_path, graphs), urls=urls))
    assert [sample.url for sample in samples] == [
        "http://mirror/one.jpg",
        "http://mirror/two.jpg",
        "http://gqa.invalid/n3.jpg",
    ]
    urls.write_bytes(b"\xef\xbb\xbf1\thttp://mirror/one.jpg\nhttp://mirror/two.jpg\n\n2.jpg\thttp://mirror/\xe9.jpg\n")
    samples, _ = read("gqa", source(scene_graphs=write(tmp_path, graphs), urls=urls))
    assert [sample.url for sample in samples[:2]] == ["http://mirror/one.jpg", "http://gqa.invalid/2.jpg"]
    assert "lines_skipped=2 first=2, 4" in caplog.text
    urls.write_text("http://mirror/one.jpg\nhttp://mirror/two.jpg\n")
    with pytest.raises(SourceUnavailable, match=r"urls file urls.tsv: line 1 is no id, tab and URL, nor is any other"):
        read("gqa", source(scene_graphs=write(tmp_path, graphs), urls=urls))
