"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, with the boxes of a detector for weak supervision.

One example an expression: its image, its box in pixels; `group` is the referred object.
"""

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from x2vlm.data.readers.downstream.options import RefcocoListOptions, RefcocoOptions
from x2vlm.data.readers.downstream.reading import (
    Reading,
    Record,
    checked_box,
    id_field,
    json_records,
    media_name,
    text_field,
    whole_json,
)
from x2vlm.data.readers.downstream.refs_pickle import convert_refs, is_pickle
from x2vlm.data.readers.json_stream import stream_sections
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample
from x2vlm.samples import Box

INSTANCES = 'Expected instances.json of the same folder: {"images": [...], "annotations": [...]}'
REFS = "Expected refs(unc).p, or its records as a JSON list"
PROPOSALS = "Expected dets.json: {image id: [[left, top, width, height], ...]} or [{image_id, box}, ...]"
Proposals = Mapping[str, tuple[Box, ...]]


class Instances(NamedTuple):
    """instances.json: images and boxes by id."""

    images: dict[str, Record]
    boxes: dict[str, tuple[str, Any]]  # annotation id -> image id, four numbers


def read_refcoco(reading: Reading, options: RefcocoOptions) -> TaskData:
    """Examples of one split (train, val, testA, testB); ids are those of the sentences, groups those of the refs.

    The image is that of instances.json: a ref's own `file_name` is not one. SourceUnavailable, with the splits that
    are there, if no ref is of this one.
    """
    with _with_json_refs(reading):
        instances, proposals = _instances(reading), _proposals(reading)
        splits: Counter[str] = Counter()
        for number, ref in json_records(reading, "refs"):
            splits[str(ref.get("split"))] += 1
            if ref.get("split") != reading.split:
                continue
            sentences = ref.get("sentences")
            if not isinstance(sentences, list) or not sentences:
                reading.drop(str(number), "malformed_row", "no list of `sentences`")
                continue
            for position, sentence in enumerate(sentences):
                row = f"{number}.{position}"
                reading.keep(
                    row,
                    _sentence,
                    reading,
                    options,
                    ref,
                    sentence,
                    instances,
                    proposals,
                )
        if not splits[reading.split]:
            there = ", ".join(f"{name} {count}" for name, count in sorted(splits.items())) or "none"
            reading.source.fail("refs", f"no ref of split `{reading.split}`; splits: {there}", REFS)
        return reading.data("refs")


class _with_json_refs:
    """While it is entered, the role `refs` is JSON: an upstream pickle is converted into a temporary file."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> None:
        source = self._reading.source
        if "refs" in source.files and is_pickle(source.file("refs")):
            self._folder = tempfile.TemporaryDirectory(prefix="x2vlm-refs-")
            converted = Path(self._folder.name) / f"{source.files['refs'].name}.json"
            convert_refs(source.files["refs"], converted)
            self._reading.source = dataclasses.replace(source, files={**source.files, "refs": converted})

    def __exit__(self, *error: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _sentence(
    reading: Reading, options: RefcocoOptions, ref: Record, sentence: Any, instances: Instances, proposals: Proposals
) -> Example:
    if not isinstance(sentence, dict):
        raise InvalidSample("malformed_row", f"sentence is no object: {sentence!r:.80}")
    return _example(
        reading,
        options.media,
        {},
        ref,
        instances,
        proposals,
        example_id=id_field(sentence, "sent_id"),
        text=text_field(sentence, "sent", "raw"),
    )


def _example(
    reading: Reading,
    media: str,
    row: Record,
    ref: Record,
    instances: Instances,
    proposals: Proposals,
    example_id: str,
    text: str,
) -> Example:
    annotation_id, image_id = id_field(ref, "ann_id"), id_field(ref, "image_id")
    if annotation_id not in instances.boxes:
        raise InvalidSample("unknown_annotation", f"no annotation {annotation_id} in the file of instances")
    own_image, numbers = instances.boxes[annotation_id]
    if own_image != image_id:
        raise InvalidSample(
            "mixed_ids", f"the ref is about image {image_id}, annotation {annotation_id} on {own_image}"
        )
    if image_id not in instances.images:
        raise InvalidSample("unknown_image", f"no image {image_id} in the file of instances")
    image = instances.images[image_id]
    return reading.example(
        example_id,
        (media_name(media, {**image, **row}),),
        (text,),
        box=checked_box(numbers, image.get("width"), image.get("height")),
        proposals=proposals.get(image_id, ()),
        group=id_field(ref, "ref_id"),
    )


def _instances(reading: Reading) -> Instances:
    found = Instances({}, {})
    there = set()
    sections = stream_sections(reading.source, "instances", ("images", "annotations"), INSTANCES, "segmentation")
    for key, records in sections:
        if records is None:
            reading.source.fail("instances", f"`{key}` is no list", INSTANCES)
        there.add(key)
        for number, record in enumerate(records):
            try:
                if not isinstance(record, dict):
                    raise InvalidSample("malformed_row", f"not an object: {record!r:.80}")
                if key == "images":
                    keys = ("id", "file_name", "width", "height")
                    found.images[id_field(record, "id")] = {name: record[name] for name in keys if name in record}
                else:
                    found.boxes[id_field(record, "id")] = (id_field(record, "image_id"), record.get("bbox"))
            except InvalidSample as error:
                reading.drop_item(f"{key} {number}", "annotation", str(number), error.rule, error.message)
    if missing := {"images", "annotations"} - there:
        reading.source.fail("instances", f"no list `{sorted(missing)[0]}`", INSTANCES)
    return found


def _proposals(reading: Reading) -> Proposals:
    """Boxes by image id; a bad one is a drop of its own."""
    if "proposals" not in reading.source.files:
        return {}
    value = whole_json(reading.source, "proposals")
    listed: dict[str, list[Any]] = {}
    for number, one in enumerate(value if isinstance(value, list) else ()):
        if not isinstance(one, dict) or "image_id" not in one or not ("box" in one or "bbox" in one):
            reading.source.fail("proposals", f"row {number} has no image_id and box", PROPOSALS)
        listed.setdefault(str(one["image_id"]), []).append(one.get("box", one.get("bbox")))
    if isinstance(value, dict):
        listed = {image_id: boxes if isinstance(boxes, list) else [boxes] for image_id, boxes in value.items()}
    found = {}
    for image_id, boxes in listed.items():
        kept = []
        for number, numbers in enumerate(boxes):
            try:
                kept.append(checked_box(numbers))
            except InvalidSample as error:
                reading.drop_item(image_id, "proposal", str(number), error.rule, error.message)
        found[image_id] = tuple(kept)
    return found


def read_refcoco_list(reading: Reading, options: RefcocoListOptions) -> TaskData:
    """Examples of rows {image, text, ref_id} of the released models' lists, with boxes of `refs` and `instances`.

    Rows may bring their own box instead ({image, text, bbox, width, height}). Ids are "<ref_id>-<n>", the n-th row of
    the ref.
    """
    with _with_json_refs(reading):
        has_refs = "refs" in reading.source.files
        refs = {}
        instances = Instances({}, {})
        if has_refs:
            for number, ref in json_records(reading, "refs"):
                refs[str(ref.get("ref_id", number))] = ref
            instances = _instances(reading)
        proposals = _proposals(reading)
        places: Counter[str] = Counter()
        for number, row in json_records(reading, "rows"):
            ref_id = str(row.get("ref_id", number))
            example_id = f"{ref_id}-{places[ref_id]}"
            places[ref_id] += 1
            reading.keep(
                str(number),
                _row,
                reading,
                options,
                row,
                refs.get(ref_id),
                instances,
                proposals,
                example_id,
            )
        return reading.data("rows")


def _row(
    reading: Reading,
    options: RefcocoListOptions,
    row: Record,
    ref: Record | None,
    instances: Instances,
    proposals: Proposals,
    example_id: str,
) -> Example:
    text = text_field(row, "text")
    if "bbox" in row:
        return reading.example(
            example_id,
            (media_name(options.media, row),),
            (text,),
            box=checked_box(row["bbox"], row.get("width"), row.get("height")),
            proposals=proposals.get(str(row.get("image_id")), ()),
            group=example_id.rpartition("-")[0],
        )
    if ref is None:
        raise InvalidSample("unknown_ref", f"no ref {example_id.rpartition('-')[0]}, and the row has no bbox")
    return _example(reading, options.media, row, ref, instances, proposals, example_id, text)
