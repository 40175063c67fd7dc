"""Shards of photo-like JPEGs with captions and boxes, generated locally: no network, no downloads."""

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from tests.benchmarks.photos import numbered
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.shards.media_files import PARQUET_SUFFIX
from x2vlm.data.shards.shard import SCORED_SCHEMA, index_path, write_shard
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key, sample_table

WIDTH, HEIGHT, QUALITY = 341, 256, 90  # short edge as staged; about 25 KB
NUM_IMAGES = 64  # distinct ones; every sample has unique bytes, by a number in a JPEG comment
WORDS = tuple(f"word{number}" for number in range(900))
BOXES_PER_IMAGE = 4


def tokenizer() -> WordPieceTokenizer:
    """One token per word of `WORDS`."""
    return WordPieceTokenizer((*SPECIAL_TOKENS, *WORDS))


def photo_like(number: int) -> bytes:
    """A JPEG with the falling spectrum of photographs."""
    random = np.random.default_rng(number)
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        spectrum = np.fft.rfft2(random.standard_normal((HEIGHT, WIDTH))) / frequency**1.1
        plane = np.fft.irfft2(spectrum, s=(HEIGHT, WIDTH))
        planes.append(128 + 50 * (plane - plane.mean()) / plane.std())
    buffer = BytesIO()
    Image.fromarray(np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_corpus(folder: Path, num_samples: int, num_shards: int, num_images: int = NUM_IMAGES) -> list[ShardFiles]:
    """Shards below `folder`: captions of 12 words on average, phrases of 4, four boxes an image."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [photo_like(number) for number in range(num_images)]
    payloads: dict[str, bytes] = {}
    shards: list[list[Sample]] = [[] for _ in range(num_shards)]
    for number in range(num_samples):
        payload = numbered(photos[number % num_images], number)
        sha256 = hashlib.sha256(payload).hexdigest()
        payloads[sha256] = payload
        shards[number % num_shards].append(_sample(number, Media("image", sha256, len(payload), WIDTH, HEIGHT, "jpeg")))
    files = []
    for number, samples in enumerate(shards):
        table = sample_table(samples).append_column("clip_score", pa.nulls(len(samples), pa.float32()))
        # Not as a tar: webdataset writes those, and it need not be installed here.
        path = folder / f"shard-{number:05d}{PARQUET_SUFFIX}"
        write_shard(path, table.cast(SCORED_SCHEMA), payloads.__getitem__)
        files.append(ShardFiles(path, index_path(path)))
    return files


def _sample(number: int, media: Media) -> Sample:
    random = np.random.default_rng(1_000_000 + number)
    return Sample(
        key=sample_key("photo-like", str(number)),
        source="photo-like",
        source_row=str(number),
        split="train",
        kind="image",
        url="",
        captions=(Caption(_text(random, 12, 4)),),
        concepts=tuple(_concepts(random)),
        media=media,
    )


def _concepts(random: np.random.Generator) -> Iterator[Concept]:
    for _ in range(BOXES_PER_IMAGE):
        w, h = int(random.integers(40, WIDTH // 2)), int(random.integers(40, HEIGHT // 2))
        box = Box(float(random.integers(WIDTH - w)), float(random.integers(HEIGHT - h)), float(w), float(h))
        yield Concept(Grain.REGION, _text(random, 4, 1.2), box)


def _text(random: np.random.Generator, mean: float, deviation: float) -> str:
    count = max(1, round(random.normal(mean, deviation)))
    return " ".join(WORDS[index] for index in random.integers(len(WORDS), size=count))
