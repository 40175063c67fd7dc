"""COCO's files: upstream records verbatim except `coco_url`, plus planted annotations."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.corpora.sample.photos import BASE_URL, COCO_TRAIN, COCO_WITHOUT_CAPTIONS, HELD_OUT
from pipelines.corpora.sample.planted import Plant
from pipelines.corpora.sample.upstream import Record, Upstream

UNKNOWN_IMAGE = 999999
MIN_PATCH_AREA = 16 * 16
"""Pixels of one patch at 224 x 224."""


def write_coco(upstream: Upstream, folder: Path) -> list[Plant]:
    """Writes the four annotation files and returns what was planted in the train files."""
    captions = _captions(upstream, [i for i in COCO_TRAIN if i != COCO_WITHOUT_CAPTIONS])
    captions.append({"image_id": UNKNOWN_IMAGE, "id": 900101, "caption": "a caption of an image nobody published"})
    boxes = _boxes(upstream, COCO_TRAIN)
    planted_boxes, plants = _planted_boxes(upstream, boxes)
    train = [i for i in COCO_TRAIN if i != COCO_WITHOUT_CAPTIONS]
    write_json(folder / "captions_train2017.json", _content(upstream, train, captions))
    write_json(folder / "instances_train2017.json", _content(upstream, COCO_TRAIN, boxes + planted_boxes, True))
    write_json(folder / "captions_val2017.json", _content(upstream, HELD_OUT, _captions(upstream, HELD_OUT)))
    write_json(folder / "instances_val2017.json", _content(upstream, HELD_OUT, _boxes(upstream, HELD_OUT), True))
    rows = [
        Plant("coco", str(UNKNOWN_IMAGE), "caption 900101 names an image that is not listed", "read", "unknown_image"),
        Plant("coco", str(COCO_WITHOUT_CAPTIONS), "boxes and no caption (T = NaN)", "filter", "kept"),
    ]
    return rows + plants


def _captions(upstream: Upstream, image_ids: Iterable[int]) -> list[Record]:
    return [record for image_id in image_ids for record in upstream.captions[image_id]]


def _boxes(upstream: Upstream, image_ids: Iterable[int]) -> list[Record]:
    return [record for image_id in image_ids for record in upstream.boxes[image_id]]


def _content(upstream: Upstream, image_ids: list[int], annotations: list[Record], boxes: bool = False) -> Record:
    content: Record = {
        "info": {"description": "excerpt of COCO 2017 for the sample corpus", "url": "http://cocodataset.org"},
        "licenses": upstream.licenses,
        "images": [
            upstream.images[i] | {"coco_url": f"{BASE_URL}/photos/{upstream.images[i]['file_name']}"} for i in image_ids
        ],
        "annotations": annotations,
    }
    return content | {"categories": upstream.categories} if boxes else content


def _planted_boxes(upstream: Upstream, boxes: list[Record]) -> tuple[list[Record], list[Plant]]:
    """Broken boxes to append, and the expected verdicts of them and three upstream boxes."""
    host = upstream.images[516008]
    width, height = host["width"], host["height"]
    book = next(c["id"] for c in upstream.categories if c["name"] == "book")
    broken = [
        (900001, [-4.0, 100.0, 80.0, 60.0], "negative coordinate", "box_invalid"),
        (900002, [120.0, 100.0, 0.0, 60.0], "zero width", "box_invalid"),
        (900003, [width - 50.0, height - 40.0, 90.0, 30.0], "reaches 40 pixels past the right border", "box_invalid"),
        (900004, [200.0, 200.0, 10.0, 10.0], "10 x 10 pixels, less than a patch", "box_too_small"),
    ]
    records = [_box_record(number, host["id"], book, box) for number, box, _, _ in broken]
    plants = [
        Plant("coco", f"concept:{number}", f"{what}, in image {host['id']}", "filter", rule)
        for number, _, what, rule in broken
    ]
    border, smallest = _border_box(upstream, boxes), _smallest_patch_box(upstream, boxes)
    plants += [_concept(border, "box ends exactly on the border", "filter", "kept")]
    plants += [_concept(smallest, "smallest upstream box that is still a patch", "filter", "kept")]
    plants += [_concept(box, "upstream crowd, RLE outline", "read", "iscrowd") for box in boxes if box["iscrowd"]]
    return records, plants


def _box_record(number: int, image_id: int, category_id: int, box_xywh: list[float]) -> Record:
    x, y, w, h = box_xywh
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    record: Record = {"segmentation": outline, "area": w * h, "iscrowd": 0, "image_id": image_id, "bbox": box_xywh}
    return record | {"category_id": category_id, "id": number}


def _concept(box: Record, what: str, stage: str, rule: str) -> Plant:
    return Plant("coco", f"concept:{box['id']}", f"{what}, in image {box['image_id']}", stage, rule)


def _border_box(upstream: Upstream, boxes: list[Record]) -> Record:
    """The first box whose right edge is exactly the photo's width in binary floating point too."""
    for box in boxes:
        x, y, w, h = box["bbox"]
        image = upstream.images[box["image_id"]]
        if x + w == image["width"] and y >= 0 and y + h < image["height"] and not box["iscrowd"]:
            return box
    raise SystemExit("no upstream box ends on the border; choose other COCO photos")


def _smallest_patch_box(upstream: Upstream, boxes: list[Record]) -> Record:
    def patch_area(box: Record) -> float:
        image, (_, _, w, h) = upstream.images[box["image_id"]], box["bbox"]
        return float((w * 224 / image["width"]) * (h * 224 / image["height"]))

    candidates = [box for box in boxes if not box["iscrowd"] and patch_area(box) >= MIN_PATCH_AREA]
    return min(candidates, key=patch_area)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON with one record per line, so that a change shows as a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        path.write_text(_lines(content) + "\n", encoding="utf-8")
        return
    parts = [
        f"{json.dumps(key)}: {_lines(value) if isinstance(value, list) else json.dumps(value)}"
        for key, value in content.items()
    ]
    path.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def _lines(records: list[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]"
