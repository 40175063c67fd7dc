"""Some columns of a CSV as Arrow text columns: for annotation files of many short rows that are held in memory.

Arrow's parser is ten times as fast as `csv_rows`, but one stray quote ends it. It reads files without any quote, where
both agree on every row; all others, and those that it gives up, go through `csv_rows`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv

from x2vlm.data.tables.csv_rows import csv_rows
from x2vlm.data.tables.files import open_bytes
from x2vlm.data.tables.rows import BadRow

BLOCK = 1 << 20
BATCH_ROWS = 100_000


class Columns(NamedTuple):
    """The good rows, their numbers in the file, and the bad ones, each with its first field where that is known."""

    table: pa.Table
    numbers: list[int]
    bad: list[tuple[BadRow, str]]


def csv_columns(path: Path, columns: Sequence[str]) -> Columns:
    """The rows of a file with a header; UnreadableTable if a column is missing."""
    if not _has_quotes(path):
        try:
            return _by_arrow(path, columns)
        except (pa.ArrowException, KeyError):
            pass  # read it again, row by row, to say what is wrong
    return _by_row(path, columns)


def _has_quotes(path: Path) -> bool:
    """Whether a file is more than separators and values: quotes, NUL, packed bytes."""
    with path.open("rb") as file:
        if file.read(4)[:2] in (b"\x1f\x8b", b"\x28\xb5"):
            return True
        file.seek(0)
        return any(b'"' in block or b"\0" in block for block in iter(lambda: file.read(BLOCK), b""))


def _by_arrow(path: Path, columns: Sequence[str]) -> Columns:
    bad: list[tuple[BadRow, str]] = []

    def record_bad_line(row: Any) -> str:
        reason = f"{row.actual_columns} columns, {row.expected_columns} expected"
        found = BadRow(row.number - 2, row.number, "wrong_column_count", reason, row.actual_columns)  # header: row 1
        bad.append((found, row.text.split(",", 1)[0]))
        return "skip"

    with open_bytes(path) as file:
        table = pa.csv.read_csv(
            file,
            read_options=pa.csv.ReadOptions(use_threads=False),
            parse_options=pa.csv.ParseOptions(invalid_row_handler=record_bad_line),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.binary() for name in columns}, include_columns=list(columns)
            ),
        )
    skipped = {row.number for row, _ in bad}
    numbers = [number for number in range(table.num_rows + len(bad)) if number not in skipped]
    return _without_bad_texts(table, numbers, bad)


def _without_bad_texts(table: pa.Table, numbers: list[int], bad: list[tuple[BadRow, str]]) -> Columns:
    """The table as texts, without rows in which a value is not UTF-8."""
    schema = pa.schema([(name, pa.string()) for name in table.column_names])
    try:
        return Columns(table.cast(schema), numbers, bad)
    except pa.ArrowInvalid:
        pass
    problems: dict[int, tuple[str, str]] = {}
    for name in table.column_names:
        for at, value in enumerate(table[name].to_pylist()):
            try:
                (value or b"").decode("utf-8")
            except UnicodeDecodeError as error:
                problems.setdefault(
                    at, (f"column {name}: {error}", str(table.column(0)[at].as_py(), "utf-8", "replace"))
                )
    found = [
        (BadRow(numbers[at], numbers[at] + 2, "not_utf8", reason), first) for at, (reason, first) in problems.items()
    ]
    keep = [at for at in range(table.num_rows) if at not in problems]
    bad = sorted([*bad, *found], key=lambda one: one[0].number)
    return Columns(table.take(keep).cast(schema), [numbers[at] for at in keep], bad)


def _by_row(path: Path, columns: Sequence[str]) -> Columns:
    numbers: list[int] = []
    bad: list[tuple[BadRow, str]] = []

    def batches() -> Iterator[pa.RecordBatch]:
        waiting: list[list[str]] = []
        for row in csv_rows(path, columns):
            if isinstance(row, BadRow):
                bad.append((row, ""))
                continue
            numbers.append(row.number)
            waiting.append([row.values[name] for name in columns])
            if len(waiting) == BATCH_ROWS:
                yield batch(waiting)
                waiting = []
        yield batch(waiting)

    schema = pa.schema([(name, pa.string()) for name in columns])

    def batch(rows: list[list[str]]) -> pa.RecordBatch:
        values = zip(*rows, strict=True) if rows else ([] for _ in columns)
        return pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in values], schema=schema)

    return Columns(pa.Table.from_batches(list(batches()), schema), numbers, bad)
