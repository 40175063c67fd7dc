"""The input of stages that compare rows: rows with their fingerprints and embeddings, in one table.

One row takes about 0.5 KB (a thumbnail of 192 bytes is the largest column), and 1 KB more with an embedding of 512
values.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.flow.stage import PartReader, Read
from pipelines.s4_materialize.thresholds import SCORE_COLUMNS
from x2vlm.data.duplicates.duplicates import ROW_SCHEMA
from x2vlm.data.duplicates.identities import media_ids
from x2vlm.data.duplicates.leaks import EVALUATION_SCHEMA
from x2vlm.data.media.phash import FINGERPRINT_FIELDS
from x2vlm.errors import CorruptArtifact
from x2vlm.samples import SAMPLE_SCHEMA

ROW_COLUMNS = ["key", "source", "source_row", "kind", "url", "start_seconds", "end_seconds", "captions", "media"]
FINGERPRINTS, EMBEDDINGS, SCORES, VARIANTS = (
    f"{name}.parquet" for name in ("fingerprints", "embeddings", "scores", "variants")
)
ID_COLUMNS = ("url", "start_seconds", "end_seconds")  # of which, with `source_row`, `row_ids` are made
TEXT_COLUMNS = ("captions", "concepts")
EMBEDDING = pa.field("embedding", pa.list_(pa.float16()))
EVIDENCE_SCHEMA = pa.schema(
    [
        *ROW_SCHEMA,
        pa.field("source_row", pa.string()),
        pa.field("url", pa.string()),
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("clip_score", pa.float32()),
        pa.field("missing", pa.string()),
    ]
)


def read_evidence(
    inputs: PartReader, reads: Sequence[Read], score: str = "mean", embeddings: bool = False, texts: bool = False
) -> pa.Table:
    """One part's rows as EVIDENCE_SCHEMA (with `embedding`, or TEXT_COLUMNS, if requested) of its rows and score files.

    CorruptArtifact unless all files have the same keys in the same order.
    """
    paths = {read.file.path: inputs.local_path(read.file) for read in reads}
    columns_read = [*ROW_COLUMNS, *(TEXT_COLUMNS[1:] if texts else ())]
    rows = pq.read_table(paths["rows.parquet"], columns=columns_read).combine_chunks()
    scores = pq.read_table(paths[SCORES], columns=["key", SCORE_COLUMNS[score], "missing"])
    prints = pq.read_table(paths[FINGERPRINTS])
    media = rows["media"]
    columns = {
        **{name: rows[name] for name in ("key", "source", "kind", "source_row", "url", "start_seconds", "end_seconds")},
        **{name: pc.struct_field(media, name) for name in ("sha256", "width", "height")},
        "num_captions": pc.fill_null(pc.list_value_length(rows["captions"]), 0),
        **{field.name: prints[field.name] for field in FINGERPRINT_FIELDS},
        "clip_score": scores[SCORE_COLUMNS[score]],
        "missing": scores["missing"],
    }
    tables = {SCORES: scores, FINGERPRINTS: prints}
    schema = EVIDENCE_SCHEMA
    if embeddings:
        tables[EMBEDDINGS] = pq.read_table(paths[EMBEDDINGS], columns=["key", "picture"])
        columns["embedding"] = tables[EMBEDDINGS]["picture"]
        schema = schema.append(EMBEDDING)
    if texts:
        columns |= {name: rows[name] for name in TEXT_COLUMNS}
        schema = pa.schema([*schema, *(SAMPLE_SCHEMA.field(name) for name in TEXT_COLUMNS)])
    for name, table in tables.items():
        if not table["key"].equals(rows["key"]):
            raise CorruptArtifact(
                f"{paths[name]}: its keys are not those of {paths['rows.parquet']} ({table.num_rows} and "
                f"{rows.num_rows} rows); rerun the score stage of this source"
            )
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def first_of_each_key(rows: pa.Table) -> pa.Table:
    """Of every key the first row.

    A key occurs twice if two sources of an experiment have the same card. A decision about it applies to all its rows,
    and `pack` keeps the first.
    """
    if pc.count_distinct(rows["key"]).as_py() == rows.num_rows:
        return rows
    keys = rows["key"].combine_chunks()
    first = pc.equal(pc.index_in(keys, value_set=keys), pa.array(range(rows.num_rows), pa.int32()))
    return rows.filter(first)


def evaluation_images(evidence: pa.Table, variants: pa.Table, split: str) -> pa.Table:
    """Rows of a held-out source as EVALUATION_SCHEMA: its images, and their variants (mirrored, cropped)."""
    own = {
        "eval_set": evidence["source"],
        "split": pa.repeat(pa.scalar(split), evidence.num_rows),
        "eval_id": evidence["source_row"],
        "kind": evidence["kind"],
        "variant": pa.repeat(pa.scalar(""), evidence.num_rows),
        "sha256": evidence["sha256"],
        **{field.name: evidence[field.name] for field in FINGERPRINT_FIELDS},
    }
    names = list(EVALUATION_SCHEMA.names)
    if "embedding" in evidence.column_names:
        own["embedding"] = evidence["embedding"]
        names.append("embedding")
    images = pa.table({name: own[name] for name in names})
    places = pc.index_in(variants["key"], value_set=evidence["key"].combine_chunks())
    found = variants.filter(pc.is_valid(places))
    originals = images.take(places.filter(pc.is_valid(places)))
    for name in ("variant", *(field.name for field in FINGERPRINT_FIELDS)):
        originals = originals.set_column(originals.column_names.index(name), name, found[name])
    nothing = pa.nulls(originals.num_rows, pa.string())  # a variant has different pixels, and no bytes
    originals = originals.set_column(originals.column_names.index("sha256"), "sha256", nothing)
    schema = pa.schema([*EVALUATION_SCHEMA, *([EMBEDDING] if "embedding" in names else [])])
    return pa.concat_tables([images.cast(schema), originals.cast(schema)])


def row_ids(evidence: pa.Table, reader: str) -> pa.Table:
    """The public ids of every row as ID_SCHEMA; `reader` is their reader."""
    readers = dict.fromkeys(pc.unique(evidence["source"]).to_pylist(), reader)
    return media_ids(evidence, readers)
