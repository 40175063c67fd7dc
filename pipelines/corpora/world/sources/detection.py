"""Objects365 v2 (COCO's layout, with upstream's kind of misspelt names) and OpenImages V6 (CSV files)."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.scene import PixelBox, Relation, Thing
from pipelines.corpora.world.drawing.shots import HOST, Shot
from pipelines.corpora.world.drawing.texts import around, without_overlap
from pipelines.corpora.world.drawing.words import COLOURS, SHAPES, TEXTURES
from pipelines.corpora.world.records import ROW_NUMBER, Record, csv_line
from pipelines.corpora.world.sources.box_noise import bad_boxes
from x2vlm.data.randomness import Draws

MISSPELT = {"diamond": "Diamond/Rhombus", "semicircle": "Semicirle", "crescent": "Crescent "}
OBJECTS365_NAMES = {shape: MISSPELT.get(shape, shape.capitalize()) for shape in SHAPES}
OBJECTS365_CATEGORIES = [
    {"id": number, "name": name, "supercategory": "shape"} for number, name in enumerate(OBJECTS365_NAMES.values(), 1)
]


def emit_objects365(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """Records of one training image."""
    row = str(shot.image_id)
    patch = shot.image_id % 51
    image = {
        "height": shot.height,
        "id": shot.image_id,
        "license": 5,
        "width": shot.width,
        "file_name": f"images/v{1 + patch // 16 % 2}/patch{patch}/objects365_v1_{shot.image_id:08d}.jpg",
        "url": shot.url,
    }
    yield Record("objects365/images", image, tuple(shot.row(row)))
    for number, thing in enumerate(shot.image.things):
        record = _annotation(shot, shot.image_id * 100 + number, thing.box, SHAPES.index(thing.shape) + 1)
        yield Record("objects365/annotations", record, (shot.item(row, "concept", str(record["id"])),))
    for bad in bad_boxes(config, shot, "objects365 boxes"):
        record = _annotation(shot, shot.image_id * 100 + 50 + bad.number, bad.box, 1)
        truth = shot.item(row, "concept", str(record["id"]), bad.planted, bad.detail, bad.expected)
        yield Record("objects365/annotations", record, (truth,))


def _annotation(shot: Shot, number: int, box: PixelBox, category: int) -> dict[str, Any]:
    return {
        "id": number,
        "iscrowd": 0,
        "isfake": 0,
        "area": float(box[2] * box[3]),
        "isreflected": 0,
        "bbox": [float(side) for side in box],
        "image_id": shot.image_id,
        "category_id": category,
    }


BOX_HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,"
    "XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
)
RELATION_HEADER = "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationshipLabel"
IMAGE_HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation"
)
LABEL_HEADER = "ImageID,Source,LabelName,Confidence"
CLASS_MIDS = {shape: f"/m/0w{position:04d}" for position, shape in enumerate(SHAPES)}
ATTRIBUTE_MIDS = {name: f"/m/0x{position:04d}" for position, name in enumerate((*COLOURS, *TEXTURES[1:]))}
RELATION_LABELS = {
    "left_of": "left_of",
    "above": "above",
    "below": "under",
    "in_front_of": "in_front_of",
    "near": "next_to",
    "inside": "inside_of",
}
LICENCE = "https://creativecommons.org/publicdomain/zero/1.0/"
NO_CLICKS = [-1] * 8


def emit_openimages(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """Records of one training image: its row, labels, boxes, attributes as `is` relations, and relations."""
    key = hashlib.sha256(f"{config.seed}/{shot.index}".encode()).hexdigest()[:16]
    draws = Draws(config.seed, shot.index, "openimages")
    yield Record("openimages/images", _image_line(shot, key, draws), tuple(shot.row(key)))
    for shape in sorted({thing.shape for thing in shot.image.things}):
        yield Record("openimages/labels", csv_line((key, "verification", CLASS_MIDS[shape], 1)))
    yield from _boxes(config, shot, key, draws)
    yield from _relations(shot, key, draws)


def _image_line(shot: Shot, key: str, draws: Draws) -> str:
    md5 = base64.b64encode(hashlib.md5(shot.data, usedforsecurity=False).digest()).decode() if shot.data else ""
    rotation = draws.choice(("90.0", "180.0", "270.0")) if shot.planted == "rotated" else draws.choice(("0.0", "0", ""))
    author = draws.choice(("Ada, of the shapes", 'Bo "Brush" Lund', "Čeněk", "unknown"))
    title = draws.choice(("Shapes, again", 'A "scene"', "Nº 5", f"Scene {shot.index}"))
    profile, landing = f"{HOST}/people/1", f"{HOST}/photos/{shot.image_id}"
    size = len(shot.data) or ""
    return csv_line((key, "train", shot.url, landing, LICENCE, profile, author, title, size, md5, "", rotation))


def _corners(shot: Shot, box: PixelBox) -> list[str]:
    """XMin, XMax, YMin, YMax as fractions of the image, in upstream's order. Nine digits reproduce whole pixels."""
    x, y, w, h = box
    spans = ((x, shot.width), (x + w, shot.width), (y, shot.height), (y + h, shot.height))
    return [f"{value / whole:.9f}" for value, whole in spans]


def _boxes(config: WorldConfig, shot: Shot, key: str, draws: Draws) -> Iterator[Record]:
    item = f"bbox:{ROW_NUMBER}"
    # The boxes of a row that the reader drops are dropped there too.
    gone = ("read", "row_dropped") if shot.planted == "rotated" else None
    for thing in shot.image.things:
        occluded = int(thing.visible < thing.pixels)
        line = _box_line(shot, key, thing.shape, thing.box, occluded)
        yield Record("openimages/boxes", line, (shot.item(key, "concept", item, expected=gone or ("", "kept")),))
    for bad in bad_boxes(config, shot, "openimages boxes"):
        line = _box_line(shot, key, draws.choice(SHAPES), bad.box)
        truth = shot.item(key, "concept", item, bad.planted, bad.detail, gone or bad.expected)
        yield Record("openimages/boxes", line, (truth,))
    whole = (0, 0, shot.width, shot.height)
    if draws.chance(config.noise.crowd_box):
        line = _box_line(shot, key, shot.image.things[0].shape, whole, group=1)
        truth = shot.item(key, "concept", item, "crowd_box", "IsGroupOf", gone or ("read", "group_of"))
        yield Record("openimages/boxes", line, (truth,))
    if draws.chance(config.noise.depiction_box):
        line = _box_line(shot, key, shot.image.things[0].shape, shot.image.things[0].box, depiction=1)
        truth = shot.item(key, "concept", item, "depiction_box", "IsDepiction", gone or ("read", "depiction"))
        yield Record("openimages/boxes", line, (truth,))


def _box_line(
    shot: Shot, key: str, shape: str, box: PixelBox, occluded: int = 0, group: int = 0, depiction: int = 0
) -> str:
    flags = (occluded, 0, group, depiction, 0)
    return csv_line((key, "xclick", CLASS_MIDS[shape], 1, *_corners(shot, box), *flags, *NO_CLICKS))


def _relations(shot: Shot, key: str, draws: Draws) -> Iterator[Record]:
    gone = ("read", "row_dropped") if shot.planted == "rotated" else ("", "kept")
    truths = (shot.item(key, "concept", f"vrd:{ROW_NUMBER}", expected=gone),)
    for thing in shot.image.things:
        attribute = thing.colour if thing.texture == "plain" else draws.choice((thing.colour, thing.texture))
        yield Record("openimages/relations", _relation_line(shot, key, thing, thing, "is", attribute), truths)
    for relation in _without_repeats(shot, draws):
        one, other = shot.image.things[relation.subject], shot.image.things[relation.target]
        line = _relation_line(shot, key, one, other, RELATION_LABELS[relation.name])
        yield Record("openimages/relations", line, truths)


def _without_repeats(shot: Shot, draws: Draws) -> list[Relation]:
    """Relations whose phrases do not repeat each other: "star left of circle" and "circle left of star" do."""
    things = shot.image.things
    phrases: dict[str, Relation] = {}
    for relation in draws.shuffled([one for one in shot.image.relations if one.name in RELATION_LABELS])[:8]:
        words = RELATION_LABELS[relation.name].replace("_", " ")
        phrases.setdefault(f"{things[relation.subject].shape} {words} {things[relation.target].shape}", relation)
    kept = without_overlap(
        [(phrase, around((things[one.subject].box, things[one.target].box))) for phrase, one in phrases.items()]
    )
    return [phrases[phrase] for phrase, _ in kept]


def _relation_line(shot: Shot, key: str, one: Thing, other: Thing, label: str, attribute: str = "") -> str:
    mid = ATTRIBUTE_MIDS[attribute] if attribute else CLASS_MIDS[other.shape]
    return csv_line((key, CLASS_MIDS[one.shape], mid, *_corners(shot, one.box), *_corners(shot, other.box), label))
