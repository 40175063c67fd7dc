"""What a world's upstream files say, read by the standard library alone: neither our readers nor the world's own code.

Everything is keyed as the truth keys it.
"""

import csv
import gzip
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq

HOST = "http://world.invalid/"


@dataclass
class UpstreamFacts:
    """What the files say about one row. `boxes`: item -> x, y, w, h (fractions of the image where `relative`)."""

    url: str = ""
    texts: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    rotation: str = ""
    begins: float | None = None  # of a clip of a video, seconds
    duration: float | None = None
    boxes: dict[str, tuple[float, float, float, float]] = field(default_factory=dict)
    phrases: dict[str, str] = field(default_factory=dict)  # of regions
    flags: dict[str, str] = field(default_factory=dict)  # item -> "crowd" or "depiction"
    relative: bool = False


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def table(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def lines(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        yield from (line.rstrip("\n").split("\t") for line in file)


def read_upstream(out: Path, source: str) -> dict[str, UpstreamFacts]:
    """Row key -> what the files of `source` say about that row."""
    return READ[source](out / "annotations" / source)


def _coco(folder: Path, name: str = "instances_train2017.json") -> dict[str, UpstreamFacts]:
    content = load(folder / name)
    rows = {
        str(one["id"]): UpstreamFacts(one["coco_url"] if name != "zhiyuan_objv2_train.json" else one["url"])
        for one in content["images"]
    }
    for image in content["images"]:
        rows[str(image["id"])].size = (image["width"], image["height"])
    for one in content["annotations"]:
        row, item = rows[str(one["image_id"])], str(one["id"])
        row.boxes[item] = tuple(one["bbox"])
        if one["iscrowd"]:
            row.flags[item] = "crowd"
    return rows


def _coco_with_captions(folder: Path) -> dict[str, UpstreamFacts]:
    rows = _coco(folder)
    for one in load(folder / "captions_train2017.json")["annotations"]:
        rows[str(one["image_id"])].texts.append(one["caption"])
    return rows


def _visual_genome(folder: Path) -> dict[str, UpstreamFacts]:
    rows = {
        str(one["image_id"]): UpstreamFacts(one["url"], size=(one["width"], one["height"]))
        for one in load(folder / "image_data.json")
    }
    for entry in load(folder / "region_descriptions.json"):
        for one in entry["regions"]:
            item = str(one["region_id"])
            rows[str(entry["id"])].boxes[item] = (one["x"], one["y"], one["width"], one["height"])
            rows[str(entry["id"])].phrases[item] = one["phrase"]
    for entry in load(folder / "attributes.json"):
        for one in entry["attributes"]:
            rows[str(entry["image_id"])].boxes[str(one["object_id"])] = (one["x"], one["y"], one["w"], one["h"])
    return rows


def _sbu(folder: Path) -> dict[str, UpstreamFacts]:
    content = load(folder / "sbu-captions-all.json")
    pairs = zip(content["image_urls"], content["captions"], strict=True)
    return {str(number): UpstreamFacts(url, [text]) for number, (url, text) in enumerate(pairs)}


def _cc3m(folder: Path) -> dict[str, UpstreamFacts]:
    return {
        str(number): UpstreamFacts(url, [text])
        for number, (text, url) in enumerate(lines(folder / "Train_GCC-training.tsv"))
    }


def _cc12m(folder: Path) -> dict[str, UpstreamFacts]:
    return {str(number): UpstreamFacts(url, [text]) for number, (url, text) in enumerate(lines(folder / "cc12m.tsv"))}


def _laion(folder: Path) -> dict[str, UpstreamFacts]:
    rows = pq.read_table(folder / "part-00000.parquet").to_pylist()
    return {
        str(number): UpstreamFacts(
            row["URL"], [row["TEXT"]], size=None if row["WIDTH"] is None else (int(row["WIDTH"]), int(row["HEIGHT"]))
        )
        for number, row in enumerate(rows)
    }


def _openimages(folder: Path) -> dict[str, UpstreamFacts]:
    rows = {
        one["ImageID"]: UpstreamFacts(one["OriginalURL"], rotation=one["Rotation"], relative=True)
        for one in table(folder / "train-images-boxable-with-rotation.csv")
    }
    for number, one in enumerate(table(folder / "oidv6-train-annotations-bbox.csv")):
        left, right, top, bottom = (float(one[side]) for side in ("XMin", "XMax", "YMin", "YMax"))
        row, item = rows[one["ImageID"]], f"bbox:{number}"
        row.boxes[item] = (left, top, right - left, bottom - top)
        if one["IsGroupOf"] == "1" or one["IsDepiction"] == "1":
            row.flags[item] = "crowd" if one["IsGroupOf"] == "1" else "depiction"
    return rows


PHRASE = re.compile(r"\[/EN#(\d+)/\w+ ([^\]]+)\]")


def _entities(folder: Path) -> dict[str, UpstreamFacts]:
    rows = {name.removesuffix(".jpg"): UpstreamFacts(url) for name, url in lines(folder / "image_urls.tsv")}
    for name, text in lines(folder / "results_20130124.token"):
        rows[name.split(".")[0]].texts.append(text)
    with zipfile.ZipFile(folder / "annotations.zip") as archive:
        for row, told in rows.items():
            boxes = {}
            root = ElementTree.fromstring(archive.read(f"Annotations/{row}.xml"))
            told.size = (int(root.findtext("size/width") or 0), int(root.findtext("size/height") or 0))
            for one in root.iter("object"):
                left, top, right, bottom = (
                    int(one.findtext(f"bndbox/{side}") or 0) for side in ("xmin", "ymin", "xmax", "ymax")
                )
                boxes[one.findtext("name")] = (left - 1, top - 1, right - left + 1, bottom - top + 1)
            sentences = archive.read(f"Sentences/{row}.txt").decode().splitlines()
            for position, sentence in enumerate(sentences):
                for place, (entity, phrase) in enumerate(PHRASE.findall(sentence)):
                    item = f"{entity}@{position}.{place}"
                    told.boxes[item], told.phrases[item] = boxes[entity], phrase
    return rows


def _webvid(folder: Path) -> dict[str, UpstreamFacts]:
    return {
        one["videoid"]: UpstreamFacts(one["contentUrl"], [one["name"]])
        for one in table(folder / "results_2M_train.csv")
    }


def _howto100m(folder: Path) -> dict[str, UpstreamFacts]:
    urls = dict(lines(folder / "video_urls.tsv"))
    return {
        f"{video}#{number}": UpstreamFacts(urls[video], [text], begins=start)
        for video, record in load(folder / "raw_caption.json").items()
        for number, (text, start) in enumerate(zip(record["text"], record["start"], strict=True))
    }


def _yttemporal(folder: Path) -> dict[str, UpstreamFacts]:
    urls = dict(lines(folder / "video_urls.tsv"))
    rows = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines():
            video = json.loads(line)
            words = iter(video["subtitles"])
            for number, stretch in enumerate(video["denoised"]):
                spoken = [next(words) for _ in stretch["noisyasr"].split()]
                begins = next(one["time"] for one in spoken if not re.fullmatch(r"&.*|.*;|\[.*\]", one["word"]))
                rows[f"{video['info']['id']}#{number}"] = UpstreamFacts(
                    urls[video["info"]["id"]], [stretch["cleanasr"]], begins=begins, duration=video["info"]["duration"]
                )
    return rows


def _refcoco(folder: Path) -> dict[str, UpstreamFacts]:
    rows = _coco(folder, "instances.json")
    boxes = {item: box for told in rows.values() for item, box in told.boxes.items()}
    for told in rows.values():
        told.boxes = {}
    for ref in load(folder / "refs.json"):
        for sentence in ref["sentences"]:
            row, item = rows[str(ref["image_id"])], str(sentence["sent_id"])
            row.boxes[item], row.phrases[item] = boxes[str(ref["ann_id"])], sentence["sent"]
    return rows


def _gqa(folder: Path) -> dict[str, UpstreamFacts]:
    urls = {name.removesuffix(".jpg"): url for name, url in lines(folder / "image_urls.tsv")}
    return {
        row: UpstreamFacts(
            urls[row],
            size=(graph["width"], graph["height"]),
            boxes={item: (one["x"], one["y"], one["w"], one["h"]) for item, one in graph["objects"].items()},
        )
        for row, graph in load(folder / "train_sceneGraphs.json").items()
    }


READ = {
    "coco": _coco_with_captions,
    "visual_genome": _visual_genome,
    "sbu": _sbu,
    "cc3m": _cc3m,
    "cc12m": _cc12m,
    "laion_en": _laion,
    "laion_multi": _laion,
    "objects365": lambda folder: _coco(folder, "zhiyuan_objv2_train.json"),
    "openimages": _openimages,
    "flickr_entities": _entities,
    "webvid": _webvid,
    "howto100m": _howto100m,
    "yttemporal": _yttemporal,
    "refcoco": _refcoco,
    "gqa": _gqa,
}
