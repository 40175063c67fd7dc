"""Samples, and the Arrow tables in which stages exchange them.

A sample is one image or clip with any number of captions (also none: T = NaN in Table 1 of the paper) and any number of
concepts (also none: N = 0). Boxes are `xywh` in pixels of the original image with its EXIF orientation applied.
"""

import enum
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.errors import InvalidSample

KEY_FORMAT_VERSION = "v1"

MediaKind = Literal["image", "video"]  # of a sample and of its media; kinds of batches are in `x2vlm.data.kinds`
MEDIA_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)


class Grain(enum.StrEnum):
    """What a text describes."""

    IMAGE = "image"
    REGION = "region"
    OBJECT = "object"
    VIDEO = "video"


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, width and height in pixels of the oriented original."""

    x: float
    y: float
    w: float
    h: float

    @property
    def area(self) -> float:
        return self.w * self.h


@dataclass(frozen=True)
class Caption:
    """A text about the whole image or clip. `origin`: alt, human, asr, relation or template."""

    text: str
    language: str = "en"
    origin: str = "human"


@dataclass(frozen=True)
class Concept:
    """A text with a box. `text` is the label for an object and the phrase for a region; attributes are separate."""

    grain: Grain
    text: str
    box: Box
    attributes: tuple[str, ...] = ()
    annotation_id: str = ""


@dataclass(frozen=True)
class Media:
    """The image or clip of a sample. `sha256` is of the original bytes as fetched, whatever is stored."""

    kind: MediaKind
    sha256: str
    bytes: int  # of the original
    width: int  # oriented pixels of the original
    height: int
    format: str  # of the stored file: one of x2vlm.data.media.formats.DECODED, or "frames"
    num_frames: int = 1
    phash: str = ""  # 64-bit perceptual hash, 16 hex digits; "" until it is computed


@dataclass(frozen=True)
class Fetch:
    """How the media were fetched.

    The time is in the ledger of the download stage and not here: fetching the same bytes again then gives the same
    rows, and nothing downstream has to run again.
    """

    final_url: str
    http_status: int
    content_type: str = ""
    opt_out: str = ""  # the opt-out signal seen, "" if none


@dataclass(frozen=True)
class SourceScores:
    """Scores that a source publishes for a row (LAION: columns of these names); None where missing.

    No stage computes them, and only rules that an experiment switches on read them.
    """

    similarity: float | None = None  # of image and text, by the CLIP that the source was made with
    punsafe: float | None = None  # probability of unsafe content
    pwatermark: float | None = None  # probability of a watermark
    nsfw: str | None = None  # the source's label: UNLIKELY, UNSURE, NSFW


@dataclass(frozen=True)
class Sample:
    """One row of a source. `media` and `fetch` are None until the download stage has run."""

    key: str
    source: str
    source_row: str
    split: str
    kind: MediaKind
    url: str
    captions: tuple[Caption, ...] = ()
    concepts: tuple[Concept, ...] = ()
    claimed_width: int | None = None  # from the annotation file, oriented pixels
    claimed_height: int | None = None
    start_seconds: float | None = None  # of a clip inside its video
    end_seconds: float | None = None
    licence: str = ""
    author: str = ""
    published_hash: str = ""  # of the media, by the source: "md5:<hex>", "sha256:<hex>" or "" (`readers.hashes`)
    media: Media | None = None
    fetch: Fetch | None = None
    source_scores: SourceScores | None = None  # None where the source has no scores


def sample_key(source: str, source_row: str) -> str:
    """The 32-hex-digit key of a source's row: equal in every run, even if the media changed.

    First 16 bytes of sha256 over format version, source and source row key, separated by NUL.
    """
    if not source or not source_row:
        raise InvalidSample("missing_row_key", f"source {source!r}, row {source_row!r}: both must be non-empty")
    text = "\0".join((KEY_FORMAT_VERSION, source, source_row))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32]


CAPTION_TYPE = pa.struct([("text", pa.string()), ("language", pa.string()), ("origin", pa.string())])
BOX_FIELDS = [("x", pa.float64()), ("y", pa.float64()), ("w", pa.float64()), ("h", pa.float64())]
CONCEPT_TYPE = pa.struct(
    [
        ("grain", pa.string()),
        ("text", pa.string()),
        ("box", pa.struct(BOX_FIELDS)),
        ("attributes", pa.list_(pa.string())),
        ("annotation_id", pa.string()),
    ]
)
MEDIA_TYPE = pa.struct(
    [
        ("kind", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("num_frames", pa.int32()),
        ("phash", pa.string()),
    ]
)
FETCH_TYPE = pa.struct(
    [
        ("final_url", pa.string()),
        ("http_status", pa.int32()),
        ("content_type", pa.string()),
        ("opt_out", pa.string()),
    ]
)
SOURCE_SCORES_TYPE = pa.struct(
    [
        ("similarity", pa.float64()),
        ("punsafe", pa.float64()),
        ("pwatermark", pa.float64()),
        ("nsfw", pa.string()),
    ]
)
SAMPLE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("source_row", pa.string()),
        ("split", pa.string()),
        ("kind", pa.string()),
        ("url", pa.string()),
        ("captions", pa.list_(CAPTION_TYPE)),
        ("concepts", pa.list_(CONCEPT_TYPE)),
        ("claimed_width", pa.int32()),
        ("claimed_height", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("licence", pa.string()),
        ("author", pa.string()),
        ("published_hash", pa.string()),
        ("media", MEDIA_TYPE),
        ("fetch", FETCH_TYPE),
        ("source_scores", SOURCE_SCORES_TYPE),
    ]
)


@dataclass(frozen=True)
class Drop:
    """A dropped row, concept or caption (`unit`), and the reason; `item` names the concept or caption."""

    key: str
    source: str
    source_row: str
    stage: str
    rule: str
    unit: str = "row"
    item: str = ""
    value: float | None = None
    threshold: float | None = None
    reason: str = ""


DROP_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("source_row", pa.string()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("unit", pa.string()),
        ("item", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
        ("reason", pa.string()),
    ]
)


def sample_table(samples: Iterable[Sample]) -> pa.Table:
    """Samples as a table of SAMPLE_SCHEMA, in the order given."""
    rows = list(samples)
    # Column by column: `pa.Table.from_pylist` of `dataclasses.asdict` took eight times as long.
    nested = {
        "captions": _lists([row.captions for row in rows], SAMPLE_SCHEMA.field("captions").type, _columns),
        "concepts": _lists([row.concepts for row in rows], SAMPLE_SCHEMA.field("concepts").type, _concept_columns),
        "media": _structs([row.media for row in rows], MEDIA_TYPE),
        "fetch": _structs([row.fetch for row in rows], FETCH_TYPE),
        "source_scores": _structs([row.source_scores for row in rows], SOURCE_SCORES_TYPE),
    }
    arrays = [
        nested[field.name] if field.name in nested else pa.array(map(attrgetter(field.name), rows), field.type)
        for field in SAMPLE_SCHEMA
    ]
    return pa.table(arrays, schema=SAMPLE_SCHEMA)


def drop_table(drops: Iterable[Drop]) -> pa.Table:
    """Drops as a table of DROP_SCHEMA, in the order given."""
    rows = list(drops)
    arrays = [pa.array(map(attrgetter(field.name), rows), field.type) for field in DROP_SCHEMA]
    return pa.table(arrays, schema=DROP_SCHEMA)


def _lists(
    lists: list[tuple[Any, ...]], kind: pa.ListType, columns: Callable[[list[Any], pa.StructType], list[pa.Array]]
) -> pa.Array:
    """Tuples of dataclasses as a list array of structs."""
    flat = list(chain.from_iterable(lists))
    offsets = pa.array([0, *accumulate(map(len, lists))], pa.int32())
    values = pa.StructArray.from_arrays(columns(flat, kind.value_type), fields=list(kind.value_type))
    return pa.ListArray.from_arrays(offsets, values, kind)


def _columns(values: list[Any], kind: pa.StructType) -> list[pa.Array]:
    return [pa.array(map(attrgetter(field.name), values), field.type) for field in kind]


def _concept_columns(concepts: list[Concept], kind: pa.StructType) -> list[pa.Array]:
    boxes = pa.StructArray.from_arrays(
        _columns([concept.box for concept in concepts], kind.field("box").type), fields=list(kind.field("box").type)
    )
    return [
        boxes if field.name == "box" else pa.array(map(attrgetter(field.name), concepts), field.type) for field in kind
    ]


def _structs(values: list[Any], kind: pa.StructType) -> pa.Array:
    """Dataclasses as structs, None as null."""
    missing = [value is None for value in values]
    if all(missing):
        return pa.nulls(len(values), kind)
    names = [field.name for field in kind]
    columns = [
        pa.array([None if value is None else getattr(value, name) for value in values], kind.field(name).type)
        for name in names
    ]
    return pa.StructArray.from_arrays(columns, fields=list(kind), mask=pa.array(missing))


def samples_of(table: pa.Table) -> list[Sample]:
    """The rows of a table of SAMPLE_SCHEMA as samples."""
    return [_sample(row) for row in table.to_pylist()]


def _sample(row: Mapping[str, Any]) -> Sample:
    values = dict(row)
    values["captions"] = tuple(Caption(**caption) for caption in row["captions"] or ())
    values["concepts"] = tuple(_concept(concept) for concept in row["concepts"] or ())
    values["media"] = None if row["media"] is None else Media(**row["media"])
    values["fetch"] = None if row["fetch"] is None else Fetch(**row["fetch"])
    scores = row.get("source_scores")
    values["source_scores"] = None if scores is None else SourceScores(**scores)
    return Sample(**values)


def _concept(values: Mapping[str, Any]) -> Concept:
    return Concept(
        grain=Grain(values["grain"]),
        text=values["text"],
        box=Box(**values["box"]),
        attributes=tuple(values["attributes"] or ()),
        annotation_id=values["annotation_id"],
    )


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet with fixed settings, so that equal tables give equal bytes."""
    pq.write_table(table, path, compression="zstd", row_group_size=10_000)


def count_rules(drops: Sequence[Drop], unit: str) -> dict[str, int]:
    """How many drops of `unit` each rule made, rules in alphabetical order."""
    counts: dict[str, int] = {}
    for drop in drops:
        if drop.unit == unit:
            counts[drop.rule] = counts.get(drop.rule, 0) + 1
    return dict(sorted(counts.items()))
