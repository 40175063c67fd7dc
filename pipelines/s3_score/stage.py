"""The parts of the score stage and the tables they write. No threshold is applied here.

| file | content |
|---|---|
| scores.parquet | the CLIP score of every row: cosine of its image or frames with its first caption |
| embeddings.parquet | image and text embedding of unit length as float16: side data for duplicates and search |
| fingerprints.parquet | hashes of the decoded pixels (`x2vlm.data.media.phash`) |
| variants.parquet | with `variants`: the fingerprints of mirrored or cropped images |
| regions.parquet | with `regions`: the score of every concept's text against its box |

A row's text is its first caption, for images and clips alike: upstream order puts the original text first, and one pass
over the pixels stays one pass. A clip's score is the mean over its frames (X2-VLM A.1 does not specify mean or max; the
maximum and the middle frame are recorded too). A row that cannot be scored is kept, with a null and the reason.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
from pipelines.s3_score.config import FOLDER, ScoreConfig
from pipelines.s3_score.histograms import Histograms, add_up_histograms, part_histograms
from x2vlm.data.media.phash import FINGERPRINT_FIELDS
from x2vlm.data.shards.packs import INDEX_NAME, PACK_NAME, MediaPack
from x2vlm.errors import ConfigError
from x2vlm.samples import SAMPLE_SCHEMA, Sample, samples_of, write_table

if TYPE_CHECKING:  # both import torch: planning must not wait for it, so functions import them
    from pipelines.s3_score.rows import Scored
    from x2vlm.data.scores.clip_score import Clip

log = logging.getLogger(__name__)

ROWS_AT_A_TIME = 1000
GPU_SHARE = 0.5  # of a part: it decodes images most of the time, so two together keep one GPU busy

SCORE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("clip_score", pa.float32()),  # mean over the frames
        ("clip_score_max", pa.float32()),
        ("clip_score_middle", pa.float32()),
        ("frame_scores", pa.list_(pa.float32())),
        # Why there is no score: no_caption, no_finite_score or a rule of the decoder; else "".
        ("missing", pa.string()),
    ]
)
FINGERPRINT_SCHEMA = pa.schema([pa.field("key", pa.string()), *FINGERPRINT_FIELDS])
VARIANT_SCHEMA = pa.schema([("key", pa.string()), ("variant", pa.string()), *FINGERPRINT_FIELDS])
REGION_SCHEMA = pa.schema([("key", pa.string()), ("annotation_id", pa.string()), ("clip_score", pa.float32())])


# float16, null where there is no image or no text. Not of fixed size: Parquet reads null vectors of those as empty.
VECTOR = pa.list_(pa.float16())
EMBEDDING_SCHEMA = pa.schema([("key", pa.string()), ("picture", VECTOR), ("text", VECTOR)])


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
        for part in rows.parts:
            if not media.has_part(part.name):
                raise ConfigError(f"{media.node} has no part {part.name} of {rows.node}; is it of that source?")
            pack = media.part(part.name)
            lookups = tuple(Read("media", pack.file(name)) for name in (PACK_NAME, INDEX_NAME))
            reads = (Read("rows", part.file("rows.parquet")), *model)
            parts.append(Part(name=part.name, reads=reads, lookups=lookups))
    return parts


def score_part(config: ScoreConfig, inputs: PartReader, part: Part, out: PartWriter) -> PartResult:
    """One row per input row in every table except that of regions, in the order of the input."""
    from pipelines.s3_score.rows import Throughput, score_rows

    clip = _clip_of(config, inputs, part)
    tar_path, index_path = (inputs.local_path(read.file) for read in part.lookups)
    throughput, tables = Throughput(), _Tables(out.path, config)
    with MediaPack(tar_path, index_path) as pack:
        samples = _samples(inputs.local_path(part.reads[0].file))
        for scored in score_rows(clip, samples, pack, config, throughput):
            tables.add(scored)
    tables.close()
    log.info(
        "stage=score part=%s rows=%d images=%d seconds=%.1f images_per_second=%.1f model_busy=%.2f",
        *(part.name, tables.num_rows, throughput.num_images, throughput.seconds),
        *(throughput.num_images / max(throughput.seconds, 1e-9), throughput.model_busy),
    )
    summary = {
        "weights_sha256": clip.weights_sha256,
        "scored": tables.num_rows - sum(tables.missing.values()),
        "missing": dict(sorted(tables.missing.items())),
        "histograms": tables.histograms(inputs.local_path(part.reads[0].file)),
    }
    return PartResult({"rows": Count(tables.num_rows, tables.num_rows)}, tables.file_rows, summary)


class _Tables:
    """The output tables, written as they fill up."""

    def __init__(self, folder: Path, config: ScoreConfig) -> None:
        self.num_rows = 0
        self.file_rows: dict[str, int] = {}
        self.missing: dict[str, int] = {}
        self._folder, self._config = folder, config
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._vectors: dict[str, list[np.ndarray | None]] = {"picture": [], "text": []}

    def add(self, scored: "Scored") -> None:
        """Add the measurements of the next row."""
        self.num_rows += 1
        if scored.missing:
            self.missing[scored.missing] = self.missing.get(scored.missing, 0) + 1
        numbers = aggregate(scored.frame_scores) if scored.frame_scores else {}
        fingerprint = asdict(scored.fingerprint) if scored.fingerprint else {}
        self._keep("scores", {"key": scored.key, "missing": scored.missing, **numbers})
        self._keep("fingerprints", {"key": scored.key, **fingerprint})
        self._vectors["picture"].append(scored.image_D)
        self._vectors["text"].append(scored.text_D)
        for name, print_ in scored.variants:
            self._keep("variants", {"key": scored.key, "variant": name, **asdict(print_)})
        for annotation_id, score in scored.region_scores:
            self._keep("regions", {"key": scored.key, "annotation_id": annotation_id, "clip_score": score})

    def close(self) -> None:
        """Write all tables."""
        schemas = {"scores": SCORE_SCHEMA, "fingerprints": FINGERPRINT_SCHEMA}
        if self._config.regions:
            schemas["regions"] = REGION_SCHEMA
        if self._config.variants:
            schemas["variants"] = VARIANT_SCHEMA
        tables = {name: pa.Table.from_pylist(self._rows.get(name, []), schema=schemas[name]) for name in schemas}
        columns = [tables["scores"]["key"], *(_vectors(self._vectors[name]) for name in ("picture", "text"))]
        tables["embeddings"] = pa.Table.from_arrays(columns, schema=EMBEDDING_SCHEMA)
        for name, table in tables.items():
            write_table(table, self._folder / f"{name}.parquet")
            self.file_rows[f"{name}.parquet"] = table.num_rows

    def histograms(self, rows: Path) -> Histograms:
        """The histograms of the scores of these `rows`, and of shuffled pairs."""
        scores = [row.get("clip_score") for row in self._rows.get("scores", [])]
        return part_histograms(rows, scores, self._vectors["picture"], self._vectors["text"])

    def _keep(self, table: str, row: dict[str, Any]) -> None:
        self._rows.setdefault(table, []).append(row)


def _vectors(vectors: Sequence[np.ndarray | None]) -> pa.Array:
    """A column of float16 vectors, null for None; conversion by value in Python would cost more than the model."""
    sizes = [0 if vector is None else len(vector) for vector in vectors]
    flat = np.concatenate([vector for vector in vectors if vector is not None] or [np.empty(0)]).astype(np.float16)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    return pa.ListArray.from_arrays(
        offsets, pa.array(flat), mask=pa.array([vector is None for vector in vectors], pa.bool_())
    )


def add_up_scores(config: ScoreConfig, parts: Sequence[PartSummary]) -> Mapping[str, Json]:
    """The weights, the number of rows with a score, those without by reason, and the histograms."""
    missing: dict[str, int] = {}
    for part in parts:
        for reason, number in part.summary["missing"].items():
            missing[reason] = missing.get(reason, 0) + number
    return {
        "weights_sha256": sorted({part.summary["weights_sha256"] for part in parts}),
        "scored": sum(part.summary["scored"] for part in parts),
        "missing": dict(sorted(missing.items())),
        "histograms": add_up_histograms([part.summary["histograms"] for part in parts]),
    }


def aggregate(frame_scores: Sequence[float]) -> dict[str, Any]:
    """Mean, maximum and middle of the scores of a clip's frames; of an even number the later of the middle two."""
    return {
        "clip_score": math.fsum(frame_scores) / len(frame_scores),
        "clip_score_max": max(frame_scores),
        "clip_score_middle": frame_scores[len(frame_scores) // 2],
        "frame_scores": list(frame_scores),
    }


def _samples(rows: Path) -> Iterator[Sample]:
    with pq.ParquetFile(rows) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_A_TIME, columns=SAMPLE_SCHEMA.names):
            yield from samples_of(pa.Table.from_batches([batch]))


def _clip_of(config: ScoreConfig, inputs: PartReader, part: Part) -> "Clip":
    if config.model != FOLDER:
        return _named_clip(config.model, config.weights_sha256, config.device)
    files = [read.file for read in part.reads if read.slot == "model"]
    return _folder_clip(tuple((file.path, file.sha256, inputs.local_path(file)) for file in files), config.device)


# One model per process: actors and reused workers load it once. Content hashes are in the key, so a changed file is
# another model even at the same path.
@lru_cache(maxsize=1)
def _folder_clip(files: tuple[tuple[str, str, Path], ...], device: str) -> "Clip":
    from x2vlm.data.scores.clip_score import load_clip_files

    return load_clip_files({name: path for name, _, path in files}, device)


@lru_cache(maxsize=1)
def _named_clip(name: str, weights_sha256: str, device: str) -> "Clip":
    from x2vlm.data.scores.clip_score import load_clip_name

    return load_clip_name(name, weights_sha256, device)


SCORE = Stage(
    name="score",
    version=4,  # 4: transparent colours of PNGs of 2, 4 and 16 bits, and JPEGs that lack only their end
    config_type=ScoreConfig,
    slots=("rows", "media", "model"),
    plan_parts=plan_score,
    run_part=score_part,
    gpu_share=lambda config: 0.0 if config.device == "cpu" else GPU_SHARE,
    finish=add_up_scores,
)
