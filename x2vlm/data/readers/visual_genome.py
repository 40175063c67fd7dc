"""Visual Genome: one sample per image, with its region phrases and its objects with attributes. No captions (T = NaN).

Roles: `images` (image_data.json), and `regions` (region_descriptions.json), `attributes` (attributes.json) or both.
Files are loaded whole; all regions of version 1.2 take about 6 GB of memory [estimated].

Releases differ in words: `id` or `image_id`, `width`/`height` or `w`/`h`, `name` or `names`. All are understood.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from x2vlm.data.readers.source import Source, box_of, read_json, whole_number
from x2vlm.data.texts import clean_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Concept, Drop, Grain, Sample

Record = Mapping[str, Any]
Annotations = dict[str, list[tuple[str, Record]]]  # image id -> (role, record)


def read_visual_genome(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of image_data.json; the row key is the image id. Of an image, regions come before objects.

    A region's annotation id is its region_id, an object's its object_id. An object's first name is its label.
    """
    images: dict[str, Record] = {}
    yield from _images(source, images, seen)
    if not {"regions", "attributes"} & set(source.files):
        raise SourceUnavailable(f"card {source.card}: Visual Genome needs a file for role `regions` or `attributes`")
    annotations: Annotations = {image_id: [] for image_id in images}
    for role in ("regions", "attributes"):
        if role in source.files:
            yield from _attach(source, role, annotations, seen)
    for image_id, record in images.items():
        yield from _sample(source, image_id, record, annotations.pop(image_id))


def _load(source: Source, role: str) -> list[Record]:
    content = read_json(source, role)
    if not isinstance(content, list) or not all(isinstance(record, dict) for record in content):
        source.fail(role, "not a list of objects at the top level", "Expected a file of the Visual Genome release")
    return content


def _images(source: Source, images: dict[str, Record], seen: Counter[str]) -> Iterator[Drop]:
    for position, record in enumerate(_load(source, "images")):
        seen["rows"] += 1
        image_id = _image_id(record)
        if not image_id:
            yield source.drop(f"images[{position}]", "malformed_row", "an image without image_id")
        elif image_id in images:
            yield source.drop(image_id, "duplicate_row", f"image {image_id} is listed twice")
        else:
            images[image_id] = record


def _image_id(record: Record) -> str:
    value = record.get("image_id", record.get("id"))
    return "" if value is None else str(value)


def _attach(source: Source, role: str, annotations: Annotations, seen: Counter[str]) -> Iterator[Drop]:
    """Hand every annotation of a file to its image; one without an image becomes a drop."""
    for position, entry in enumerate(_load(source, role)):
        records = entry.get(role)
        if not isinstance(records, list):
            source.fail(role, f"record {position} has no list called {role}", "Expected a file of the release")
        for record in records:
            seen["concepts"] += 1
            image_id = _image_id(entry) or _image_id(record)
            if image_id in annotations:
                annotations[image_id].append((role, record))
            else:
                reason = f"no image {image_id!r} in {source.files['images'].name}"
                yield source.drop_item(image_id or "(none)", "concept", _annotation_id(record), "unknown_image", reason)


def _annotation_id(record: Record) -> str:
    return str(record.get("region_id", record.get("object_id", record.get("id", ""))))


def _sample(source: Source, row: str, image: Record, annotations: list[tuple[str, Record]]) -> Iterator[Sample | Drop]:
    url = str(image.get("url") or "").strip()
    if not url:
        yield source.drop(row, "missing_url")
        for _, record in annotations:
            yield source.drop_item(row, "concept", _annotation_id(record), "row_dropped")
        return
    concepts = []
    for role, record in annotations:
        concept = _concept(source, row, role, record)
        if isinstance(concept, Drop):
            yield concept
        else:
            concepts.append(concept)
    yield Sample(
        key=source.key(row),
        source=source.name,
        source_row=row,
        split=source.split,
        kind="image",
        url=url,
        concepts=tuple(concepts),
        claimed_width=whole_number(image.get("width")),
        claimed_height=whole_number(image.get("height")),
        licence=source.licence,
    )


def _concept(source: Source, row: str, role: str, record: Record) -> Concept | Drop:
    annotation_id = _annotation_id(record)
    names = record.get("names") or [record.get("name")]
    text = clean_text(str((record.get("phrase") if role == "regions" else names[0]) or ""))
    if not text:
        return source.drop_item(row, "concept", annotation_id, "empty_text")
    box = _box(record)
    if box is None:
        return source.drop_item(row, "concept", annotation_id, "malformed_box", f"not four numbers: {dict(record)}")
    if role == "regions":
        return Concept(Grain.REGION, text, box, (), annotation_id)
    attributes = (clean_text(str(attribute)) for attribute in record.get("attributes") or ())
    return Concept(Grain.OBJECT, text, box, tuple(dict.fromkeys(filter(None, attributes))), annotation_id)


def _box(record: Record) -> Any:
    width, height = record.get("w", record.get("width")), record.get("h", record.get("height"))
    return box_of((record.get("x"), record.get("y"), width, height))
