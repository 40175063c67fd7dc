"""GQA scene graphs: one sample per image, with its objects and their attributes. No captions (T = NaN).

Roles: `scene_graphs` (train_sceneGraphs.json: image id -> {width, height, objects: {id: {name, x, y, w, h, attributes,
relations}}}), streamed by image, and optionally `urls` (`x2vlm.data.readers.locations`). Relations are not read. The
file names no URLs: unless listed, a sample's is `http://gqa.invalid/<image id>.jpg`, which the card's `url_base` maps
to the folder of the unpacked images.
"""

import urllib.parse
from collections import Counter
from collections.abc import Iterator
from typing import Any

from x2vlm.data.readers.join import Join
from x2vlm.data.readers.json_stream import stream_dict
from x2vlm.data.readers.locations import Locations
from x2vlm.data.readers.source import Fault, Source, box_of, distinct_texts, whole_number
from x2vlm.data.text.texts import clean_text
from x2vlm.samples import Concept, Drop, Grain, Sample

BASE = "http://gqa.invalid/"
REMEDY = "Expected train_sceneGraphs.json: image ids with their width, height and objects"


def read_gqa(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in file order; the row key is the image id, an object's annotation id its key in the graph."""
    good = False
    with Join() as known, Locations(source) as locations:
        for image_id, graph in stream_dict(source, "scene_graphs", REMEDY):
            seen["rows"] += 1
            objects = graph.get("objects") if isinstance(graph, dict) else None
            if not image_id or not isinstance(objects, dict):
                yield source.drop(image_id or "(none)", "malformed_row", "no object called objects")
                continue
            good = True
            seen["concepts"] += len(objects)
            if known.first_listing("images", image_id):
                own = f"{BASE}{urllib.parse.quote(image_id, safe='')}.jpg"
                url = locations.url(image_id, f"{image_id}.jpg", otherwise=own)
                yield from _sample(source, image_id, url, graph, objects)
            else:
                yield source.drop(image_id, "duplicate_row", f"image {image_id} is listed twice")
                yield from source.drop_concepts(image_id, objects)
    if not good:
        source.fail("scene_graphs", "no image in it has objects", REMEDY)


def _sample(
    source: Source, row: str, url: str, graph: dict[str, Any], objects: dict[str, Any]
) -> Iterator[Sample | Drop]:
    concepts: list[Concept] = []
    made = ((annotation_id, _concept(annotation_id, record)) for annotation_id, record in objects.items())
    yield from source.keep_concepts(row, made, concepts)
    yield source.sample(
        row,
        url,
        concepts=tuple(concepts),
        claimed_width=whole_number(graph.get("width")),
        claimed_height=whole_number(graph.get("height")),
    )


def _concept(annotation_id: str, record: Any) -> Concept | Fault:
    """An object of a graph as a concept, or what is wrong with it."""
    if not isinstance(record, dict):
        return "malformed_record", "not an object"
    name = clean_text(str(record.get("name") or ""))
    if not name:
        return "empty_text", ""
    box = box_of(record.get(side) for side in ("x", "y", "w", "h"))
    if box is None:
        return "malformed_box", f"not four numbers: {[record.get(side) for side in ('x', 'y', 'w', 'h')]}"
    return Concept(Grain.OBJECT, name, box, distinct_texts(record.get("attributes")), annotation_id)
