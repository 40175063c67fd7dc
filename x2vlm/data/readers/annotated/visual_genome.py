"""Visual Genome: one sample per image, with its region phrases, objects and relationships. No captions (T = NaN).

An image stream takes the phrases as captions where it says so (`StreamConfig.region_captions`), relationships too.

Roles: `images` (image_data.json), and at least one of `regions` (region_descriptions.json), `attributes`
(attributes.json), `objects` (objects.json), `relationships` (relationships.json). Files are streamed and joined on
disk: memory is that of `x2vlm.data.readers.join` and one image's annotations.

Releases differ in key names: `id` or `image_id`, `width`/`height` or `w`/`h`, `name` or `names`. All are accepted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from x2vlm.data.boxes import union
from x2vlm.data.readers.join import Item, Join
from x2vlm.data.readers.json_stream import stream_list
from x2vlm.data.readers.source import Fault, Source, box_of, distinct_texts, whole_number
from x2vlm.data.text.texts import clean_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Box, Concept, Drop, Grain, Sample

Record = Mapping[str, Any]
ROLES = ("regions", "attributes", "objects", "relationships")
RELATION = "rel:"  # prefix of annotation ids of relationships, which have a numbering of their own


def read_visual_genome(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of image_data.json; the row key is the image id. Concepts are in the order of ROLES.

    A region's annotation id is its region_id, an object's its object_id, a relationship's `rel:<relationship_id>`. An
    object's first name is its label. A relationship is a region: "{subject} {predicate} {object}" on the box around
    both.
    objects.json repeats the objects of attributes.json without attributes: the repeats become drops.
    """
    source.file("images")
    roles = [role for role in ROLES if role in source.files]
    if not roles:
        raise SourceUnavailable(
            f"card {source.card}: Visual Genome needs a file for role `regions` or `attributes` "
            "(or `objects` or `relationships`)"
        )
    with Join() as join:
        yield from _images(source, join, seen)
        for role in roles:
            yield from _spool(source, role, join, seen)
        for image_id, role, record in join.unmatched():
            reason = f"no image {image_id!r} in {source.files['images'].name}"
            item = _annotation_id(role, record)
            yield source.drop_item(image_id or "(none)", "concept", item, "unknown_image", reason)
        for image_id, record, items in join.rows():
            yield from _sample(source, image_id, record, items)


def _stream(source: Source, role: str) -> Iterator[Record]:
    remedy = "Expected a file of the Visual Genome release"
    for record in stream_list(source, role, remedy):
        if not isinstance(record, dict):
            source.fail(role, "not a list of objects at the top level", remedy)
        yield record


def _images(source: Source, join: Join, seen: Counter[str]) -> Iterator[Drop]:
    for position, record in enumerate(_stream(source, "images")):
        seen["rows"] += 1
        image_id = _image_id(record)
        if not image_id:
            yield source.drop(f"images[{position}]", "malformed_row", "an image without image_id")
        elif not join.add_row(image_id, record):
            yield source.drop(image_id, "duplicate_row", f"image {image_id} is listed twice")


def _image_id(record: Record) -> str:
    value = record.get("image_id", record.get("id"))
    return "" if value is None else str(value)


def _spool(source: Source, role: str, join: Join, seen: Counter[str]) -> Iterator[Drop]:
    """Add every annotation of a file to its image."""
    for position, entry in enumerate(_stream(source, role)):
        records = entry.get(role)
        if not isinstance(records, list):
            source.fail(role, f"record {position} has no list called {role}", "Expected a file of the release")
        for number, record in enumerate(records):
            seen["concepts"] += 1
            if isinstance(record, dict):
                # Only regions contain their image id; the `id` of any other record is its own.
                join.add_item(_image_id(entry) or str(record.get("image_id", "")), role, record)
            else:
                reason = f"{role}[{number}] of record {position} is not an object"
                yield source.drop_item(_image_id(entry) or "(none)", "concept", "", "malformed_record", reason)


def _annotation_id(role: str, record: Record) -> str:
    if role == "relationships":
        return f"{RELATION}{record.get('relationship_id', record.get('id', ''))}"
    return str(record.get("region_id", record.get("object_id", record.get("id", ""))))


def _sample(source: Source, row: str, image: Record, items: list[Item]) -> Iterator[Sample | Drop]:
    url = str(image.get("url") or "").strip()
    if not url:
        yield source.drop(row, "missing_url")
        yield from source.drop_concepts(row, (_annotation_id(role, record) for role, record in items))
        return
    concepts: list[Concept] = []
    known = {_annotation_id(role, record) for role, record in items if role == "attributes"}
    made = ((_annotation_id(role, record), _concept(role, record, known)) for role, record in items)
    yield from source.keep_concepts(row, made, concepts)
    yield source.sample(
        row,
        url,
        concepts=tuple(concepts),
        claimed_width=whole_number(image.get("width")),
        claimed_height=whole_number(image.get("height")),
    )


def _concept(role: str, record: Record, known: set[str]) -> Concept | Fault:
    """An annotation as a concept, or what is wrong with it; `known` are the ids of attributes.json."""
    annotation_id = _annotation_id(role, record)
    if role == "objects" and annotation_id in known:
        return "duplicate_annotation", "attributes.json has this object too"
    if role == "regions":
        text, box = clean_text(str(record.get("phrase") or "")), _box(record)
    elif role == "relationships":
        text, box = _relation(record)
    else:
        text, box = _name(record), _box(record)
    if not text:
        return "empty_text", ""
    if box is None:
        return "malformed_box", f"not four numbers: {dict(record)}"
    if role in ("regions", "relationships"):
        return Concept(Grain.REGION, text, box, (), annotation_id)
    attributes = distinct_texts(record.get("attributes")) if role == "attributes" else ()
    return Concept(Grain.OBJECT, text, box, attributes, annotation_id)


def _relation(record: Record) -> tuple[str, Box | None]:
    """The phrase and the box around both ends; "" or None where a part of it is missing."""
    subject, other = record.get("subject"), record.get("object")
    if not isinstance(subject, dict) or not isinstance(other, dict):
        return "", None
    # Predicates come in both cases ("ON", "near"); names are lower case already.
    words = (_name(subject), clean_text(str(record.get("predicate") or "")).lower(), _name(other))
    box, other_box = _box(subject), _box(other)
    around = union(box, other_box) if box is not None and other_box is not None else None
    return (" ".join(words) if all(words) else ""), around


def _name(record: Record) -> str:
    names = record.get("names") or [record.get("name")]
    first = names[0] if isinstance(names, list) else names
    return clean_text(str(first or ""))


def _box(record: Record) -> Box | None:
    width, height = record.get("w", record.get("width")), record.get("h", record.get("height"))
    return box_of((record.get("x"), record.get("y"), width, height))
