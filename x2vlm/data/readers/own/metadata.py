"""The table of a Hugging Face imagefolder: `metadata.csv`, `.jsonl` or `.parquet`, whose `file_name` names files."""

import csv
import json
from collections.abc import Iterator, Mapping
from typing import Any

from x2vlm.data.readers.own.files import SetFile
from x2vlm.data.readers.own.parquet_shard import BrokenParquet, open_parquet
from x2vlm.data.readers.source import Fault

FILE_NAME = "file_name"
MAX_FIELD_CHARS = 1 << 20


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
    csv.field_size_limit(MAX_FIELD_CHARS)
    with file.open() as stream:
        # Surrogates stand for bytes that are not UTF-8, so that only the rows that hold them are bad.
        lines = (line.decode("utf-8", "surrogateescape") for line in stream)
        rows = csv.reader(lines)
        header: list[str] | None = None
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                yield rows.line_num, ("bad_metadata", f"line {rows.line_num}: {error}")
                continue
            if row is None:
                return
            if header is None:
                header = [name.removeprefix("\ufeff").strip() for name in row]
            elif any("\udc80" <= char <= "\udcff" for value in row for char in value):
                yield rows.line_num, ("bad_metadata", f"line {rows.line_num} is not UTF-8")
            elif len(row) == len(header):
                yield rows.line_num, dict(zip(header, row, strict=True))
            elif row:
                problem = f"line {rows.line_num} has {len(row)} fields, the header {len(header)}"
                yield rows.line_num, ("bad_metadata", problem)
