"""The input of a part, checked before any rule is applied."""

from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from x2vlm.errors import CorruptArtifact
from x2vlm.samples import SAMPLE_SCHEMA

REMEDY = "Run the stage that wrote it again with --force"


def read_rows(file: BinaryIO, name: str) -> pa.Table:
    """The file's rows as a table of SAMPLE_SCHEMA in one piece; `name` is for messages.

    Columns may come in any order and in types that cast without loss (a width of 640.0), further ones are ignored.
    CorruptArtifact for a file that is not Parquet, lacks a column, has another type or text that is not UTF-8, or a row
    without key.
    """
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise CorruptArtifact(f"{name}: not readable as Parquet: {error}. {REMEDY}") from error
    if missing := [field for field in SAMPLE_SCHEMA.names if field not in table.column_names]:
        raise CorruptArtifact(
            f"{name}: no column {', '.join(missing)}; it has {', '.join(table.column_names) or 'none'}. {REMEDY}"
        )
    rows = pa.table([_column(table, field, name) for field in SAMPLE_SCHEMA], schema=SAMPLE_SCHEMA)
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid as error:
        raise CorruptArtifact(f"{name}: {error}. {REMEDY}") from error
    for column in ("key", "source", "source_row"):
        if rows[column].null_count:
            row = pc.index(rows[column].is_null(), True).as_py()
            raise CorruptArtifact(
                f"{name}: row {row} has no {column}, so it cannot be recorded as kept or dropped. {REMEDY}"
            )
    return rows


def _column(table: pa.Table, field: pa.Field, name: str) -> pa.ChunkedArray:
    column = table[field.name].combine_chunks()
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise CorruptArtifact(
            f"{name}: column {field.name} holds {column.type}, not {field.type}: {error}. {REMEDY}"
        ) from error
