"""Objects365 v2: one sample per image of a COCO-like file, with its objects. No captions (T = NaN).

Role: `instances` (zhiyuan_objv2_train.json), streamed and joined on disk like COCO. Images have no URL of their own:
they come in archives. A sample's URL is `http://objects365.invalid/<file name>`, which the card's `url_base` maps to
the folder where the archives were unpacked.
"""

import dataclasses
import re
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Iterator

from x2vlm.data.readers.annotated.coco import ShortLists, dropped_image, image_sample, spool, unmatched
from x2vlm.data.readers.join import Join
from x2vlm.data.readers.source import Source
from x2vlm.samples import Drop, Sample

BASE = "http://objects365.invalid/"

# Names as published -> corrected. Only misspellings: odd names that are words are unchanged.
FIXED_NAMES = {
    "Bakset": "Basket",
    "Ballon": "Balloon",
    "Billards": "Billiards",
    "Buttefly": "Butterfly",
    "Campel": "Camel",
    "Dinning Table": "Dining Table",
    "Extention Cord": "Extension Cord",
    "Hamimelon": "Hami Melon",
    "Hotair ballon": "Hot-air Balloon",
    "Moniter/TV": "Monitor/TV",
    "Mushroon": "Mushroom",
    "Noddles": "Noodles",
    "Table Teniis paddle": "Table Tennis Paddle",
    "Tape Measur/ Ruler": "Tape Measure/Ruler",
    "Trash bin Can": "Trash Bin/Trash Can",
}


def read_objects365(source: Source, seen: Counter[str]) -> Iterator[Sample | Drop]:
    """Samples in the order of the image list; the row key is the image id.

    Misspelt names are corrected. A label of several names ("Bowl/Basin") reads as one of them, chosen by annotation
    id, so that a model meets all.
    """
    with Join() as join:
        short = ShortLists()
        yield from spool(source, "instances", "concept", join, short, seen)
        yield from unmatched(source, join)
        for row, image, items in join.rows():
            name = disk_name(str(image["file_name"] or ""))
            url = str(image["url"] or "").strip() or (name and BASE + urllib.parse.quote(name))
            if url:
                licence = short.licences.get(("instances", image["license"])) or source.licence
                yield from map(_name_objects, image_sample(source, row, url, image, licence, items, short.names))
            else:
                yield from dropped_image(source, row, "missing_url", "neither url nor file_name", items)


def disk_name(file_name: str) -> str:
    """The path below the folder of the unpacked archives, without the "images/v1/" of the annotation file."""
    return re.sub(r"^images/v\d+/", "", file_name.strip())


def object_name(name: str, annotation_id: str) -> str:
    """The name to read for one annotation of a category."""
    names = [part.strip() for part in FIXED_NAMES.get(name, name).split("/") if part.strip()]
    return names[zlib.crc32(annotation_id.encode("utf-8")) % len(names)] if names else name


def _name_objects(made: Sample | Drop) -> Sample | Drop:
    if isinstance(made, Drop):
        return made
    concepts = (dataclasses.replace(one, text=object_name(one.text, one.annotation_id)) for one in made.concepts)
    return dataclasses.replace(made, concepts=tuple(concepts))
