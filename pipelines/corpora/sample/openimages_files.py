"""OpenImages' files, re-expressed from COCO boxes: normalised corners, hand-written relations, colours from pixels."""

import base64
import csv
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from pipelines.corpora.sample.photos import BASE_URL, OPENIMAGES, RELATIONS
from pipelines.corpora.sample.planted import Plant
from pipelines.corpora.sample.upstream import Record, Upstream
from pipelines.corpora.sample.words import object_colour

CLASSES = {
    "backpack": ("/m/01940j", "Backpack"),
    "bicycle": ("/m/0199g", "Bicycle"),
    "bird": ("/m/015p6", "Bird"),
    "bus": ("/m/01bjv", "Bus"),
    "car": ("/m/0k4j", "Car"),
    "cow": ("/m/01xq0k1", "Cattle"),
    "handbag": ("/m/080hkjn", "Handbag"),
    "motorcycle": ("/m/04_sv", "Motorcycle"),
    "person": ("/m/01g317", "Person"),
    "scissors": ("/m/01lsmm", "Scissors"),
    "suitcase": ("/m/01s55n", "Suitcase"),
    "toilet": ("/m/09g1w", "Toilet"),
    "traffic light": ("/m/015qff", "Traffic light"),
    "train": ("/m/07jdr", "Train"),
    "tv": ("/m/07c52", "Television"),
}
"""COCO category to OpenImages class."""

COLOURS = {
    "black": ("/m/019sc", "Black"),
    "blue": ("/m/01g5v", "Blue"),
    "red": ("/m/06fvc", "Red"),
    "white": ("/m/083jv", "White"),
    "yellow": ("/m/088fh", "Yellow"),
}
"""MIDs of colour words; OpenImages' own attribute list has materials and states but no colours."""

BOX_HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside,"
    "XClick1X,XClick2X,XClick3X,XClick4X,XClick1Y,XClick2Y,XClick3Y,XClick4Y"
)
RELATION_HEADER = "ImageID,LabelName1,LabelName2,XMin1,XMax1,YMin1,YMax1,XMin2,XMax2,YMin2,YMax2,RelationshipLabel"
IMAGE_HEADER = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,OriginalMD5,"
    "Thumbnail300KURL,Rotation"
)
NO_CLICKS = ["-1"] * 8


def image_key(file_name: str) -> str:
    """The 16 hex characters of a photo's id: the start of the sha1 of its file name."""
    return hashlib.sha1(file_name.encode(), usedforsecurity=False).hexdigest()[:16]


def write_openimages(upstream: Upstream, folder: Path) -> list[Plant]:
    """Writes the six CSV files and returns what was planted."""
    boxes, plants = _box_rows(upstream)
    relations = _relation_rows(upstream)
    labels = sorted({label for *_, label in relations} - {"is"})
    _write(folder / "oidv6-train-annotations-bbox.csv", BOX_HEADER, boxes)
    _write(folder / "oidv6-train-annotations-vrd.csv", RELATION_HEADER, relations)
    _write(folder / "train-images-boxable-with-rotation.csv", IMAGE_HEADER, _image_rows(upstream))
    _write(folder / "oidv6-class-descriptions-boxable.csv", "LabelName,DisplayName", sorted(CLASSES.values()))
    _write(folder / "oidv6-attributes-description.csv", "LabelName,DisplayName", sorted(COLOURS.values()))
    _write(folder / "oidv6-relationships-description.csv", None, [[label, label] for label in ["is", *labels]])
    return plants


def _image_rows(upstream: Upstream) -> list[list[str]]:
    rows = []
    for image_id in OPENIMAGES:
        image, data = upstream.images[image_id], upstream.photo_path(image_id).read_bytes()
        photo_id = flickr_photo_id(image["flickr_url"])
        md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
        url, landing = f"{BASE_URL}/photos/{image['file_name']}", flickr_landing_url(photo_id)
        licence = "https://creativecommons.org/licenses/by/2.0/"
        names = ["", f"unknown (Flickr photo {photo_id})", ""]
        key = image_key(image["file_name"])
        rows.append([key, "train", url, landing, licence, *names, str(len(data)), md5, "", "0.0"])
    return rows


def flickr_photo_id(static_url: str) -> str:
    """The photo's number in the URL of its static file."""
    match = re.search(r"/(\d+)_[0-9a-f]+", static_url)
    if not match:
        raise SystemExit(f"{static_url}: no Flickr photo id in it")
    return match[1]


def flickr_landing_url(photo_id: str) -> str:
    """Flickr's own redirect to the photo's page, which names the owner."""
    return f"https://www.flickr.com/photo.gne?id={photo_id}"


def _box_rows(upstream: Upstream) -> tuple[list[list[str]], list[Plant]]:
    rows: list[list[str]] = []
    plants: list[Plant] = []
    for image_id in OPENIMAGES:
        for annotation in upstream.boxes[image_id]:
            if annotation["iscrowd"]:
                plants.append(_plant(len(rows), "IsGroupOf = 1, an upstream crowd", "group_of"))
            rows.append(_box_row(upstream, annotation, group_of=annotation["iscrowd"]))
    screen = next(box for box in upstream.boxes[520707] if upstream.category(box) == "tv")
    person = next(category["id"] for category in upstream.categories if category["name"] == "person")
    plants.append(_plant(len(rows), "IsDepiction = 1, a person shown on a screen", "depiction"))
    rows.append(_box_row(upstream, screen | {"category_id": person}, depiction=1))
    return rows, plants


def _plant(row: int, what: str, rule: str) -> Plant:
    return Plant("openimages", f"concept:bbox:{row}", what, "read", rule)


def _box_row(upstream: Upstream, annotation: Record, group_of: int = 0, depiction: int = 0) -> list[str]:
    image = upstream.images[annotation["image_id"]]
    truncated = int(_touches_border(annotation["bbox"], image))
    flags = [0, truncated, group_of, depiction, 0]
    mid = CLASSES[upstream.category(annotation)][0]
    corners = _corners(annotation["bbox"], image)
    return [image_key(image["file_name"]), "activemil", mid, "1", *corners, *map(str, flags), *NO_CLICKS]


def _corners(box_xywh: list[float], image: Record) -> list[str]:
    """XMin, XMax, YMin, YMax in [0, 1], in that order."""
    x, y, w, h = box_xywh
    width, height = image["width"], image["height"]
    return [f"{min(1.0, v):.6f}" for v in (x / width, (x + w) / width, y / height, (y + h) / height)]


def _touches_border(box_xywh: list[float], image: Record) -> bool:
    x, y, w, h = box_xywh
    return x < 1 or y < 1 or x + w > image["width"] - 1 or y + h > image["height"] - 1


def _relation_rows(upstream: Upstream) -> list[list[str]]:
    rows = []
    for relation in RELATIONS:
        boxes = {box["id"]: box for box in upstream.boxes[relation.image_id]}
        rows.append(_relation_row(upstream, boxes[relation.subject], boxes[relation.target], relation.label))
    for image_id in OPENIMAGES:
        photo = Image.open(upstream.photo_path(image_id))
        for box in upstream.boxes[image_id]:
            colour = object_colour(photo, box, upstream.category(box))
            if colour in COLOURS:
                rows.append(_relation_row(upstream, box, box, "is", COLOURS[colour][0]))
    return rows


def _relation_row(upstream: Upstream, one: Record, other: Record, label: str, mid: str | None = None) -> list[str]:
    image = upstream.images[one["image_id"]]
    mids = [CLASSES[upstream.category(one)][0], mid or CLASSES[upstream.category(other)][0]]
    corners = [*_corners(one["bbox"], image), *_corners(other["bbox"], image)]
    return [image_key(image["file_name"]), *mids, *corners, label]


def _write(path: Path, header: str | None, rows: Iterable[Iterable[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if header:
            writer.writerow(header.split(","))
        writer.writerows(rows)
