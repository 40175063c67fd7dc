"""From samples and their stored media to scores, embeddings and fingerprints, row by row.

Threads read, decode, fingerprint and resize ahead of the model, in order and within bounds, so that the model gets full
batches. R regions, F frames, B images, C channels, H and W pixels, D width of the embedding.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.s3_score.config import ScoreConfig
from x2vlm.data.media.images import open_image
from x2vlm.data.media.phash import Fingerprint, fingerprint, variants
from x2vlm.data.media.video import decode_frames
from x2vlm.data.scores.clip_score import Clip, embed_pixels, embed_texts
from x2vlm.data.shards.packs import MediaPack
from x2vlm.data.text.texts import concept_text
from x2vlm.errors import CorruptArtifact, InvalidSample
from x2vlm.samples import Box, Concept, Sample


@dataclass(frozen=True)
class Prepared:
    """A row ready for the model. `missing`: why it has no pixels or no text (a rule of the decoder, no_caption)."""

    key: str
    missing: str = ""
    text: str = ""
    pixels_FCHW: Tensor | None = None
    fingerprint: Fingerprint | None = None
    variants: tuple[tuple[str, Fingerprint], ...] = ()
    concepts: tuple[Concept, ...] = ()
    regions_RCHW: Tensor | None = None

    @property
    def num_images(self) -> int:
        return sum(0 if pixels is None else len(pixels) for pixels in (self.pixels_FCHW, self.regions_RCHW))


@dataclass(frozen=True)
class Scored:
    """The measurements of a row: cosines per frame and per concept, normalised embeddings, fingerprint."""

    key: str
    missing: str = ""
    frame_scores: tuple[float, ...] = ()
    image_D: np.ndarray | None = None  # float32, of unit length; of a clip the mean over its frames
    text_D: np.ndarray | None = None
    fingerprint: Fingerprint | None = None
    variants: tuple[tuple[str, Fingerprint], ...] = ()  # (name of the variant, its fingerprint)
    region_scores: tuple[tuple[str, float], ...] = ()  # (annotation id, cosine)


@dataclass
class Throughput:
    """Timing of a part: the fraction of the time in which the model was busy."""

    num_images: int = 0
    model_seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def model_busy(self) -> float:
        return self.model_seconds / max(self.seconds, 1e-9)


def score_rows(
    clip: Clip,
    samples: Iterable[Sample],
    pack: MediaPack,
    config: ScoreConfig,
    throughput: Throughput | None = None,
) -> Iterator[Scored]:
    """The measurements of each sample, in order. About three batches of images, and one clip, are in memory."""
    throughput, size = throughput or Throughput(), config.batch_size
    batch: list[Prepared] = []
    for prepared in _prepare_ahead(clip, samples, pack, config):
        batch.append(prepared)
        if len(batch) >= size or sum(row.num_images for row in batch) >= size:
            yield from _score_batch(clip, batch, size, throughput)
            batch = []
    yield from _score_batch(clip, batch, size, throughput)


def _prepare_ahead(clip: Clip, samples: Iterable[Sample], pack: MediaPack, config: ScoreConfig) -> Iterator[Prepared]:
    """Rows in order, prepared by threads while the caller is busy; at most two batches of images wait."""
    waiting: deque[tuple[int, Future[Prepared]]] = deque()
    num_waiting = 0
    with ThreadPoolExecutor(config.decode_threads, thread_name_prefix="decode") as pool:
        try:
            for sample in samples:
                images = sample.media.num_frames if sample.media else 0
                images += len(sample.concepts) if config.regions else 0
                while waiting and num_waiting + images > 2 * config.batch_size:
                    size, future = waiting.popleft()
                    num_waiting -= size
                    yield future.result()
                waiting.append((images, pool.submit(prepare, clip, sample, pack, config)))
                num_waiting += images
            for _, future in waiting:
                yield future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def prepare(clip: Clip, sample: Sample, pack: MediaPack, config: ScoreConfig) -> Prepared:
    """`sample` decoded, fingerprinted and resized for the model; a broken image is named."""
    try:
        frames = load_frames(sample, pack)
    except InvalidSample as error:
        return Prepared(sample.key, error.rule)
    text = sample.captions[0].text if sample.captions else ""
    concepts, crops = _cut_out(sample, frames[0]) if config.regions and sample.kind == "image" else ((), [])
    return Prepared(
        sample.key,
        missing="" if sample.captions else "no_caption",
        text=text,
        pixels_FCHW=torch.stack([clip.preprocess(frame) for frame in frames]),
        fingerprint=fingerprint(frames),
        variants=_variants(sample, frames[0], config),
        concepts=tuple(concepts),
        regions_RCHW=torch.stack([clip.preprocess(crop) for crop in crops]) if crops else None,
    )


def _variants(sample: Sample, image: Image.Image, config: ScoreConfig) -> tuple[tuple[str, Fingerprint], ...]:
    if not config.variants or sample.kind != "image":
        return ()
    return tuple((name, fingerprint([changed])) for name, changed in variants(image))


def load_frames(sample: Sample, pack: MediaPack) -> list[Image.Image]:
    """The image, or the stored frames of a clip; InvalidSample if they cannot be decoded."""
    if sample.media is None or sample.media.sha256 not in pack:
        raise CorruptArtifact(
            f"sample {sample.key} of {sample.source} names media that its pack does not hold; rerun download and filter"
        )
    payload = pack.read(sample.media.sha256)
    jpegs = decode_frames(payload)[0] if sample.media.format == "frames" else [payload]
    return [open_image(jpeg) for jpeg in jpegs]


def _cut_out(sample: Sample, image: Image.Image) -> tuple[list[Concept], list[Image.Image]]:
    """The concepts whose box covers at least a pixel of the stored image, and the crops."""
    assert sample.media is not None
    scale_x, scale_y = image.width / sample.media.width, image.height / sample.media.height
    concepts, crops = [], []
    for concept in sample.concepts:
        left, top, right, bottom = _corners(concept.box, scale_x, scale_y, image.width, image.height)
        if right > left and bottom > top:
            concepts.append(concept)
            crops.append(image.crop((left, top, right, bottom)))
    return concepts, crops


def _corners(box: Box, scale_x: float, scale_y: float, width: int, height: int) -> tuple[int, int, int, int]:
    return (
        max(0, math.floor(box.x * scale_x)),
        max(0, math.floor(box.y * scale_y)),
        min(width, math.ceil((box.x + box.w) * scale_x)),
        min(height, math.ceil((box.y + box.h) * scale_y)),
    )


def _score_batch(clip: Clip, batch: Sequence[Prepared], batch_size: int, throughput: Throughput) -> Iterator[Scored]:
    """One pass of the image tower over all images of the batch, and one of the text tower over all its texts."""
    began = time.monotonic()
    pixels = [pixels for row in batch for pixels in (row.pixels_FCHW, row.regions_RCHW) if pixels is not None]
    texts = [text for row in batch for text in _texts(row)]
    image_BD = iter(embed_pixels(clip, torch.cat(pixels), batch_size)) if pixels else iter(())
    text_BD = iter(embed_texts(clip, texts, batch_size))
    throughput.model_seconds += time.monotonic() - began
    throughput.num_images += sum(row.num_images for row in batch)
    for row in batch:
        frame_FD = [next(image_BD) for _ in (() if row.pixels_FCHW is None else row.pixels_FCHW)]
        region_RD = [next(image_BD) for _ in row.concepts]
        text_D = next(text_BD) if _has_text(row) else None
        region_scores = tuple(
            (concept.annotation_id, float(next(text_BD) @ region_D))
            for concept, region_D in zip(row.concepts, region_RD, strict=True)
        )
        yield _scored(row, frame_FD, text_D, region_scores)


def _texts(row: Prepared) -> Iterator[str]:
    if _has_text(row):
        yield row.text
    yield from (concept_text(concept) for concept in row.concepts)


def _has_text(row: Prepared) -> bool:
    return row.pixels_FCHW is not None and row.missing == ""


def _scored(
    row: Prepared, frame_FD: Sequence[Tensor], text_D: Tensor | None, regions: tuple[tuple[str, float], ...]
) -> Scored:
    scores = () if text_D is None else tuple(float(frame_D @ text_D) for frame_D in frame_FD)
    mean_D = torch.nn.functional.normalize(torch.stack(list(frame_FD)).mean(dim=0), dim=-1) if frame_FD else None
    if not all(map(math.isfinite, scores)) or (mean_D is not None and not bool(mean_D.isfinite().all())):
        return Scored(row.key, "no_finite_score", fingerprint=row.fingerprint, variants=row.variants)
    return Scored(
        row.key,
        row.missing,
        scores,
        image_D=None if mean_D is None else mean_D.numpy(),
        text_D=None if text_D is None else text_D.numpy(),
        fingerprint=row.fingerprint,
        variants=row.variants,
        region_scores=regions,
    )
