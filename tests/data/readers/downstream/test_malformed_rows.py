"""Whatever a row holds, it becomes an example or a drop: no reader breaks off, and none loses a row."""

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sets.downstream import write_json
from x2vlm.data.readers.downstream import read_task
from x2vlm.data.task_examples import TaskData, example_table, examples_of
from x2vlm.errors import ConfigError, SourceUnavailable

IMAGES = [{"id": 1, "file_name": "1.jpg", "width": 50, "height": 50}]
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # reader -> a good row, options
    "caption_list": ({"image": "a.jpg", "caption": "text", "image_id": 1}, {}),
    "vqa_list": ({"question_id": 1, "image": "a.jpg", "question": "Q?", "answer": ["a"], "dataset": "vqa"}, {}),
    "gqa_labels": ({"img_id": "n1", "sent": "Q?", "label": {"a": 1.0}, "question_id": "1"}, {}),
    "nlvr2": ({"identifier": "dev-1-0-0", "sentence": "Two.", "label": "True"}, {"set": "dev"}),
    "marvl": (
        {
            "concept": "c",
            "language": "id",
            "caption": "t",
            "left_img": "a",
            "right_img": "b",
            "id": "id-0",
            "label": True,
        },
        {"language": "id"},
    ),
    "image_pair_list": ({"images": ["a.jpg", "b.jpg"], "sentence": "Two.", "label": "False"}, {}),
    "xvnli": ({"gold_label": "neutral", "sentence2": "text", "pairID": "1#0", "Flikr30kID": "1"}, {}),
    "refcoco_list": ({"image": "a.jpg", "text": "it", "ref_id": 2, "bbox": [1, 2, 3, 4], "width": 9, "height": 9}, {}),
    "winoground": (
        {"id": 1, "image_0": "a", "image_1": "b", "caption_0": "a b", "caption_1": "b a", "tag": "Noun"},
        {},
    ),
    "wit": ({"image_url": "http://x/a.jpg", "caption_reference_description": "text", "language": "en"}, {}),
    "xflickrco": ({"sentences": ["text"], "id": "1", "img_path": "a.jpg"}, {}),
    "vg_qa": ({"qas": [{"qa_id": 1, "image_id": 1, "question": "Q?", "answer": "A."}]}, {"media": "{image_id}.jpg"}),
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["../x", "a\x00b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def rows_of(data: TaskData) -> set[str]:
    """The rows that a reading accounts for, as numbers before the first "."."""
    return {drop.source_row.partition(".")[0] for drop in data.dropped if drop.unit == "row"}


@pytest.mark.parametrize("reader", ROWS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_row_with_any_value_is_an_example_or_a_drop(reader: str, data: st.DataObject) -> None:
    good, options = ROWS[reader]
    bad = copy.deepcopy(good)
    changed = data.draw(st.sampled_from(sorted(bad)))
    if data.draw(st.booleans()):
        del bad[changed]
    else:
        bad[changed] = data.draw(values)
    with tempfile.TemporaryDirectory() as folder:
        # As JSON lines, so that a value which JSON cannot hold fails its own line alone.
        path = Path(folder) / "rows.jsonl"
        path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n", encoding="utf-8")
        found = read_task(reader, {"rows": path}, "test", options)
    assert 1 <= len(found.examples) <= 2
    has_none = bad.get("qas") == []  # an image without questions is no bad row
    assert len(found.examples) == 2 or "1" in rows_of(found) or has_none
    assert examples_of(example_table(found.examples)) == list(found.examples)
    for example in found.examples:
        assert all(text.strip() for text in example.texts)
        assert all(".." not in Path(name).parts and not name.startswith("/") for name in example.media)


@pytest.mark.parametrize("reader", ROWS)
@given(text=st.text(max_size=30))
def test_a_file_that_is_no_list_of_rows_is_refused_by_name(reader: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SourceUnavailable, match=r"rows\.json"):
            read_task(reader, {"rows": path}, "test", ROWS[reader][1])


@settings(deadline=None, max_examples=60)
@given(box=st.lists(st.floats(), min_size=3, max_size=5) | values)
def test_a_box_is_inside_its_image_or_dropped(box: Any) -> None:
    sentences = [{"sent_id": 1, "sent": "it"}]
    refs = [
        {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": sentences},
        {"ref_id": 2, "ann_id": 2, "image_id": 1, "split": "val", "sentences": [{"sent_id": 2, "sent": "that"}]},
    ]
    boxes = [{"id": 1, "image_id": 1, "bbox": [1, 1, 2, 2]}, {"id": 2, "image_id": 1, "bbox": box}]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "refs": write_json(Path(folder) / "refs.json", refs),
            "instances": write_json(Path(folder) / "instances.json", {"images": IMAGES, "annotations": boxes}),
        }
        data = read_task("refcoco", files, "val")
    assert len(data.examples) + len(data.dropped) == 2
    for example in data.examples:
        assert example.box is not None
        assert example.box.w > 0 < example.box.h
        assert min(example.box.x, example.box.y) >= -1
        assert max(example.box.x + example.box.w, example.box.y + example.box.h) <= 51


def test_names_of_readers_roles_and_options_find_the_nearest(tmp_path: Path) -> None:
    path = write_json(tmp_path / "r.json", [])
    with pytest.raises(
        ConfigError, match="no reader of a downstream format is called `refcocco`; did you mean `refcoco`"
    ):
        read_task("refcocco", {"rows": path}, "val")
    with pytest.raises(ConfigError, match="reader `xvnli` needs a file for rows; it has row"):
        read_task("xvnli", {"row": path}, "val")
    with pytest.raises(ConfigError, match="langage: unknown key; did you mean `language`"):
        read_task("xvnli", {"rows": path}, "val", {"langage": "en"})
    with pytest.raises(SourceUnavailable, match=r"rows file away\.json is missing"):
        read_task("xvnli", {"rows": tmp_path / "away.json"}, "val")
