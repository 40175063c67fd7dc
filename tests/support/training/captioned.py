"""Shards whose images have as many captions and region phrases as a test asks for, with payloads or without."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.shards.shard import SCORED_SCHEMA, SHARD_SCHEMA, index_path, write_shard
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key, sample_table, write_table

# "c3" is the fourth caption of an image, "p3" its fourth phrase.
TOKENIZER = WordPieceTokenizer(
    [*SPECIAL_TOKENS, "thing", *(f"{kind}{number}" for kind in "cp" for number in range(64))]
)
Texts = tuple[int, int]  # captions and region phrases of an image


@cache
def jpeg(number: int) -> bytes:
    """An image that differs from that of every other number."""
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def image_of(source: str, number: int, texts: Texts, broken: bool = False, blank: bool = False) -> tuple[Sample, bytes]:
    """An image with so many captions and phrases, and an object that is no phrase. `blank`: nothing is left of them."""
    payload = jpeg(int(hashlib.sha256(f"{source}/{number}".encode()).hexdigest()[:8], 16))
    payload = payload[: len(payload) // 2] if broken else payload
    captions, phrases = texts
    concepts = [Concept(Grain.OBJECT, "thing", Box(1.0, 1.0, 20.0, 20.0))]
    concepts += [Concept(Grain.REGION, f"p{turn}", Box(2.0, 2.0, 30.0, 30.0)) for turn in range(phrases)]
    sample = Sample(
        key=sample_key(source, str(number)),
        source=source,
        source_row=str(number),
        split="train",
        kind="image",
        url="",
        captions=tuple(Caption("..." if blank else f"c{turn}") for turn in range(captions)),
        concepts=tuple(concepts),
        media=Media("image", hashlib.sha256(payload).hexdigest(), len(payload), 48, 40, "jpeg"),
    )
    return sample, payload


def captioned_shards(
    folder: Path,
    sources: Mapping[str, Sequence[Texts]],
    num_shards: int = 4,
    broken: Iterable[tuple[str, int]] = (),
    blank: Iterable[tuple[str, int]] = (),
) -> list[ShardFiles]:
    """Shards below `folder` of images by source.

    Those in `broken` (source, number) cannot be decoded, captions of those in `blank` are empty once they are cleaned.
    """
    folder.mkdir(parents=True, exist_ok=True)
    payloads: dict[str, bytes] = {}
    samples = []
    for source, images in sources.items():
        for number, texts in enumerate(images):
            sample, payload = image_of(source, number, texts, (source, number) in broken, (source, number) in blank)
            assert sample.media is not None
            payloads[sample.media.sha256] = payload
            samples.append(sample)
    files = []
    for number, bucket in enumerate(_buckets(samples, num_shards)):
        table = sample_table(bucket).append_column("clip_score", pa.nulls(len(bucket), pa.float32()))
        tar = folder / f"shard-{number:05d}.tar"
        write_shard(tar, table.cast(SCORED_SCHEMA), payloads.__getitem__)
        files.append(ShardFiles(tar, index_path(tar)))
    return files


def indexes_of(folder: Path, samples: Sequence[Sample], num_shards: int = 8) -> list[ShardFiles]:
    """Indexes of shards that hold these samples, without payloads: enough to see which rows a stream draws."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, bucket in enumerate(_buckets(samples, num_shards)):
        with_media = [
            replace(sample, media=Media(sample.kind, sample.key * 2, 1, 640, 480, "jpeg"))
            for sample in sorted(bucket, key=lambda sample: sample.key)
        ]
        table = sample_table(with_media)
        size = len(with_media)
        columns = [*table.columns, pa.nulls(size, pa.float32()), pa.array([0] * size), pa.array([1] * size)]
        path = folder / f"shard-{number:05d}.parquet"
        write_table(pa.Table.from_arrays([*columns, pa.array([""] * size)], schema=SHARD_SCHEMA), path)
        files.append(ShardFiles(path, path))
    return files


def _buckets(samples: Sequence[Sample], num_shards: int) -> list[list[Sample]]:
    buckets: list[list[Sample]] = [[] for _ in range(num_shards)]
    for sample in samples:
        buckets[int(sample.key[:8], 16) % num_shards].append(sample)
    return buckets
