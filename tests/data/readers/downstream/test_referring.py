"""RefCOCO's references, as JSON and as the upstream pickle, with instances and a detector's boxes."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.support.sets.downstream import dropped, read, write_json
from x2vlm.data.readers.downstream.refs_pickle import convert_refs
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box


def ref(number: int, split: str, image: int = 1, annotation: int = 5) -> dict[str, Any]:
    sentences = [
        {"sent_id": 10 * number + one, "sent": f"thing {one}", "raw": f"Thing {one}", "tokens": ["thing", str(one)]}
        for one in (0, 1)
    ]
    return {
        "ref_id": number,
        "ann_id": annotation,
        "image_id": image,
        "split": split,
        "sentences": sentences,
        "category_id": 1,
        "file_name": f"COCO_train2014_{image:012d}_{annotation}.jpg",
        "sent_ids": [10 * number, 10 * number + 1],
    }


REFS = [ref(1, "train"), ref(2, "val"), ref(3, "testA", annotation=6)]
INSTANCES = {
    "images": [
        {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "COCO_train2014_000000000002.jpg", "width": 100, "height": 80},
    ],
    "annotations": [
        {"id": 5, "image_id": 1, "bbox": [10.5, 20.0, 30.0, 40.0], "segmentation": [[1, 2, 3, 4]]},
        {"id": 6, "image_id": 1, "bbox": [0, 0, 100, 80]},
        {"id": 7, "image_id": 2, "bbox": [90, 0, 20, 10]},
        {"id": 8, "image_id": 2, "bbox": [0, 0, 0, 10]},
    ],
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return {
        "refs": write_json(tmp_path / "refs(unc).json", REFS),
        "instances": write_json(tmp_path / "instances.json", INSTANCES),
    }


def test_each_expression_is_an_example_of_its_split(files: dict[str, Path]) -> None:
    data = read("refcoco", files, "val", media="train2014/{file_name}")
    assert [(one.example_id, one.texts, one.group) for one in data.examples] == [
        ("20", ("thing 0",), "2"),
        ("21", ("thing 1",), "2"),
    ]
    assert data.examples[0].box == Box(10.5, 20.0, 30.0, 40.0)
    assert data.examples[0].media == ("train2014/COCO_train2014_000000000001.jpg",)
    assert [one.group for one in read("refcoco", files, "testA").examples] == ["3", "3"]


def test_a_split_that_is_not_there_names_those_that_are(files: dict[str, Path]) -> None:
    with pytest.raises(SourceUnavailable, match=r"no ref of split `test`; splits: testA 1, train 1, val 1"):
        read("refcoco", files, "test")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_the_upstream_pickle_says_the_same(files: dict[str, Path], tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps(REFS, protocol))
    pickled = read("refcoco", files | {"refs": path}, "val")
    assert pickled.examples == read("refcoco", files, "val").examples


def test_a_pickle_of_python_2_holds_bytes_for_texts(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"  # protocol 2: {"sent": "red"}, with a byte string each
    path.write_bytes(b"\x80\x02}q\x00U\x04sentq\x01U\x03redq\x02s.")
    convert_refs(path, tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == '{"sent": "red"}'


class Harm:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_that_calls_a_function_is_refused_and_calls_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    touched, path = tmp_path / "touched", tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([*REFS, Harm(touched)]))
    with pytest.raises(SourceUnavailable, match=r"no pickle of plain values .*it names .*pathlib.*Download refs"):
        read("refcoco", files | {"refs": path}, "val")
    assert not touched.exists()
    pickle.loads(path.read_bytes())  # an ordinary unpickler would have done it
    assert touched.exists()


@pytest.mark.parametrize(
    "data", [b"\x80\x04.", b"\x80\x02cos\nsystem\n.", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x80"]
)
def test_broken_pickles_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(data)
    with pytest.raises(SourceUnavailable, match="no pickle of plain values"):
        convert_refs(path, tmp_path / "out.json")


def test_bad_refs_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    refs = [
        *(ref(1, "val"), ref(2, "val", annotation=99), ref(3, "val", image=2, annotation=5)),
        *(ref(4, "val", image=2, annotation=7), ref(5, "val", image=2, annotation=8), ref(1, "val")),
        ref(6, "val") | {"sentences": []},
    ]
    data = read("refcoco", files | {"refs": write_json(tmp_path / "r.json", refs)}, "val")
    assert [one.example_id for one in data.examples] == ["10", "11"]
    rules = ["unknown_annotation", "mixed_ids", "box_outside_image", "malformed_box", "duplicate_id"]
    expected = [(f"{row}.{one}", rule) for row, rule in enumerate(rules, 1) for one in (0, 1)]
    assert dropped(data) == [*expected, ("6", "malformed_row")]


@pytest.mark.parametrize(
    "proposals",
    [
        {"1": [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 0]]},
        [
            {"image_id": 1, "box": [1, 2, 3, 4], "score": 0.9},
            {"image_id": 1, "bbox": [5, 6, 7, 8]},
            {"image_id": 1, "box": [0, 0, 0, 0]},
        ],
    ],
)
def test_proposals_of_a_detector_go_by_image(files: dict[str, Path], tmp_path: Path, proposals: Any) -> None:
    data = read("refcoco", files | {"proposals": write_json(tmp_path / "dets.json", proposals)}, "val")
    assert data.examples[0].proposals == (Box(1, 2, 3, 4), Box(5, 6, 7, 8))
    assert dropped(data) == [("1", "malformed_box")]


def test_rows_of_a_list_take_boxes_of_their_ref_or_bring_them(files: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"image": "train2014/a.jpg", "text": "the thing", "ref_id": 2},
        {"image": "train2014/a.jpg", "text": "that thing", "ref_id": 2},
        {"image": "train2014/b.jpg", "text": "it", "ref_id": 77},
    ]
    data = read("refcoco_list", files | {"rows": write_json(tmp_path / "l.json", rows)}, "val")
    assert [(one.example_id, one.group, one.box) for one in data.examples] == [
        ("2-0", "2", Box(10.5, 20.0, 30.0, 40.0)),
        ("2-1", "2", Box(10.5, 20.0, 30.0, 40.0)),
    ]
    assert dropped(data) == [("2", "unknown_ref")]
    own = [{"image": "a.jpg", "text": "it", "bbox": [1, 2, 3, 4], "width": 10, "height": 10}]
    [one] = read("refcoco_list", {"rows": write_json(tmp_path / "o.json", own)}, "val").examples
    assert one.box == Box(1, 2, 3, 4)
