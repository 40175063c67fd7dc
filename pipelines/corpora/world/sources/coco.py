"""COCO: captions_*.json and instances_*.json, with refs of RefCOCO and the rows of Karpathy's split.

`segmentation` is the outline of the whole shape; `area` and `bbox` are of the visible part. A crowd's segmentation is
run-length encoded, as upstream.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.scene import Scene, Thing, bounds
from pipelines.corpora.world.drawing.shapes import SUBPIXELS
from pipelines.corpora.world.drawing.shots import HOST, Shot, unrelated_scene
from pipelines.corpora.world.drawing.texts import captions, unique_expression
from pipelines.corpora.world.drawing.words import SHAPES
from pipelines.corpora.world.records import Record, Truth
from pipelines.corpora.world.sources.box_noise import bad_boxes
from x2vlm.data.randomness import Draws

CATEGORY_IDS = {shape: 1 + position + position // 4 for position, shape in enumerate(SHAPES)}  # with gaps, as upstream
CATEGORIES = [{"supercategory": "shape", "id": number, "name": shape} for shape, number in CATEGORY_IDS.items()]
LICENCES = [{"url": "http://creativecommons.org/publicdomain/zero/1.0/", "id": 9, "name": "CC0 1.0"}]
INFO = {"description": "Procedural world in the format of COCO 2017", "url": HOST, "version": "1.0", "year": 2017}


def emit_coco(config: WorldConfig, shot: Shot) -> Iterator[Record]:
    """Records of one training image."""
    row = str(shot.image_id)
    draws = Draws(config.seed, shot.index, "coco")
    yield Record("coco/images", image_record(shot), tuple(shot.row(row)))
    texts = captions(shot.image, draws, 5)
    wrong = draws.integer(0, 4) if draws.chance(config.noise.mismatched_caption) else None
    if wrong is not None:
        other = captions(unrelated_scene(config, shot.image, draws), draws, 1)[0]
        texts = [other if position == wrong else text for position, text in enumerate(texts)]
    for position, text in enumerate(texts):
        planted = "mismatched_caption" if position == wrong else ""
        if draws.chance(0.05):
            text = f"{text[0].upper()}{text[1:]}. \n"  # readers clean this, so it is not a defect
        record = caption_record(shot.image_id, position, text)
        yield Record("coco/captions", record, (shot.item(row, "caption", str(position), planted),))
    for annotation in object_records(shot.image_id, shot.image):
        yield Record("coco/instances", annotation, (shot.item(row, "concept", str(annotation["id"])),))
    yield from _bad_objects(config, shot, row, draws)
    if "refcoco" in config.sources:
        yield from _refs(shot)
    yield Record("karpathy/images", karpathy_record(shot, texts, "restval" if shot.index % 5 == 0 else "train"))


def image_record(shot: Shot) -> dict[str, Any]:
    return {
        "license": 9,
        "file_name": shot.url.rsplit("/", 1)[1],
        "coco_url": shot.url,
        "height": shot.height,
        "width": shot.width,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": shot.url,
        "id": shot.image_id,
    }


def caption_record(image_id: int, position: int, text: str) -> dict[str, Any]:
    return {"image_id": image_id, "id": image_id * 10 + position, "caption": text}


def object_records(image_id: int, scene: Scene) -> list[dict[str, Any]]:
    """Annotations of a scene's things; ids are the image's with two digits appended."""
    return [_object(image_id, number, thing) for number, thing in enumerate(scene.things)]


def _object(image_id: int, number: int, thing: Thing) -> dict[str, Any]:
    return {
        "segmentation": [[coordinate / SUBPIXELS for point in ring for coordinate in point] for ring in thing.outline],
        "area": float(thing.visible),
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": [float(side) for side in thing.box],
        "category_id": CATEGORY_IDS[thing.shape],
        "id": image_id * 100 + number,
    }


def _bad_objects(config: WorldConfig, shot: Shot, row: str, draws: Draws) -> Iterator[Record]:
    for bad in bad_boxes(config, shot, "coco boxes"):
        x, y, w, h = (float(side) for side in bad.box)
        record = {
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "area": w * h,
            "iscrowd": 0,
            "image_id": shot.image_id,
            "bbox": [x, y, w, h],
            "category_id": draws.choice(tuple(CATEGORY_IDS.values())),
            "id": shot.image_id * 100 + 50 + bad.number,
        }
        truth = shot.item(row, "concept", str(record["id"]), bad.planted, bad.detail, bad.expected)
        yield Record("coco/instances", record, (truth,))
    if draws.chance(config.noise.crowd_box):
        record = _crowd(shot)
        detail = f"around {len(shot.image.things)} things"
        truth = shot.item(row, "concept", str(record["id"]), "crowd_box", detail, ("read", "iscrowd"))
        yield Record("coco/instances", record, (truth,))


def _crowd(shot: Shot) -> dict[str, Any]:
    mask = np.zeros((shot.height, shot.width), dtype=bool)
    for thing in shot.image.things:
        patch = thing.patch
        patch.on(mask)[patch.mask] = True
    return {
        "segmentation": {"counts": run_lengths(mask), "size": [shot.height, shot.width]},
        "area": int(mask.sum()),
        "iscrowd": 1,
        "image_id": shot.image_id,
        "bbox": list(bounds(mask)),
        "category_id": CATEGORY_IDS[shot.image.things[0].shape],
        "id": shot.image_id * 100 + 60,
    }


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length code: column by column, starting with the pixels outside."""
    flat = np.concatenate(([False], mask.ravel(order="F")))
    changes = np.flatnonzero(np.diff(flat.astype(np.int8))).tolist()
    borders = [0, *changes, mask.size]
    return [end - start for start, end in itertools.pairwise(borders)]


def _refs(shot: Shot) -> Iterator[Record]:
    """Refs of every thing that is identified without words of position, as in RefCOCO+."""
    row, refs = str(shot.image_id), ref_records(shot, "train")
    if not refs:
        return  # upstream's instances are of images with refs
    yield Record("refcoco/images", image_record(shot), tuple(shot.row(row, "refcoco")[:1]))
    for annotation in object_records(shot.image_id, shot.image):
        yield Record("refcoco/instances", annotation)
    for ref in refs:
        yield Record("refcoco/refs", ref, tuple(_sentence_truth(shot, row, sentence) for sentence in ref["sentences"]))


def _sentence_truth(shot: Shot, row: str, sentence: dict[str, Any]) -> Truth:
    """Of "red star" and "the red star" about one thing the second is a near duplicate."""
    item = str(sentence["sent_id"])
    if sentence["sent"].startswith("the "):
        expected = ("filter", "region_text_overlap")
        return shot.item(row, "concept", item, "near_duplicate_region", "with an article", expected, "refcoco")
    return shot.item(row, "concept", item, source="refcoco")


def ref_records(shot: Shot, split: str) -> list[dict[str, Any]]:
    """Refs in the JSON form of refs(unc).p; `file_name` has the annotation's id, as upstream."""
    refs = []
    for number, thing in enumerate(shot.image.things):
        words = unique_expression(shot.image, number)
        if words is None:
            continue
        annotation_id = shot.image_id * 100 + number
        sentences = [
            {"tokens": text.split(), "raw": text.capitalize(), "sent_id": annotation_id * 10 + position, "sent": text}
            for position, text in enumerate((words, f"the {words}"))
        ]
        refs.append(
            {
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "file_name": f"COCO_train2014_{shot.image_id:012d}_{annotation_id}.jpg",
                "ann_id": annotation_id,
                "ref_id": annotation_id,
                "image_id": shot.image_id,
                "split": split,
                "sentences": sentences,
                "category_id": CATEGORY_IDS[thing.shape],
            }
        )
    return refs


def karpathy_record(shot: Shot, texts: list[str], split: str) -> dict[str, Any]:
    """An image of dataset_coco.json."""
    sentence_ids = [shot.image_id * 10 + position for position in range(len(texts))]
    return {
        "filepath": "val2014" if split in ("val", "test", "restval") else "train2014",
        "sentids": sentence_ids,
        "filename": shot.url.rsplit("/", 1)[1],
        "imgid": shot.index,
        "split": split,
        "sentences": [
            {"tokens": text.lower().rstrip(". \n").split(), "raw": text, "imgid": shot.index, "sentid": number}
            for number, text in zip(sentence_ids, texts, strict=True)
        ],
        "cocoid": shot.image_id,
    }
