"""Benchmarks without training: Winoground's pairs and OVAD's attributes of given boxes."""

from collections.abc import Mapping
from typing import Any

from x2vlm.data.readers.downstream.options import OvadOptions, WinogroundOptions
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
from x2vlm.data.readers.json_stream import stream_dict
from x2vlm.data.task_examples import Example, TaskData
from x2vlm.errors import InvalidSample

SETS = ("head", "medium", "tail")
OVAD = 'Expected ovad2000.json: {"images", "annotations" with "att_vec", "categories", "attributes"}'


def read_winoground(reading: Reading, options: WinogroundOptions) -> TaskData:
    """One example a row: two images, two captions; tags: collapsed_tag, tag, secondary_tag and those of role `tags`."""
    more = whole_json(reading.source, "tags") if "tags" in reading.source.files else {}
    for number, record in json_records(reading, "rows"):
        reading.keep(str(number), _winoground, reading, options, record, more)
    return reading.data("rows")


def _winoground(reading: Reading, options: WinogroundOptions, record: Record, more: Mapping[str, Any]) -> Example:
    example_id = id_field(record, "id")
    texts = (text_field(record, "caption_0"), text_field(record, "caption_1"))
    media = tuple(
        media_name(options.media, {**record, "image": id_field(record, name)}) for name in ("image_0", "image_1")
    )
    tags = [record[name] for name in ("collapsed_tag", "tag", "secondary_tag") if record.get(name)]
    return reading.example(
        example_id,
        media,
        texts,
        tags=(*map(str, tags), *map(str, more.get(example_id, ()))),
    )


def read_ovad(reading: Reading, options: OvadOptions) -> TaskData:
    """One example a box: the noun of its category, and 1, 0 or -1 (not annotated) for each attribute.

    Labels are the attributes as the file names them ("color:grey/gray" with its synonyms). Their tags are head, medium
    or tail, and `is` or `has`, which says how a sentence names them ("is red", "has a striped pattern").
    """
    content = dict(stream_dict(reading.source, "annotations", OVAD))
    for key in ("images", "annotations", "categories", "attributes"):
        if not isinstance(content.get(key), list) or not all(isinstance(one, dict) for one in content[key]):
            reading.source.fail("annotations", f"no list of objects `{key}`", OVAD)
    attributes = sorted(content["attributes"], key=lambda one: int(one.get("id", 0)))
    labels = tuple(str(one.get("name")) for one in attributes)
    sets = tuple(str(one.get("freq_set")) for one in attributes)
    if not labels or len(set(labels)) < len(labels) or set(sets) - set(SETS):
        problem = f"its {len(labels)} attributes are not distinct names of head, medium or tail"
        reading.source.fail("annotations", problem, OVAD)
    verbs = [str(one.get("is_has_att", "")) for one in attributes]
    tags = tuple((one, verb) if verb else (one,) for one, verb in zip(sets, verbs, strict=True))
    images = {str(image.get("id")): image for image in content["images"]}
    nouns = {str(category.get("id")): str(category.get("name", "")) for category in content["categories"]}
    for number, record in enumerate(content["annotations"]):
        reading.keep(
            str(record.get("id", number)),
            _ovad,
            reading,
            options,
            record,
            images,
            nouns,
            len(labels),
        )
    return reading.data("annotations", labels=labels, label_tags=tags)


def _ovad(
    reading: Reading,
    options: OvadOptions,
    record: Record,
    images: Mapping[str, Record],
    nouns: Mapping[str, str],
    num_attributes: int,
) -> Example:
    image_id, category = id_field(record, "image_id"), str(record.get("category_id"))
    if image_id not in images:
        raise InvalidSample("unknown_image", f"no image {image_id}")
    if not nouns.get(category):
        raise InvalidSample("unknown_category", f"no category {category}")
    vector = record.get("att_vec")
    if not isinstance(vector, list) or len(vector) != num_attributes:
        count = len(vector) if isinstance(vector, list) else "no"
        raise InvalidSample("malformed_row", f"{count} values in att_vec, expected {num_attributes}")
    if any(value not in (-1, 0, 1) for value in vector):
        raise InvalidSample("malformed_row", "a value of att_vec is none of 1, 0 and -1")
    image = images[image_id]
    return reading.example(
        id_field(record, "id"),
        (media_name(options.media, image),),
        (nouns[category],),
        box=checked_box(record.get("bbox"), image.get("width"), image.get("height")),
        attributes=tuple(int(value) for value in vector),
        group=image_id,
    )
