"""The table of a Hugging Face imagefolder: `metadata.csv`, `.jsonl` or `.parquet`, whose `file_name` names files."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from x2vlm.data.readers.own.files import SetFile
from x2vlm.data.readers.own.parquet_shard import BrokenParquet, open_parquet
from x2vlm.data.readers.source import Fault
from x2vlm.data.tables.csv_rows import records_of
from x2vlm.data.tables.rows import BadRow

FILE_NAME = "file_name"


def read_metadata(file: SetFile) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    """(line or row number from 1, its values or what is wrong with it). A bad line never ends the rest."""
    if file.name.lower().endswith(".parquet"):
        yield from _parquet_rows(file)
    elif file.name.lower().endswith(".jsonl"):
        yield from _json_lines(file)
    else:
        yield from _csv_rows(file)


def _parquet_rows(file: SetFile) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    number = 0
    try:
        with file.open() as stream, open_parquet(stream) as table:
            for batch in table.iter_batches(batch_size=1000):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
    except BrokenParquet as error:
        yield number + 1, ("bad_metadata", f"row {number + 1} and what follows: {error}")


def _json_lines(file: SetFile) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    with file.open() as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield number, ("bad_metadata", f"line {number} is no JSON in UTF-8: {error}"[:300])
                continue
            if isinstance(values, dict):
                yield number, values
            else:
                yield number, ("bad_metadata", f"line {number} is no JSON object")


def _csv_rows(file: SetFile) -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
    header: list[str] | None = None
    with file.open() as stream:
        for row in records_of(stream):
            if isinstance(row, BadRow):
                yield row.line, ("bad_metadata", f"line {row.line}: {row.reason}")
            elif header is None:
                header = [name.removeprefix("\ufeff").strip() for name in row.fields]
            elif len(row.fields) == len(header):
                yield row.last_line, dict(zip(header, row.fields, strict=True))
            elif row.fields:
                problem = f"line {row.last_line} has {len(row.fields)} fields, the header {len(header)}"
                yield row.last_line, ("bad_metadata", problem)
