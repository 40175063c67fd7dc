"""RefCOCO, RefCOCO+ and RefCOCOg: one sample per COCO image, with a region for every referring expression.

Roles: `refs` (the records of refs(unc).p or its like, converted to a JSON list) and `instances` (instances.json of the
same folder). Both are streamed and joined on disk. The upstream file is a pickle, which can execute
arbitrary code when it is loaded, so it is never read here: `CONVERT` gives the command that converts it once.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from x2vlm.data.readers.annotated.coco import ShortLists, spool
from x2vlm.data.readers.join import Item, Join
from x2vlm.data.readers.json_stream import stream_list
from x2vlm.data.readers.source import Fault, Source, box_of, whole_number
from x2vlm.data.text.texts import clean_text
from x2vlm.samples import Box, Concept, Drop, Grain, Sample

Record = Mapping[str, Any]

REMEDY = "Expected refs.json, a list of the records of the upstream refs file"
CONVERT = (
    "A pickle runs code when it is loaded. Convert it once in a sandbox without network and without your files: "
    "`python -c \"import json, pickle; json.dump(pickle.load(open('refs(unc).p', 'rb')), open('refs.json', 'w'))\"`, "
    "then name refs.json in the card"
)
TRAIN2014 = "http://images.cocodataset.org/train2014/"


def read_refcoco(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of the images of instances.json; the row key is the image id.

    A region's text is the expression, its box the annotation's that `ann_id` names, its annotation id the sentence's.
    Expressions of another split than the source's are dropped as `other_split`: testA, testB, val and test are for
    evaluation. The `file_name` of a ref is not an image file; images are those of instances.json.
    """
    _refuse_pickle(source)
    with Join() as join:
        # The boxes are not concepts of their own, so they go to a separate Counter that is discarded.
        own = Counter[str]()
        yield from spool(source, "instances", "box", join, ShortLists(), own)
        seen["rows"] += own["rows"]
        yield from _spool_refs(source, join, seen)
        for image_id, unit, record in join.unmatched():
            if unit == "sentence":
                reason = f"no image {image_id!r} in {source.files['instances'].name}"
                yield source.drop_item(image_id or "(none)", "concept", record["id"], "unknown_image", reason)
        for row, image, items in join.rows():
            yield from _sample(source, row, image, items)


def _refuse_pickle(source: Source) -> None:
    path = source.file("refs")
    with path.open("rb") as file:
        start = file.read(2)
    # Binary pickles start with 0x80 and their protocol; the older text ones with an opcode no JSON starts with.
    if path.suffix.lower() in (".p", ".pkl", ".pickle") or start[:1] in (b"\x80", b"("):
        source.fail("refs", "this is a pickle, which is never loaded", CONVERT)


def _spool_refs(source: Source, join: Join, seen: Counter[str]) -> Iterator[Drop]:
    for position, ref in enumerate(stream_list(source, "refs", REMEDY)):
        if not isinstance(ref, dict) or not isinstance(ref.get("sentences"), list):
            source.fail("refs", f"record {position} is not an object with a list of sentences", REMEDY)
        image_id = "" if ref.get("image_id") is None else str(ref["image_id"])
        for number, sentence in enumerate(ref["sentences"]):
            seen["concepts"] += 1
            sentence = sentence if isinstance(sentence, dict) else {}
            item = str(sentence.get("sent_id", f"{position}.{number}"))
            if ref.get("split") != source.split:
                reason = f"its split is {ref.get('split')!r}"
                yield source.drop_item(image_id or "(none)", "concept", item, "other_split", reason)
                continue
            text = sentence.get("sent") or sentence.get("raw")
            join.add_item(image_id, "sentence", {"id": item, "text": text, "ann_id": ref.get("ann_id")})


def _sample(source: Source, row: str, image: Record, items: list[Item]) -> Iterator[Sample | Drop]:
    boxes = {str(record.get("id")): record for unit, record in items if unit == "box"}
    sentences = [record for unit, record in items if unit == "sentence"]
    url = _url(image)
    if not url:
        yield source.drop(row, "missing_url", "neither coco_url nor a file_name of train2014")
        yield from source.drop_concepts(row, (record["id"] for record in sentences))
        return
    concepts: list[Concept] = []
    yield from source.keep_concepts(row, ((record["id"], _concept(record, boxes)) for record in sentences), concepts)
    yield source.sample(
        row,
        url,
        concepts=tuple(concepts),
        claimed_width=whole_number(image["width"]),
        claimed_height=whole_number(image["height"]),
    )


def _url(image: Record) -> str:
    name = str(image["file_name"] or "").strip()
    if image["coco_url"]:
        return str(image["coco_url"]).strip()
    return TRAIN2014 + name if name.startswith("COCO_train2014_") else ""


def _concept(record: Record, boxes: Mapping[str, Record]) -> Concept | Fault:
    """A sentence as a region, or what is wrong with it."""
    text = clean_text(str(record["text"] or ""))
    if not text:
        return "empty_text", ""
    annotation = boxes.get(str(record["ann_id"]))
    if annotation is None:
        return "unknown_annotation", f"no annotation {record['ann_id']!r} on this image"
    box: Box | None = box_of(annotation.get("bbox"))
    if box is None:
        return "malformed_box", f"bbox {annotation.get('bbox')!r} is not four numbers"
    return Concept(Grain.REGION, text, box, (), record["id"])
