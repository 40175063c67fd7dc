"""COCO captions and instances: one sample per image, with its captions and its objects.

Roles: `captions` (captions_*.json), `instances` (instances_*.json); one of them may be missing. Both are loaded whole:
about 1.5 GB of memory for train2017.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from x2vlm.data.readers.source import Source, box_of, read_json, whole_number
from x2vlm.data.texts import clean_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Caption, Concept, Drop, Grain, Sample

Record = Mapping[str, Any]


@dataclass
class _Image:
    """An image record and the annotations that point at it."""

    record: Record
    licence: str
    captions: list[Record] = field(default_factory=list)
    objects: list[Record] = field(default_factory=list)


def read_coco(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of the image lists, captions file first; the row key is the image id.

    Crowd boxes and annotations without an image, a known category or four numbers become drops of their own. Boxes are
    the upstream floats, whatever they say.
    """
    files = {role: _load(source, role) for role in ("captions", "instances") if role in source.files}
    if not files:
        raise SourceUnavailable(f"card {source.card}: COCO needs a file for role `captions` or `instances`, or both")
    images: dict[str, _Image] = {}
    for role, content in files.items():
        yield from _add_images(source, role, content, images, seen)
    yield from _attach(source, files.get("captions", {}), "caption", images, seen)
    yield from _attach(source, files.get("instances", {}), "concept", images, seen)
    names = {
        record.get("id"): clean_text(str(record.get("name") or ""))
        for record in files.get("instances", {}).get("categories", [])
    }
    for image_id, image in images.items():
        yield from _sample(source, image_id, image, names)


def _load(source: Source, role: str) -> Record:
    content = read_json(source, role)
    keys = ("images", "annotations", "categories") if role == "instances" else ("images", "annotations")
    if not isinstance(content, dict) or (missing := [key for key in keys if not isinstance(content.get(key), list)]):
        what = f"no list called {', '.join(missing)}" if isinstance(content, dict) else "not a JSON object"
        source.fail(role, f"{what} at the top level", f"Expected a COCO {role} file with {', '.join(keys)}")
    for key in keys:
        for position, record in enumerate(content[key]):
            if not isinstance(record, dict):
                source.fail(role, f"{key}[{position}] is not an object", f"Expected a COCO {role} file")
    return content


def _add_images(
    source: Source, role: str, content: Record, images: dict[str, _Image], seen: Counter[str]
) -> Iterator[Drop]:
    """Fill `images`. An image that both files list is one row; twice in one file is a duplicate."""
    licences = {record.get("id"): _licence(record) for record in content.get("licenses", [])}
    here: set[str] = set()
    for position, record in enumerate(content["images"]):
        image_id = str(record.get("id", ""))
        if not image_id:
            seen["rows"] += 1
            yield source.drop(f"{role}.images[{position}]", "malformed_row", "an image without an id")
        elif image_id in here:
            seen["rows"] += 1
            yield source.drop(
                image_id, "duplicate_row", f"image {image_id} is listed twice in {source.files[role].name}"
            )
        elif image_id not in images:
            seen["rows"] += 1
            images[image_id] = _Image(record, licences.get(record.get("license")) or source.licence)
        here.add(image_id)


def _licence(record: Record) -> str:
    # One mirror's licence URLs contain a literal backslash before each slash.
    return str(record.get("url") or record.get("name") or "").replace("\\/", "/")


def _attach(
    source: Source, content: Record, unit: str, images: dict[str, _Image], seen: Counter[str]
) -> Iterator[Drop]:
    for record in content.get("annotations", []):
        seen[f"{unit}s"] += 1
        image_id = str(record.get("image_id", ""))
        if image_id not in images:
            reason = f"no image {image_id!r} in the file"
            yield source.drop_item(image_id or "(none)", unit, str(record.get("id", "")), "unknown_image", reason)
        elif unit == "caption":
            images[image_id].captions.append(record)
        else:
            images[image_id].objects.append(record)


def _sample(source: Source, row: str, image: _Image, names: Mapping[Any, str]) -> Iterator[Sample | Drop]:
    url = str(image.record.get("coco_url") or image.record.get("flickr_url") or "").strip()
    if not url:
        yield source.drop(row, "missing_url", "neither coco_url nor flickr_url")
        for unit, records in (("caption", image.captions), ("concept", image.objects)):
            for record in records:
                yield source.drop_item(row, unit, str(record.get("id", "")), "row_dropped")
        return
    captions, concepts = [], []
    for record in image.captions:
        caption = _caption(source, row, record)
        if isinstance(caption, Drop):
            yield caption
        else:
            captions.append(caption)
    for record in image.objects:
        concept = _concept(source, row, record, names)
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
        captions=tuple(captions),
        concepts=tuple(concepts),
        claimed_width=whole_number(image.record.get("width")),
        claimed_height=whole_number(image.record.get("height")),
        licence=image.licence,
    )


def _caption(source: Source, row: str, record: Record) -> Caption | Drop:
    text = clean_text(str(record.get("caption") or ""))
    if not text:
        return source.drop_item(row, "caption", str(record.get("id", "")), "empty_caption")
    return Caption(text, source.language, "human")


def _concept(source: Source, row: str, record: Record, names: Mapping[Any, str]) -> Concept | Drop:
    annotation_id = str(record.get("id", ""))
    if record.get("iscrowd"):
        return source.drop_item(row, "concept", annotation_id, "iscrowd", "a box around a crowd is no single object")
    name = names.get(record.get("category_id"))
    if not name:
        reason = f"category {record.get('category_id')!r} is not in the file's list"
        return source.drop_item(row, "concept", annotation_id, "unknown_label", reason)
    box = box_of(record.get("bbox"))
    if box is None:
        reason = f"bbox {record.get('bbox')!r} is not four numbers"
        return source.drop_item(row, "concept", annotation_id, "malformed_box", reason)
    return Concept(Grain.OBJECT, name, box, (), annotation_id)
