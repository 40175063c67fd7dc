"""Small corpora of real images and clips with hand-written scores, in the shape in which stages hand them on.

ImageTokens are drawn, encoded and fingerprinted by what the library itself uses for that; only CLIP scores are made up.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.deciding_nodes import bucket_configs
from pipelines.flow.segments import read_segment, segments_name, segments_of
from pipelines.flow.stage import Input, InputFile
from pipelines.s3_score.stage import EMBEDDING_SCHEMA, FINGERPRINT_SCHEMA, SCORE_SCHEMA, VARIANT_SCHEMA
from pipelines.s4_materialize import PACK, PARTITION, PackConfig, PartitionConfig
from pipelines.s4_materialize.buckets.captions import REPEATED_CAPTIONS, RepeatsConfig
from pipelines.s4_materialize.buckets.evidence_rows import EVIDENCE, EvidenceConfig
from pipelines.s4_materialize.buckets.exact import EXACT
from pipelines.s4_materialize.buckets.leaks import FIND_LEAKS, TEST_INDEX
from pipelines.s4_materialize.buckets.near import COMPONENTS, NEAR, ComponentsConfig, NearConfig
from pipelines.s4_materialize.buckets.stars import STARS
from pipelines.s4_materialize.decisions import DECISION_SCHEMA, DECISIONS
from pipelines.s4_materialize.decontaminate import DECONTAMINATE, DecontaminateConfig
from pipelines.s4_materialize.deduplicate import DEDUPLICATE, DeduplicateConfig
from tests.support.parts import Run, as_part, run_stage
from x2vlm.data.media.images import open_image
from x2vlm.data.media.phash import fingerprint, variants
from x2vlm.data.media.video import decode_frames, encode_frames
from x2vlm.data.shards.packs import Payload, write_media_pack
from x2vlm.errors import InvalidSample
from x2vlm.samples import Caption, Concept, Media, Sample, sample_key, sample_table, write_table

EMPTY: Mapping[str, tuple[Input, ...]] = {"rows": (), "scores": (), "media": ()}
PACKED = PackConfig()
PARTITIONED = PartitionConfig(num_shards=4, min_clip_score=0.25)


@dataclass(frozen=True)
class Row:
    """A sample, what is stored of its media, and the score that CLIP is said to have given."""

    sample: Sample
    payload: bytes
    score: float | None = 0.5


Parts = Sequence[Sequence[Row]]


def scene(number: int, size: tuple[int, int] = (192, 144)) -> Image.Image:
    """An image that no other number's resembles: smooth blotches of colour."""
    blotches = np.random.default_rng(number).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(blotches).resize((192, 144), Image.Resampling.BICUBIC).resize(size)


def encoded(image: Image.Image, image_format: str = "JPEG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def clip(*numbers: int, quality: int = 75, size: tuple[int, int] = (192, 144)) -> bytes:
    """The stored frames of a clip: a scene each."""
    frames = [encoded(scene(number, size), quality=quality) for number in numbers]
    return encode_frames(frames, [float(second) for second in range(len(frames))])


def row(
    source: str,
    name: str,
    payload: bytes,
    captions: Sequence[str] = ("something",),
    concepts: Sequence[Concept] = (),
    score: float | None = 0.5,
    url: str = "",
    span: tuple[float, float] | tuple[None, None] = (None, None),
) -> Row:
    """A row of `source`; its size is that of the image, and that of the first frame of a clip."""
    is_clip = payload.startswith(b"X2FRAME1")
    kind, stored = ("video", "frames") if is_clip else ("image", "png" if payload.startswith(b"\x89") else "jpeg")
    try:
        size = open_image(decode_frames(payload)[0][0] if is_clip else payload).size
    except InvalidSample:
        size = (192, 144)
    return Row(
        Sample(
            key=sample_key(source, name),
            source=source,
            source_row=name,
            split="train",
            kind=kind,
            url=url or f"http://sample.invalid/{source}/{name}",
            captions=tuple(Caption(text) for text in captions),
            concepts=tuple(concepts),
            start_seconds=span[0],
            end_seconds=span[1],
            media=Media(kind, hashlib.sha256(payload).hexdigest(), len(payload), *size, stored),
        ),
        payload,
        score,
    )


def build(folder: Path, sources: Mapping[str, Parts], with_variants: bool = False) -> dict[str, tuple[Input, ...]]:
    """`rows`, `scores` and `media` artifacts of every source, as filter, score and download would have written them."""
    made: dict[str, list[Input]] = {name: [] for name in EMPTY}
    for source, parts in sources.items():
        committed: dict[str, list[Any]] = {name: [] for name in EMPTY}
        for number, rows in enumerate(parts):
            base = folder / source / str(number)
            write_rows(base / "rows", rows)
            write_scores(base / "scores", rows, with_variants)
            write_media(base / "media", rows)
            for name in EMPTY:
                committed[name].append(as_part(f"{number:05d}", base / name))
        for name in EMPTY:
            made[name].append(Input(f"{name}/{source}", "", tuple(committed[name])))
    return {name: tuple(inputs) for name, inputs in made.items()}


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True)
    write_table(sample_table([one.sample for one in rows]), folder / "rows.parquet")


def write_scores(folder: Path, rows: Sequence[Row], with_variants: bool) -> None:
    folder.mkdir(parents=True)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("scores", "fingerprints", "variants")}
    for one in rows:
        key = {"key": one.sample.key}
        try:
            is_clip = one.sample.kind == "video"
            frames = [open_image(frame) for frame in (decode_frames(one.payload)[0] if is_clip else [one.payload])]
        except InvalidSample as error:
            tables["scores"].append({**key, "missing": error.rule})
            tables["fingerprints"].append(key)
            continue
        names = ("clip_score", "clip_score_max", "clip_score_middle")
        tables["scores"].append({**key, **dict.fromkeys(names, one.score), "missing": ""})
        tables["fingerprints"].append({**key, **asdict(fingerprint(frames))})
        if not is_clip:
            for name, changed in variants(frames[0]):
                tables["variants"].append({**key, "variant": name, **asdict(fingerprint([changed]))})
    schemas = {"scores": SCORE_SCHEMA, "fingerprints": FINGERPRINT_SCHEMA, "variants": VARIANT_SCHEMA}
    for name, schema in schemas.items():
        if name != "variants" or with_variants:
            write_table(pa.Table.from_pylist(tables[name], schema=schema), folder / f"{name}.parquet")
    vectors = [{"key": one.sample.key, "picture": None, "text": None} for one in rows]
    write_table(pa.Table.from_pylist(vectors, schema=EMBEDDING_SCHEMA), folder / "embeddings.parquet")


def write_media(folder: Path, rows: Sequence[Row]) -> None:
    folder.mkdir(parents=True)
    payloads = []
    for one in rows:
        assert one.sample.media is not None
        path = folder.parent / f"{one.sample.media.sha256}.bin"
        path.write_bytes(one.payload)
        payloads.append(Payload(one.sample.media.sha256, one.sample.media.format, path))
    write_media_pack(folder, payloads)


@dataclass
class Curated:
    """What the four stages wrote; `decontaminated` and `deduplicated` only where they were asked for."""

    partitioned: Run
    packed: Run
    decontaminated: Run | None = None
    deduplicated: Run | None = None
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)  # "source:row" -> its row in a shard
    drops: dict[str, dict[str, Any]] = field(default_factory=dict)  # "source:row" -> why partition took it out
    clusters: Run | None = None  # of `stars`


def compared(
    inputs: Mapping[str, tuple[Input, ...]],
    configs: tuple[EvidenceConfig, NearConfig],
    folder: Path,
    seed: int | None = None,
) -> Run:
    """evidence, near, components and exact; the last of them."""
    evidence = run_stage(EVIDENCE, configs[0], dict(inputs), folder / "evidence", seed)
    near = run_stage(NEAR, configs[1], {"evidence": (evidence.artifact,)}, folder / "near", seed)
    nothing = ComponentsConfig()
    labels = run_stage(COMPONENTS, nothing, {"links": (near.artifact,)}, folder / "components", seed)
    slots = {"evidence": (evidence.artifact,), "components": (labels.artifact,)}
    return run_stage(EXACT, nothing, slots, folder / "exact", seed)


def curate(
    corpus: Mapping[str, tuple[Input, ...]],
    folder: Path,
    deduplicate: DeduplicateConfig | None = None,
    decontaminate: DecontaminateConfig | None = None,
    tests: Mapping[str, tuple[Input, ...]] = EMPTY,
    files: Mapping[str, tuple[Input, ...]] | None = None,
    partition: PartitionConfig = PARTITIONED,
    pack: PackConfig = PACKED,
    seed: int | None = None,
) -> Curated:
    """`corpus` through decontaminate, deduplicate, partition and pack, as `graph` wires them."""
    read = {"rows": corpus["rows"], "scores": corpus["scores"]}
    decontaminated = deduplicated = clusters = None
    if deduplicate is not None:
        thresholds = {name: getattr(partition, name) for name in type(deduplicate.thresholds).model_fields}
        update = {"thresholds": deduplicate.thresholds.model_copy(update=thresholds)}
        deduplicate = deduplicate.model_copy(update=update)
    strict = decontaminate if decontaminate is not None and decontaminate.rule.policy == "strict" else None
    others = {"test_rows": tests["rows"], "test_scores": tests["scores"], "tests": (), "links": (), **(files or {})}
    exact: tuple[Input, ...] = ()
    if deduplicate is not None or strict is not None:
        links = others["links"] if strict else ()
        exact = (compared({**read, "links": links}, bucket_configs(strict, deduplicate), folder, seed).artifact,)
    decisions: tuple[Input, ...] = ()
    if decontaminate is not None:
        index = run_stage(TEST_INDEX, decontaminate, others, folder / "test_index", seed)
        found = run_stage(FIND_LEAKS, decontaminate, {**read, "index": (index.artifact,)}, folder / "leaks", seed)
        slots = {"leaks": (found.artifact,), "index": (index.artifact,), "exact": exact}
        decontaminated = run_stage(DECONTAMINATE, decontaminate, slots, folder / "decontaminate", seed)
        decisions = (decontaminated.artifact,)
    if deduplicate is not None:
        gone, decided = decisions, []
        if deduplicate.max_rows_per_caption is not None:
            repeats = RepeatsConfig(
                max_rows_per_caption=deduplicate.max_rows_per_caption, thresholds=deduplicate.thresholds
            )
            slots = {**read, "decisions": decisions, "exact": exact}
            decided.append(run_stage(REPEATED_CAPTIONS, repeats, slots, folder / "captions", seed).artifact)
            gone = (*gone, *decided)
        clusters = run_stage(STARS, deduplicate, {"rows": exact, "decisions": gone}, folder / "stars", seed)
        slots = {**read, "decisions": (clusters.artifact, *decided)}
        deduplicated = run_stage(DEDUPLICATE, deduplicate, slots, folder / "deduplicate", seed)
        decisions = (*decisions, deduplicated.artifact)
    with_media = {**read, "media": corpus["media"], "decisions": decisions}
    partitioned = run_stage(PARTITION, partition, with_media, folder / "partition", seed)
    packed = run_stage(
        PACK, pack, {"buckets": (partitioned.artifact,), "media": corpus["media"]}, folder / "pack", seed
    )
    kept, drops = (_by_row(run, pattern) for run, pattern in ((packed, "shard-?????.parquet"), (partitioned, "drops*")))
    return Curated(partitioned, packed, decontaminated, deduplicated, kept, drops, clusters)


def _by_row(run: Run, pattern: str) -> dict[str, dict[str, Any]]:
    rows = [one for path in sorted(run.folder.glob(f"*/{pattern}")) for one in pq.read_table(path).to_pylist()]
    return {f"{one['source']}:{one['source_row']}": one for one in rows}


BROKEN = encoded(scene(90))[:600]


def decisions_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every decision that a run of a stage wrote, by key."""
    tables = [DECISION_SCHEMA.empty_table()]
    for path in sorted(folder.glob(f"*/{DECISIONS}")):
        data = path.read_bytes()
        listing = (path.parent / segments_name(DECISIONS)).read_bytes()
        for one in segments_of(InputFile(DECISIONS, len(data), "", str(path)), listing).values():
            assert one.start is not None
            tables.append(read_segment(BytesIO(data[one.start : one.start + one.bytes])))
    return {one["key"]: one for one in pa.concat_tables(tables).to_pylist()}
