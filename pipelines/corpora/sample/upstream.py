"""The contents of the samples folder: COCO records by image id, and the provenance of every file."""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]

CC_BY_2_ID = 4
"""COCO's id of Creative Commons Attribution 2.0."""


@dataclass(frozen=True)
class Upstream:
    """Records verbatim; `provenance` and `openimages_credits` are CSV rows keyed by sample path and image id."""

    root: Path
    images: dict[int, Record]
    captions: dict[int, list[Record]]
    boxes: dict[int, list[Record]]
    licenses: list[Record]
    categories: list[Record]
    provenance: dict[str, Record]
    openimages_credits: dict[str, Record]

    def photo_path(self, image_id: int) -> Path:
        """The photo's file. SystemExit names the photo if its bytes or licence are not as recorded."""
        name = self.images[image_id]["file_name"]
        for split in ("train2017", "val2017"):
            row = self.provenance.get(f"coco/images/{split}/{name}")
            if row:
                if self.images[image_id]["license"] != CC_BY_2_ID or "CC BY 2.0" not in row["licence"]:
                    raise SystemExit(f"{row['file']}: not under CC BY 2.0, choose another photo")
                return self.checked(row["file"])
        raise SystemExit(f"{name}: not in PROVENANCE.csv of {self.root}")

    def checked(self, sample: str) -> Path:
        """The path of a sample whose bytes match their recorded sha256; SystemExit otherwise."""
        path = self.root / sample
        if sha256(path.read_bytes()) != self.provenance[sample]["sha256"]:
            raise SystemExit(f"{path}: bytes differ from the sha256 in PROVENANCE.csv, fetch the samples again")
        return path

    def category(self, annotation: Record) -> str:
        """The category name of a box record."""
        return next(str(c["name"]) for c in self.categories if c["id"] == annotation["category_id"])


def sha256(data: bytes) -> str:
    """The hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def read_upstream(root: Path) -> Upstream:
    """Everything the corpus is made from. SystemExit if the samples folder is missing."""
    if not (root / "PROVENANCE.csv").is_file():
        raise SystemExit(f"{root}: no PROVENANCE.csv there; point --samples at the samples folder")
    images: dict[int, Record] = {}
    captions: dict[int, list[Record]] = {}
    boxes: dict[int, list[Record]] = {}
    licenses: list[Record] = []
    categories: list[Record] = []
    folder = root / "coco" / "annotations"
    for name in ("captions_train2017", "captions_val2017"):
        content = json.loads((folder / f"{name}.json").read_text())
        images |= {image["id"]: image for image in content["images"]}
        _group_by_image(content["annotations"], captions)
    for name in ("instances_train2017", "instances_val2017", "instances_train2017_extra"):
        content = json.loads((folder / f"{name}.json").read_text())
        images |= {image["id"]: image for image in content["images"]}
        _group_by_image(content["annotations"], boxes)
        licenses, categories = content["licenses"], content["categories"]
    return Upstream(
        root,
        images,
        captions,
        boxes,
        licenses,
        categories,
        _rows_by(root / "PROVENANCE.csv", "file"),
        _rows_by(root / "openimages" / "credits.csv", "ImageID"),
    )


def _group_by_image(annotations: list[Record], into: dict[int, list[Record]]) -> None:
    for annotation in annotations:
        into.setdefault(annotation["image_id"], []).append(annotation)


def _rows_by(path: Path, column: str) -> dict[str, Record]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[column]: row for row in csv.DictReader(file)}
