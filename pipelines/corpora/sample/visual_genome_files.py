"""Visual Genome's files, re-expressed from COCO boxes: phrases and colours are computed (see words.py)."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipelines.corpora.sample.coco_files import write_json
from pipelines.corpora.sample.photos import BASE_URL, VISUAL_GENOME
from pipelines.corpora.sample.planted import Plant
from pipelines.corpora.sample.upstream import Record, Upstream
from pipelines.corpora.sample.words import object_colour, region_phrase, token_overlap

FIRST_IMAGE_ID, FIRST_REGION_ID, FIRST_OBJECT_ID = 2500001, 6000001, 5000001
MIN_REGION_FRACTION = 0.01
"""Of the photo: smaller things get no phrase, as annotators would not describe them."""

MAX_OVERLAP = 0.75
"""Phrases of one image that share more tokens than this are near-duplicates (X2-VLM A.1)."""


@dataclass(frozen=True)
class Thing:
    """A COCO box in whole pixels with the words that describe it."""

    name: str
    colour: str | None
    phrase: str
    box_xywh: tuple[int, int, int, int]


def write_visual_genome(upstream: Upstream, folder: Path) -> list[Plant]:
    """Writes image_data, region_descriptions and attributes and returns what was planted."""
    image_data, regions, attributes = [], [], []
    region_ids, object_ids = itertools.count(FIRST_REGION_ID), itertools.count(FIRST_OBJECT_ID)
    for image_id, coco_id in enumerate(VISUAL_GENOME, FIRST_IMAGE_ID):
        things = list(_things(upstream, coco_id))
        image_data.append(_image(upstream.images[coco_id], image_id))
        chosen = _without_near_duplicates(things, upstream.images[coco_id])
        regions.append({"regions": [_region(next(region_ids), image_id, t) for t in chosen], "id": image_id})
        attributes.append({"image_id": image_id, "attributes": [_object(next(object_ids), t) for t in things]})
    plants = _plant_regions(regions) + _plant_objects(attributes)
    write_json(folder / "image_data.json", image_data)
    write_json(folder / "region_descriptions.json", regions)
    write_json(folder / "attributes.json", attributes)
    return plants


def _things(upstream: Upstream, coco_id: int) -> Iterator[Thing]:
    image = upstream.images[coco_id]
    photo = Image.open(upstream.photo_path(coco_id))
    for annotation in upstream.boxes[coco_id]:
        x, y, w, h = annotation["bbox"]
        left, top = int(x), int(y)
        right, bottom = min(image["width"], round(x + w)), min(image["height"], round(y + h))
        if annotation["iscrowd"] or right <= left or bottom <= top:
            continue
        name = upstream.category(annotation)
        colour = object_colour(photo, annotation, name)
        phrase = region_phrase(name, colour, annotation["bbox"], image["width"], image["height"])
        yield Thing(name, colour, phrase, (left, top, right - left, bottom - top))


def _without_near_duplicates(things: list[Thing], image: Record) -> list[Thing]:
    chosen: list[Thing] = []
    for thing in sorted(things, key=lambda t: -t.box_xywh[2] * t.box_xywh[3]):
        _, _, w, h = thing.box_xywh
        if w * h < MIN_REGION_FRACTION * image["width"] * image["height"]:
            continue
        if all(token_overlap(thing.phrase, other.phrase) <= MAX_OVERLAP for other in chosen):
            chosen.append(thing)
    return chosen


def _image(image: Record, image_id: int) -> Record:
    match = re.search(r"/(\d+)_", image["flickr_url"])
    return {
        "width": image["width"],
        "url": f"{BASE_URL}/photos/{image['file_name']}",
        "height": image["height"],
        "image_id": image_id,
        "coco_id": image["id"],
        "flickr_id": int(match[1]) if match else None,
    }


def _region(region_id: int, image_id: int, thing: Thing) -> Record:
    x, y, w, h = thing.box_xywh
    place = {"region_id": region_id, "width": w, "height": h, "image_id": image_id}
    return place | {"phrase": thing.phrase, "y": y, "x": x}


def _object(object_id: int, thing: Thing) -> Record:
    x, y, w, h = thing.box_xywh
    record: Record = {"synsets": [], "h": h, "object_id": object_id, "names": [thing.name], "w": w}
    if thing.colour:  # absent, not empty, if unknown: as upstream
        record["attributes"] = [thing.colour]
    return record | {"y": y, "x": x}


def _plant_regions(regions: list[Record]) -> list[Plant]:
    """Appends broken regions and returns their verdicts, with one pair exactly on the overlap limit."""
    first, second = regions[0], regions[1]
    whole = max(second["regions"], key=lambda r: r["width"] * r["height"])
    model = whole | {"width": whole["width"] - 2, "height": whole["height"] - 2}
    broken = [
        (first, {"x": -900, "y": 40, "width": 300, "height": 200}, "negative coordinate -900", "box_invalid"),
        (first, {"x": 100, "y": 400, "width": 60, "height": 300}, "reaches below the bottom border", "box_invalid"),
        (first, {"x": 100, "y": 100, "width": 9, "height": 9}, "9 x 9 pixels, less than a patch", "box_too_small"),
    ]
    plants = []
    phrases = ["striped tablecloth", "wooden frame behind everyone", "tiny speck"]
    for number, (entry, box, what, rule) in enumerate(broken, 6900001):
        entry["regions"].append({"region_id": number, "image_id": entry["id"], "phrase": phrases.pop(0)} | box)
        plants.append(_plant(number, f"{what}, in image {entry['id']}", rule))
    second["regions"].append(model | {"region_id": 6900004, "phrase": f"{whole['phrase']} side"})
    what = f"says again what region {whole['region_id']} of image {second['id']} says"
    plants.append(_plant(6900004, what, "region_text_overlap"))
    one, other = _pair_at_the_limit(regions)
    what = f"shares exactly 75 % of its tokens with region {one['region_id']} of image {one['image_id']}"
    return [*plants, _plant(other["region_id"], what, "kept")]


def _pair_at_the_limit(regions: list[Record]) -> tuple[Record, Record]:
    for entry in regions:
        for one, other in itertools.combinations(entry["regions"], 2):
            if token_overlap(one["phrase"], other["phrase"]) == MAX_OVERLAP:
                return one, other
    raise SystemExit("no two phrases overlap by exactly 75 %; choose other Visual Genome photos")


def _plant_objects(attributes: list[Record]) -> list[Plant]:
    entry = attributes[0]
    record = {"synsets": [], "h": 80, "object_id": 5900001, "names": ["bottle"], "w": 0, "y": 60, "x": 300}
    entry["attributes"].append(record)
    return [_plant(5900001, f"zero width, in image {entry['image_id']}", "box_invalid")]


def _plant(number: int, what: str, rule: str) -> Plant:
    return Plant("visual_genome", f"concept:{number}", what, "filter", rule)
