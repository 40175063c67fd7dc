"""The texts of the sample corpus: its training captions with their media, and the texts of its concepts.

Held-out captions (COCO val) are never read. Planted bad rows are left out where they have no media.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

BASE_URL = "http://sample.invalid/"


def caption_pairs(sample: Path) -> list[tuple[str, Path]]:
    """(caption, photo or clip) of every training source, in file order, media that do not exist left out."""
    pairs = [*_coco(sample), *_cc3m(sample), *_laion(sample), *_webvid(sample)]
    found = []
    for caption, url in pairs:
        path = sample / "media" / (url or "").removeprefix(BASE_URL)
        if caption and (url or "").startswith((f"{BASE_URL}photos/", f"{BASE_URL}clips/")) and path.is_file():
            found.append((caption, path))
    return found


def concept_texts(sample: Path) -> list[str]:
    """Labels, phrases, attributes and relations of COCO, Visual Genome and OpenImages, in file order, with repeats."""
    annotations = sample / "annotations"
    coco = _json(annotations / "coco/instances_train2017.json")
    texts = [category["name"] for category in coco["categories"]]
    for image in _json(annotations / "visual_genome/region_descriptions.json"):
        texts += [region["phrase"] for region in image["regions"]]
    for image in _json(annotations / "visual_genome/attributes.json"):
        for thing in image["attributes"]:
            texts += [*thing["names"], *thing.get("attributes", [])]
    for kind in ("class-descriptions-boxable", "attributes-description", "relationships-description"):
        with (annotations / f"openimages/oidv6-{kind}.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
        texts += [row[1].replace("_", " ") for row in rows if row[0] != "LabelName"]
    return texts


def _coco(sample: Path) -> Iterator[tuple[str, str | None]]:
    data = _json(sample / "annotations/coco/captions_train2017.json")
    urls = {image["id"]: image["coco_url"] for image in data["images"]}
    for annotation in data["annotations"]:
        yield annotation["caption"], urls.get(annotation["image_id"])


def _cc3m(sample: Path) -> Iterator[tuple[str, str | None]]:
    for line in (sample / "annotations/cc3m/Train_GCC-training.tsv").read_text(encoding="utf-8").splitlines():
        caption, _, url = line.partition("\t")
        yield caption, url


def _laion(sample: Path) -> Iterator[tuple[str, str | None]]:
    table = pq.read_table(sample / "annotations/laion/part-00000.parquet", columns=["TEXT", "URL"])
    for row in table.to_pylist():
        yield row["TEXT"], row["URL"]


def _webvid(sample: Path) -> Iterator[tuple[str, str | None]]:
    with (sample / "annotations/webvid/results_2M_train.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield row["name"], row["contentUrl"]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
