"""COCO captions and instances: one sample per image, with its captions and its objects.

Roles: `captions` (captions_*.json), `instances` (instances_*.json); one of them may be missing. Files are streamed and
joined on disk, whatever the order of their lists: memory is that of `x2vlm.data.readers.join`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from x2vlm.data.readers.join import Item, Join
from x2vlm.data.readers.json_stream import stream_sections
from x2vlm.data.readers.source import Source, box_of, whole_number
from x2vlm.data.text.texts import clean_text
from x2vlm.errors import SourceUnavailable
from x2vlm.samples import Caption, Concept, Drop, Grain, Sample

Record = Mapping[str, Any]
LISTS = {"captions": ("images", "annotations"), "instances": ("images", "annotations", "categories")}
IMAGE_FIELDS = ("file_name", "url", "coco_url", "flickr_url", "width", "height", "license")
ANNOTATION_FIELDS = ("id", "image_id", "caption", "category_id", "bbox", "iscrowd")  # no segmentation: most of the file


@dataclass
class ShortLists:
    """The lists of COCO files that are short and may come after the images and annotations that point at them."""

    names: dict[Any, str] = field(default_factory=dict)  # category id -> name
    licences: dict[tuple[str, Any], str] = field(default_factory=dict)  # (role, licence id) -> licence


def read_coco(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of the image lists, captions file first; the row key is the image id.

    Crowd boxes and annotations without an image, a known category or four numbers become drops of their own. Boxes are
    the upstream floats, unchecked.
    """
    roles = [role for role in LISTS if role in source.files]
    if not roles:
        raise SourceUnavailable(f"card {source.card}: COCO needs a file for role `captions` or `instances`, or both")
    with Join() as join:
        short = ShortLists()
        for role in roles:
            unit = "caption" if role == "captions" else "concept"
            yield from spool(source, role, unit, join, short, seen)
        yield from unmatched(source, join)
        for row, image, items in join.rows():
            licence = short.licences.get((image["role"], image["license"])) or source.licence
            url = str(image["coco_url"] or image["flickr_url"] or "").strip()
            if url:
                yield from image_sample(source, row, url, image, licence, items, short.names)
            else:
                yield from dropped_image(source, row, "missing_url", "neither coco_url nor flickr_url", items)


def spool(source: Source, role: str, unit: str, join: Join, short: ShortLists, seen: Counter[str]) -> Iterator[Drop]:
    """Fill `join` with a file's images, and with its annotations as items called `unit`.

    An image that two files list is one row; twice in one file is a duplicate. Annotations count as `unit`s.
    """
    expected = LISTS["captions" if role == "captions" else "instances"]
    remedy = f"Expected a COCO {role} file with {', '.join(expected)}"
    missing = set(expected)
    for name, records in stream_sections(source, role, (*expected, "licenses"), remedy, unread="segmentation"):
        if records is None:
            continue
        missing.discard(name)
        for position, record in enumerate(records):
            if not isinstance(record, dict):
                source.fail(role, f"{name}[{position}] is not an object", f"Expected a COCO {role} file")
            if name == "images":
                yield from _add_image(source, role, position, record, join, seen)
            elif name == "annotations":
                seen[f"{unit}s"] += 1
                kept = {key: record[key] for key in ANNOTATION_FIELDS if key in record}
                join.add_item(_text(record.get("image_id")), unit, kept)
            elif name == "categories":
                short.names[_hashable(record.get("id"))] = clean_text(_text(record.get("name")))
            else:
                short.licences[role, _hashable(record.get("id"))] = _licence(record)
    if missing:
        names = ", ".join(name for name in expected if name in missing)
        source.fail(role, f"no list called {names} at the top level", remedy)


def _add_image(
    source: Source, role: str, position: int, record: Record, join: Join, seen: Counter[str]
) -> Iterator[Drop]:
    image_id = _text(record.get("id"))
    if not image_id:
        seen["rows"] += 1
        yield source.drop(f"{role}.images[{position}]", "malformed_row", "an image without an id")
        return
    kept = {key: record.get(key) for key in IMAGE_FIELDS} | {"role": role}
    kept["license"] = _hashable(kept["license"])
    first = join.first_listing(role, image_id)
    if join.add_row(image_id, kept):
        seen["rows"] += 1
    elif not first:
        seen["rows"] += 1
        reason = f"image {image_id} is listed twice in {source.files[role].name}"
        yield source.drop(image_id, "duplicate_row", reason)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float) else None


def _licence(record: Record) -> str:
    # One mirror's licence URLs contain a literal backslash before each slash.
    return str(record.get("url") or record.get("name") or "").replace("\\/", "/")


def unmatched(source: Source, join: Join) -> Iterator[Drop]:
    """Drops for annotations whose image is in no list."""
    for image_id, unit, record in join.unmatched():
        reason = f"no image {image_id!r} in the file"
        yield source.drop_item(image_id or "(none)", unit, _text(record.get("id")), "unknown_image", reason)


def dropped_image(source: Source, row: str, rule: str, reason: str, items: list[Item]) -> Iterator[Drop]:
    """Drops for an image and for all its annotations."""
    yield source.drop(row, rule, reason)
    for unit, record in items:
        yield source.drop_item(row, unit, _text(record.get("id")), "row_dropped")


def image_sample(
    source: Source, row: str, url: str, image: Record, licence: str, items: list[Item], names: Mapping[Any, str]
) -> Iterator[Sample | Drop]:
    """A sample from an image and its annotations, after drops for those that are invalid."""
    captions, concepts = [], []
    for unit, record in items:
        made = _caption(source, row, record) if unit == "caption" else _concept(source, row, record, names)
        if isinstance(made, Drop):
            yield made
        elif isinstance(made, Caption):
            captions.append(made)
        else:
            concepts.append(made)
    yield source.sample(
        row,
        url,
        captions=tuple(captions),
        concepts=tuple(concepts),
        claimed_width=whole_number(image["width"]),
        claimed_height=whole_number(image["height"]),
        licence=licence,
    )


def _caption(source: Source, row: str, record: Record) -> Caption | Drop:
    text = clean_text(str(record.get("caption") or ""))
    if not text:
        return source.drop_item(row, "caption", _text(record.get("id")), "empty_caption")
    return Caption(text, source.language, "human")


def _concept(source: Source, row: str, record: Record, names: Mapping[Any, str]) -> Concept | Drop:
    annotation_id = _text(record.get("id"))
    if record.get("iscrowd"):
        return source.drop_item(row, "concept", annotation_id, "iscrowd", "a box around a crowd is no single object")
    name = names.get(_hashable(record.get("category_id")))
    if not name:
        reason = f"category {record.get('category_id')!r} is not in the file's list"
        return source.drop_item(row, "concept", annotation_id, "unknown_label", reason)
    box = box_of(record.get("bbox"))
    if box is None:
        reason = f"bbox {record.get('bbox')!r} is not four numbers"
        return source.drop_item(row, "concept", annotation_id, "malformed_box", reason)
    return Concept(Grain.OBJECT, name, box, (), annotation_id)
