"""Stage 3, `score`: the CLIP score of every row, kept as an artifact of its own. No threshold is applied here.

A row's text is its first caption, for images and clips alike: upstream order puts the original text first, and one pass
over the pixels stays one pass. A clip's score is the mean over its frames (X2-VLM A.1 says neither mean nor max; the
maximum and the middle frame are recorded beside it). A row that cannot be scored stays, with a null and the reason.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pydantic import Field, model_validator

from pipelines.flow.stage import (
    Count,
    Inputs,
    Json,
    Part,
    PartReader,
    PartResult,
    PartSummary,
    PartWriter,
    Read,
    Stage,
)
from x2vlm.config import FrozenConfig
from x2vlm.data.media import open_image
from x2vlm.data.packs import INDEX_NAME, PACK_NAME, MediaPack
from x2vlm.data.video import decode_frames
from x2vlm.errors import ConfigError, CorruptArtifact, InvalidSample
from x2vlm.samples import SAMPLE_SCHEMA, Sample, samples_of, write_table

if TYPE_CHECKING:  # clip_score imports torch: planning must not wait for it, so functions import it
    from x2vlm.data.clip_score import Clip

FOLDER = "folder"

SCORE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("clip_score", pa.float32()),  # mean over the frames
        ("clip_score_max", pa.float32()),
        ("clip_score_middle", pa.float32()),
        ("frame_scores", pa.list_(pa.float32())),
        (
            "missing",
            pa.string(),
        ),  # why there is no score: no_caption, no_finite_score or a rule of the decoder; else ""
    ]
)


class ScoreConfig(FrozenConfig):
    """Which model scores, and how.

    `model` is "folder" (the files of the `model` slot) or a name: "ViT-B-32/laion2b_s34b_b79k", "hf-hub:owner/model".
    A name needs `weights_sha256`, because a name alone does not say which numbers come out.
    """

    model: str = FOLDER
    weights_sha256: str = ""
    # Images in the model at a time. Not part of a part's identity: it moves scores by less than 1e-6.
    batch_size: int = Field(default=64, ge=1, exclude=True)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _name_is_pinned(self) -> "ScoreConfig":
        if (self.model == FOLDER) == bool(self.weights_sha256):
            raise ValueError("weights_sha256 is needed with a model name, and only then: a folder's files are inputs")
        return self


def plan_score(config: ScoreConfig, inputs: Inputs) -> list[Part]:
    """One part per part of `rows`; the media pack of the same-named part of media[i] belongs to rows[i]."""
    if len(inputs["rows"]) != len(inputs["media"]):
        raise ConfigError(
            f"score reads {len(inputs['rows'])} rows artifacts but {len(inputs['media'])} media artifacts"
        )
    if bool(inputs["model"]) != (config.model == FOLDER):
        raise ConfigError(
            f"score with model {config.model!r} and {len(inputs['model'])} model files; a folder needs its files"
        )
    model = tuple(Read("model", file) for source in inputs["model"] for part in source.parts for file in part.files)
    parts = []
    for rows, media in zip(inputs["rows"], inputs["media"], strict=True):
        packs = {part.name: part for part in media.parts}
        for part in rows.parts:
            if part.name not in packs:
                raise ConfigError(f"{media.node} has no part {part.name} of {rows.node}; is it of that source?")
            lookups = tuple(Read("media", packs[part.name].file(name)) for name in (PACK_NAME, INDEX_NAME))
            reads = (Read("rows", part.file("rows.parquet")), *model)
            parts.append(Part(name=part.name, reads=reads, lookups=lookups))
    return parts


def score_part(config: ScoreConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """scores.parquet: one row per input row, in the same order."""
    clip = _clip_of(config, inputs, part)
    tar_path, index_path = (inputs.local_path(read.file) for read in part.lookups)
    with MediaPack(tar_path, index_path) as pack:
        samples = _samples(inputs.local_path(part.reads[0].file))
        table = pa.Table.from_pylist(list(score_samples(clip, samples, pack, config.batch_size)), schema=SCORE_SCHEMA)
    write_table(table, out.path / "scores.parquet")
    missing = table["missing"].to_pylist()
    summary = {
        "weights_sha256": clip.weights_sha256,
        "scored": missing.count(""),
        "missing": {reason: missing.count(reason) for reason in sorted(set(missing) - {""})},
    }
    return PartResult({"rows": Count(len(missing), len(missing))}, {"scores.parquet": len(missing)}, summary)


def add_up_scores(config: ScoreConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """Which weights scored, how many rows have a score, and how many have none, by reason."""
    missing: dict[str, int] = {}
    for part in parts:
        for reason, number in part.summary["missing"].items():
            missing[reason] = missing.get(reason, 0) + number
    return {
        "weights_sha256": sorted({part.summary["weights_sha256"] for part in parts}),
        "scored": sum(part.summary["scored"] for part in parts),
        "missing": dict(sorted(missing.items())),
    }


def score_samples(
    clip: "Clip", samples: Iterable[Sample], pack: MediaPack, batch_size: int
) -> Iterator[dict[str, object]]:
    """A row of SCORE_SCHEMA per sample, in order. At most `batch_size` images and one clip are decoded at a time."""
    rows: list[dict[str, object]] = []
    pairs: list[tuple[list[Image.Image], str]] = []
    for sample in samples:
        row: dict[str, object] = {"key": sample.key, "missing": "" if sample.captions else "no_caption"}
        frames: list[Image.Image] = []
        if sample.captions:
            try:
                frames = load_frames(sample, pack)
            except InvalidSample as error:
                row["missing"] = error.rule
        rows.append(row)
        pairs.append((frames, sample.captions[0].text if frames else ""))
        if sum(len(frames) for frames, _ in pairs) >= batch_size or len(pairs) >= batch_size:
            yield from _score_rows(clip, rows, pairs, batch_size)
            rows, pairs = [], []
    yield from _score_rows(clip, rows, pairs, batch_size)


def _score_rows(
    clip: "Clip", rows: list[dict[str, object]], pairs: list[tuple[list[Image.Image], str]], batch_size: int
) -> Iterator[dict[str, object]]:
    from x2vlm.data.clip_score import score_pairs

    for row, scores in zip(rows, score_pairs(clip, pairs, batch_size), strict=True):
        if not scores:
            yield row
        elif all(map(math.isfinite, scores)):
            yield row | aggregate(scores)
        else:
            yield row | {"missing": "no_finite_score"}


def aggregate(frame_scores: Sequence[float]) -> dict[str, object]:
    """Mean, maximum and middle of the scores of a clip's frames; of an even number the later of the middle two."""
    return {
        "clip_score": math.fsum(frame_scores) / len(frame_scores),
        "clip_score_max": max(frame_scores),
        "clip_score_middle": frame_scores[len(frame_scores) // 2],
        "frame_scores": list(frame_scores),
    }


def load_frames(sample: Sample, pack: MediaPack) -> list[Image.Image]:
    """The image, or the stored frames of a clip; InvalidSample if they cannot be decoded."""
    if sample.media is None or sample.media.sha256 not in pack:
        raise CorruptArtifact(
            f"sample {sample.key} of {sample.source} names media that its pack does not hold; rerun download and filter"
        )
    payload = pack.read(sample.media.sha256)
    jpegs = decode_frames(payload)[0] if sample.media.format == "frames" else [payload]
    return [open_image(jpeg) for jpeg in jpegs]


def _samples(rows: Path) -> Iterator[Sample]:
    with pq.ParquetFile(rows) as file:
        for batch in file.iter_batches(batch_size=1000, columns=SAMPLE_SCHEMA.names):
            yield from samples_of(pa.Table.from_batches([batch]))


def _clip_of(config: ScoreConfig, inputs: PartReader, part: Part) -> "Clip":
    if config.model != FOLDER:
        return _named_clip(config.model, config.weights_sha256, config.device)
    files = [read.file for read in part.reads if read.slot == "model"]
    return _folder_clip(tuple((file.path, file.sha256, inputs.local_path(file)) for file in files), config.device)


# One model per process: actors and reused workers load it once. Content hashes are in the key, so a changed file is
# another model even under the same path.
@lru_cache(maxsize=1)
def _folder_clip(files: tuple[tuple[str, str, Path], ...], device: str) -> "Clip":
    from x2vlm.data.clip_score import load_clip_files

    return load_clip_files({name: path for name, _, path in files}, device)


@lru_cache(maxsize=1)
def _named_clip(name: str, weights_sha256: str, device: str) -> "Clip":
    from x2vlm.data.clip_score import load_clip_name

    return load_clip_name(name, weights_sha256, device)


SCORE = Stage(
    name="score",
    version=1,
    config_type=ScoreConfig,
    slots=("rows", "media", "model"),
    plan_parts=plan_score,
    run_part=score_part,
    finish=add_up_scores,
)
