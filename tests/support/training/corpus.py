"""A small corpus of packed shards made of drawn images, and a toy model's settings, for tests of training."""

import hashlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from x2vlm.data.loading.config import StreamConfig
from x2vlm.data.loading.loader import DataConfig
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.media.video import encode_frames
from x2vlm.data.shards.shard import SCORED_SCHEMA, index_path, write_shard
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key, sample_table

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210), "white": (240, 240, 240)}
SHAPES = ("square", "bar", "tower", "plate")
WORDS = (*SPECIAL_TOKENS, *COLOURS, *SHAPES, "a", "on", "grey", "##s", "left", "right", "moving", "small")
TOKENIZER = WordPieceTokenizer(WORDS)

MODEL = ModelConfig(
    vision=VisionConfig(image_res=32, patch_size=16, width=32, depth=2, num_heads=2, drop_path=0.1),
    text=TextConfig(width=32, num_layers=1, num_heads=2, intermediate=64, vocab_size=len(WORDS), max_positions=40),
    fusion=FusionConfig(num_layers=1, num_heads=2, intermediate=64),
    embed_dim=16,
    num_frames=2,
)
DATA = DataConfig.model_validate(
    {
        "seed": 7,
        "streams": (
            StreamConfig(kind="image", batch_size=4),
            StreamConfig(kind="region", batch_size=8, num_images=4),
            StreamConfig(kind="video", batch_size=4),
        ),
        "examples": {"max_tokens": 12, "frames_per_clip": 2},
        "window_shards": 2,
    }
)


def make_shards(
    folder: Path, num_images: int = 24, num_videos: int = 6, num_shards: int = 3, broken: Sequence[int] = ()
) -> list[ShardFiles]:
    """Shards below `folder`; images whose number is in `broken` have a payload that cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    payloads: dict[str, bytes] = {}
    buckets: list[list[Sample]] = [[] for _ in range(num_shards)]
    for number in range(num_images + num_videos):
        is_video = number >= num_images
        sample, payload = _clip(number) if is_video else _image(number, number in broken)
        assert sample.media is not None
        payloads[sample.media.sha256] = payload
        buckets[int(sample.key[:8], 16) % num_shards].append(sample)
    files = []
    for number, samples in enumerate(buckets):
        table = sample_table(samples).append_column("clip_score", pa.nulls(len(samples), pa.float32()))
        tar = folder / f"shard-{number:05d}.tar"
        write_shard(tar, table.cast(SCORED_SCHEMA), payloads.__getitem__)
        files.append(ShardFiles(tar, index_path(tar)))
    return files


def _image(number: int, is_broken: bool) -> tuple[Sample, bytes]:
    colour, shape = list(COLOURS)[number % 4], SHAPES[number // 4 % 4]
    width, height = 48 + 2 * (number % 5), 40 + 3 * (number % 3)
    box = _box(shape, width, height, number)
    payload = _jpeg(colour, box, width, height, number)
    if is_broken:
        payload = payload[: len(payload) // 2]
    concepts = (
        Concept(Grain.OBJECT, shape, box, (colour,)),
        Concept(Grain.REGION, "small grey", Box(0.0, 0.0, width / 2, height / 2)),
    )
    sample = Sample(
        key=sample_key("drawn", str(number)),
        source="drawn" if number % 3 else "clean",
        source_row=str(number),
        split="train",
        kind="image",
        url="",
        captions=(Caption(f"A {colour} {shape}."), Caption(f"{colour} {shape}s on grey")),
        concepts=concepts,
        media=_media("image", payload, width, height, "jpeg"),
    )
    return sample, payload


def _clip(number: int) -> tuple[Sample, bytes]:
    colour, shape = list(COLOURS)[number % 4], SHAPES[number % 3]
    boxes = [_box(shape, 48, 40, number + step) for step in range(4)]
    jpegs = [_jpeg(colour, box, 48, 40, number * 10 + step) for step, box in enumerate(boxes)]
    payload = encode_frames(jpegs, [float(step) for step in range(4)])
    sample = Sample(
        key=sample_key("drawn-clips", str(number)),
        source="drawn-clips",
        source_row=str(number),
        split="train",
        kind="video",
        url="",
        captions=(Caption(f"a moving {colour} {shape}"),),
        media=_media("video", payload, 48, 40, "frames", 4),
    )
    return sample, payload


def drawn_jpeg(colour: str, shape: str, number: int) -> bytes:
    """An image of 48 x 40 pixels with one shape on noise."""
    return _jpeg(colour, _box(shape, 48, 40, number), 48, 40, number)


def _media(kind: str, payload: bytes, width: int, height: int, stored: str, num_frames: int = 1) -> Media:
    return Media(kind, hashlib.sha256(payload).hexdigest(), len(payload), width, height, stored, num_frames)


def _box(shape: str, width: int, height: int, number: int) -> Box:
    w, h = {"square": (16, 16), "bar": (28, 8), "tower": (8, 28), "plate": (24, 12)}[shape]
    return Box(float(number * 7 % (width - w)), float(number * 5 % (height - h)), float(w), float(h))


def _jpeg(colour: str, box: Box, width: int, height: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(110, 140, (height, width, 3), dtype=np.uint8)
    pixels[int(box.y) : int(box.y + box.h), int(box.x) : int(box.x + box.w)] = COLOURS[colour]
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
