"""Recall of image copies, false matches of unrelated images, and the cost of the search.

    python -m tests.benchmarks.leaks                       # recall and false drops, about 5 minutes
    python -m tests.benchmarks.leaks --hashes 1e6,1e7      # the search among hashes alone

Recall: every image is a test image, its copies are training rows. False drops: images that are all different.
Tiles are sixteenths of photos: different images, similar in colour and light, many of them nearly flat. A photo that is
its own mirror image (COCO 6012) gives tiles that match each other mirrored, which is correct.
"""

import argparse
import hashlib
import io
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.render import render_scene
from pipelines.corpora.world.drawing.scene import make_scene
from x2vlm.data.duplicates.decontamination import DecontaminationConfig, Evaluation, Training, find_leaks
from x2vlm.data.duplicates.duplicates import ROW_SCHEMA, DuplicateConfig, find_duplicates
from x2vlm.data.duplicates.evaluation_ids import EVALUATION_ID_SCHEMA
from x2vlm.data.duplicates.hamming import near_pairs, tables
from x2vlm.data.duplicates.identities import ID_SCHEMA, identify
from x2vlm.data.duplicates.leaks import EVALUATION_SCHEMA, TRAIN_SCHEMA
from x2vlm.data.media.images import open_image
from x2vlm.data.media.phash import THUMBNAIL_BYTES, fingerprint, thumbnail_correlation, thumbnail_matrix, variants
from x2vlm.data.scores.clip_score import Clip, load_clip_folder

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "datasets/sample/media/photos"
CLIP = ROOT / "datasets/sample/models/tiny_clip"
EMBEDDING = pa.field("embedding", pa.list_(pa.float32()))

Named = tuple[str, Image.Image]


def centre(image: Image.Image, fraction: float) -> Image.Image:
    dx, dy = (int(side * fraction / 2) for side in image.size)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def corner(image: Image.Image, fraction: float) -> Image.Image:
    dx, dy = (int(side * fraction) for side in image.size)
    return image.crop((dx, dy, image.width, image.height))


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "exact copy": lambda one: stored(one),
    "other container": lambda one: encode(one, "PNG", compress_level=0),
    "JPEG quality 50": lambda one: encode(one, "JPEG", quality=50),
    "JPEG quality 20": lambda one: encode(one, "JPEG", quality=20),
    "half size": lambda one: encode(half(one), "JPEG", quality=88),
    "5 % crop, centre": lambda one: encode(centre(one, 0.05), "JPEG", quality=90),
    "5 % crop, corner": lambda one: encode(corner(one, 0.05), "JPEG", quality=90),
    "10 % crop, centre": lambda one: encode(centre(one, 0.1), "JPEG", quality=90),
    "mirrored": lambda one: encode(ImageOps.mirror(one), "JPEG", quality=90),
}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stored(image: Image.Image) -> bytes:
    """The bytes of a test image as in its data set."""
    return encode(image, "PNG", compress_level=1)


def photos(folder: Path) -> list[Named]:
    """The images in a folder and below, each file's bytes once, at most 640 pixels wide and high."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    distinct = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in reversed(files)}
    images = [(path.name, open_image(path.read_bytes())) for path in sorted(distinct.values())]
    for _, image in images:
        image.thumbnail((640, 640), Image.Resampling.LANCZOS)
    return images


def tiles(images: list[Named]) -> Iterator[Named]:
    for name, image in images:
        width, height = image.size
        for number in range(16):
            column, row = number % 4, number // 4
            box = (width * column // 4, height * row // 4, width * (column + 1) // 4, height * (row + 1) // 4)
            yield f"{name}#{number}", image.crop(box)


def scenes(count: int) -> Iterator[Named]:
    config = WorldConfig(scenes=max(count, 1))
    for number in range(count):
        yield f"scene {number}", Image.fromarray(render_scene(config.seed, make_scene(config, number)))


def row(key: str, data: bytes, image: Image.Image, clip: Clip | None) -> dict[str, Any]:
    embedding = None if clip is None else embed(clip, image)
    values: dict[str, Any] = {"key": key, "source": "web", "kind": "image", "sha256": hashlib.sha256(data).hexdigest()}
    values |= {"width": image.width, "height": image.height, "num_captions": 1, "embedding": embedding}
    return values | asdict(fingerprint([image]))


@torch.inference_mode()
def embed(clip: Clip, image: Image.Image) -> NDArray[np.float32]:
    feature_BD = clip.model.encode_image(clip.preprocess(image)[None]).float()
    unit: NDArray[np.float32] = torch.nn.functional.normalize(feature_BD, dim=-1)[0].numpy()
    return unit


def evaluation_rows(images: list[Named], clip: Clip | None) -> list[dict[str, Any]]:
    made = []
    for name, image in images:
        base = {"eval_set": "test", "split": "test", "eval_id": name}
        made.append(base | {"variant": ""} | row(name, stored(image), image, clip))
        for other, changed in variants(image):
            made.append(base | {"variant": other} | row(name, b"", changed, None))
    return made


def search(train: list[dict[str, Any]], test: list[dict[str, Any]], min_cosine: float | None) -> list[dict[str, Any]]:
    """Leaks by all methods, nothing dropped."""
    training = Training(pa.Table.from_pylist(train, schema=TRAIN_SCHEMA.append(EMBEDDING)), ID_SCHEMA.empty_table())
    images = pa.Table.from_pylist(test, schema=EVALUATION_SCHEMA.append(EMBEDDING))
    evaluation = Evaluation(images, EVALUATION_ID_SCHEMA.empty_table())
    config = DecontaminationConfig(policy="report", min_cosine=min_cosine)
    found: list[dict[str, Any]] = find_leaks(training, evaluation, identify([]), config).to_pylist()
    return found


def recall(images: list[Named], clip: Clip | None, min_cosine: float | None) -> dict[str, Any]:
    """Per kind of copy the fraction found by each method, by any without and with the embedding."""
    test = evaluation_rows(images, clip)
    result = {}
    for kind, copy in COPIES.items():
        train = []
        for name, image in images:
            data = copy(image)
            train.append(row(name, data, open_image(data), clip))
        found = [one for one in search(train, test, min_cosine) if one["key"] == one["eval_id"]]
        methods = sorted({one["method"] for one in found})
        recall_by_method = {name: fraction(found, len(images), name) for name in methods}
        plain = [one for one in found if one["method"] != "embedding"]
        result[kind] = recall_by_method | {
            "any but embedding": fraction(plain, len(images)),
            "any": fraction(found, len(images)),
        }
    return result


def fraction(found: list[dict[str, Any]], total: int, method: str = "") -> float:
    return round(len({one["key"] for one in found if method in ("", one["method"])}) / total, 4)


def false_finds(images: list[Named]) -> dict[str, Any]:
    """The matches among images that are all different, by distance of hashes, before and after the thumbnail."""
    rows = [row(name, name.encode(), image, None) for name, image in images]
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    clusters = find_duplicates(table, DuplicateConfig(priority=(), share=())).to_pylist()
    wrong = [one for one in clusters if one["action"] == "drop" and one["method"] == "phash"]
    result: dict[str, Any] = {"pictures": len(rows), "flat": sum(one["phash_flat"] for one in rows)}
    result["equal pixels"] = sum(one["method"] == "pixels" for one in clusters)  # blank tiles: true duplicates
    result |= {"false drops": len(wrong), "false drop rate": len(wrong) / len(rows)}
    informative = table.filter(pa.array([not one["phash_flat"] for one in rows]))
    values, thumbnails = informative["phash"].to_numpy(), thumbnail_matrix(informative["thumbnail"])
    distances: dict[str, list[int]] = {"hash": [0] * 13, "hash and thumbnail": [0] * 13}
    for first in range(len(values)):
        bits = np.bitwise_count(values[first + 1 :] ^ values[first])
        near = np.flatnonzero(bits <= 12)
        left = np.broadcast_to(thumbnails[first], (len(near), thumbnails.shape[1]))
        alike = thumbnail_correlation(left, thumbnails[first + 1 :][near]) >= DuplicateConfig().min_correlation
        for name, kept in (("hash", near), ("hash and thumbnail", near[alike])):
            for distance in bits[kept]:
                distances[name][int(distance)] += 1
    result["pairs"] = len(values) * (len(values) - 1) // 2
    result |= {f"pairs within n bits by {name}": np.cumsum(counts).tolist() for name, counts in distances.items()}
    return result


def false_leaks(images: list[Named]) -> dict[str, Any]:
    """Every second image is a test image with its variants, every other a training row: all finds are false."""
    train = [row(name, name.encode(), image, None) for name, image in images[::2]]
    found = search(train, evaluation_rows(images[1::2], None), None)
    inexact = [one for one in found if one["method"] != "pixels"]
    dropped = {one["key"] for one in inexact}
    methods = sorted({one["method"] for one in found})
    counts = {name: len({one["key"] for one in found if one["method"] == name}) for name in methods}
    return {"rows": len(train), "by method": counts, "false drops": len(dropped), "rate": len(dropped) / len(train)}


def max_unrelated_cosine(images: list[Named], clip: Clip) -> float:
    """The smallest tau at which at most 0.1 % of the images have an unrelated one as near: the limit of the model."""
    rows = np.stack([embed(clip, image) for _, image in images])
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -1)
    nearest = np.sort(cosine.max(axis=1))[::-1]
    return float(np.nextafter(nearest[int(0.001 * len(nearest))], np.float32(2)))


def hash_search(count: int) -> dict[str, Any]:
    """CPU seconds and peak memory of finding all pairs within 6 bits; one hash in a hundred has a planted neighbour."""
    draws = np.random.default_rng(1)
    hashes = draws.integers(0, 2**64, count, dtype=np.uint64)
    planted = hashes[: count // 100].copy()
    for number in range(6):
        bit = np.uint64(1) << draws.integers(0, 64, len(planted)).astype(np.uint64)
        planted = np.where(draws.integers(0, 2, len(planted)) | (number == 0), planted ^ bit, planted)
    wanted = planted[planted != hashes[: len(planted)]]
    origin = hashes[: len(planted)][planted != hashes[: len(planted)]]
    every = np.unique(np.concatenate([hashes, planted]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    pairs = near_pairs(every, 6)
    seconds = time.process_time() - began
    found = set(zip(every[pairs.left].tolist(), every[pairs.right].tolist(), strict=True))
    hits = sum((min(a, b), max(a, b)) in found for a, b in zip(wanted.tolist(), origin.tolist(), strict=True))
    return {
        "hashes": len(every),
        "tables": len(tables(6, len(every))),
        "cpu_seconds": round(seconds, 2),
        "cpu_microseconds_a_hash": round(seconds / len(every) * 1e6, 2),
        "planted": len(wanted),
        "planted_found": hits,
        "pairs": len(pairs),
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_mebibytes_before": before // 1024,
    }


def row_search(count: int) -> dict[str, Any]:
    """CPU seconds and memory of finding duplicates among unrelated rows, one in twenty a near copy of another."""
    draws = np.random.default_rng(1)
    values = draws.integers(0, 2**64, count, dtype=np.uint64)
    looks = draws.integers(0, 256, (count, THUMBNAIL_BYTES), dtype=np.uint8)
    copies = count // 20
    values[-copies:] = values[:copies] ^ np.uint64(0b101)
    looks[-copies:] = looks[:copies]
    table = pa.table(
        {
            "key": [f"{number:032x}" for number in range(count)],
            "source": pa.repeat(pa.scalar("web"), count),
            "kind": pa.repeat(pa.scalar("image"), count),
            "sha256": [f"{number:064x}" for number in range(count)],
            **{name: pa.repeat(pa.scalar(1, pa.int32()), count) for name in ("width", "height", "num_captions")},
            "pixel_sha256": [f"{number:064x}" for number in range(count)],
            "phash": pa.array(values),
            "phash_flat": pa.repeat(pa.scalar(False), count),
            "thumbnail": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(THUMBNAIL_BYTES), count, [None, pa.py_buffer(looks.tobytes())]
            ),
            "frame_phashes": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32), pa.array(values)),
        }
    ).cast(ROW_SCHEMA)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    found = find_duplicates(table, DuplicateConfig())
    seconds = time.process_time() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows": count,
        "copies": copies,
        "found": int(pc.sum(pc.equal(found["action"], "drop")).as_py()),
        "cpu_seconds": round(seconds, 2),
        "table_mebibytes": table.nbytes >> 20,
        "peak_mebibytes": after // 1024,
        "peak_mebibytes_before": before // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of photos, all different")
    parser.add_argument("--scenes", type=int, default=3000, help="rendered scenes for false drops")
    parser.add_argument("--recall-scenes", type=int, default=300, help="rendered scenes that are copied")
    parser.add_argument("--clip", type=Path, default=CLIP, help="open_clip folder; the shipped one is not meaningful")
    parser.add_argument("--hashes", default="", help="sizes of the hash search; then nothing else is measured")
    parser.add_argument("--rows", default="", help="sizes of the search for duplicates; then nothing else is measured")
    options = parser.parse_args()
    if options.hashes:
        for size in options.hashes.split(","):
            print(json.dumps(hash_search(int(float(size)))), flush=True)
        return
    if options.rows:
        for size in options.rows.split(","):
            print(json.dumps(row_search(int(float(size)))), flush=True)
        return
    clip = load_clip_folder(options.clip, "cpu")
    shots = photos(options.photos)
    worlds = list(scenes(options.scenes))
    for name, images, copied in (("photos", shots, shots), ("scenes", worlds, worlds[: options.recall_scenes])):
        tau = max_unrelated_cosine(images, clip)
        print(f"{name}: recall, embedding of {options.clip.name} with cosine >= {tau:.4f}")
        for kind, recall_by_method in recall(copied, clip, tau).items():
            print(f"  {kind:18} {json.dumps(recall_by_method)}", flush=True)
    for name, images in (("photos", shots), ("tiles", list(tiles(shots))), ("scenes", worlds)):
        print(f"{name}: false duplicates {json.dumps(false_finds(images))}")
        print(f"{name}: false leaks {json.dumps(false_leaks(images))}", flush=True)


if __name__ == "__main__":
    main()
