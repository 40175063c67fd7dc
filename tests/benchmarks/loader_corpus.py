"""One corpus in the four formats that the compared loaders read: tars with an index, JSON lines, a folder."""

import base64
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from PIL import Image

from tests.benchmarks.photos import numbered, real_photos
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.media.images import open_image
from x2vlm.data.shards.rows import Row, row_of
from x2vlm.data.shards.shard import SCORED_SCHEMA, index_path, write_shard
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key, sample_table

ROOT = Path(__file__).resolve().parent.parent.parent
QUALITY = 90
MIN_EDGE_PIXELS = 300  # of the photos that are used: smaller ones would be enlarged
NUM_SHARDS = 4
BERT_SIZE = 30_522


@dataclass(frozen=True)
class Corpus:
    """The same images and captions, written four times."""

    shards: tuple[ShardFiles, ...]
    lines: tuple[Path, ...]
    folder: tuple[tuple[Row, Path], ...]
    vocabulary: Path
    mean_bytes: float


def write_corpus(out: Path, num_images: int, short_edge: int | None = None, long_edge: int | None = None) -> Corpus:
    """Real photos in the given size, with a caption and four boxes each; the bytes of every image are unique."""
    rng = random.Random(0)
    photos = [_resized(path, short_edge, long_edge) for path in real_photos() if _is_large(path)]
    words = captions_of_the_sample()
    samples, payloads = [], {}
    for number in range(num_images):
        data, (width, height) = photos[number % len(photos)]
        data = numbered(data, number)
        sample = _sample(number, data, width, height, " ".join(rng.choices(words, k=rng.randint(7, 16))), rng)
        samples.append(sample)
        payloads[sample.key] = data
    vocabulary = out / "vocab.txt"
    vocabulary.write_text("\n".join(bert_sized_vocabulary()) + "\n", encoding="utf-8")
    return Corpus(
        tuple(_shards(out, samples, payloads)),
        tuple(_lines(out, samples, payloads)),
        tuple(_folder(out, samples, payloads)),
        vocabulary,
        sum(map(len, payloads.values())) / len(payloads),
    )


def captions_of_the_sample() -> list[str]:
    """The whole words of the shipped vocabulary, which is made of the sample's captions, longest last."""
    entries = (ROOT / "datasets/sample/vocab.txt").read_text(encoding="utf-8").split()
    return [entry for entry in entries if entry.isalpha() and len(entry) > 1]


def bert_sized_vocabulary() -> list[str]:
    """The shipped vocabulary, padded to the size of BERT's with entries that occur in no caption."""
    entries = (ROOT / "datasets/sample/vocab.txt").read_text(encoding="utf-8").split("\n")
    entries = [entry for entry in entries if entry]
    assert set(SPECIAL_TOKENS) <= set(entries)
    return [*entries, *(f"[unused{number}]" for number in range(BERT_SIZE - len(entries)))]


def _is_large(path: Path) -> bool:
    return min(Image.open(path).size) >= MIN_EDGE_PIXELS


def _resized(path: Path, short_edge: int | None, long_edge: int | None) -> tuple[bytes, tuple[int, int]]:
    image = open_image(path.read_bytes())
    scale = short_edge / min(image.size) if short_edge else (long_edge or max(image.size)) / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue(), image.size


def _sample(number: int, data: bytes, width: int, height: int, caption: str, rng: random.Random) -> Sample:
    concepts = []
    for name in ("red car", "small dog", "open window", "tall tree"):
        w, h = rng.uniform(20, width), rng.uniform(20, height)
        concepts.append(Concept(Grain.OBJECT, name, Box(rng.uniform(0, width - w), rng.uniform(0, height - h), w, h)))
    sha256 = hashlib.sha256(data).hexdigest()
    return Sample(
        key=sample_key("photos", str(number)),
        source="photos",
        source_row=str(number),
        split="train",
        kind="image",
        url=f"https://photos.example/{number}.jpg",
        captions=(Caption(caption),),
        concepts=tuple(concepts),
        media=Media("image", sha256, len(data), width, height, "jpeg"),
    )


def _shards(out: Path, samples: Sequence[Sample], payloads: dict[str, bytes]) -> list[ShardFiles]:
    by_sha256 = {sample.media.sha256: payloads[sample.key] for sample in samples if sample.media}
    files = []
    for number in range(NUM_SHARDS):
        rows = samples[number::NUM_SHARDS]
        table = sample_table(rows).append_column("clip_score", pa.nulls(len(rows), pa.float32()))
        tar = out / f"shard-{number:05d}.tar"
        write_shard(tar, table.cast(SCORED_SCHEMA), by_sha256.__getitem__)
        files.append(ShardFiles(tar, index_path(tar)))
    return files


def _lines(out: Path, samples: Sequence[Sample], payloads: dict[str, bytes]) -> list[Path]:
    paths = [out / f"images-{number}.jsonl" for number in range(NUM_SHARDS)]
    for number, path in enumerate(paths):
        with path.open("w") as file:
            for sample in samples[number::NUM_SHARDS]:
                binary = base64.b64encode(payloads[sample.key]).decode()
                file.write(json.dumps({"binary": binary, "desc": sample.captions[0].text}) + "\n")
    return paths


def _folder(out: Path, samples: Sequence[Sample], payloads: dict[str, bytes]) -> list[tuple[Row, Path]]:
    (out / "pictures").mkdir()
    rows = []
    for sample in samples:
        path = out / "pictures" / f"{sample.key}.jpg"
        path.write_bytes(payloads[sample.key])
        rows.append((row_of(sample), path))
    return rows
