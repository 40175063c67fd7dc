"""A user's table in any of its formats as one stream of rows: CSV, TSV, JSON lines and Parquet, each also packed."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from x2vlm.data.tables.csv_rows import Record, csv_records, rows_of_records
from x2vlm.data.tables.files import open_bytes
from x2vlm.data.tables.json_rows import json_rows
from x2vlm.data.tables.parquet_rows import ParquetTable
from x2vlm.data.tables.rows import BadRow, ByteRange, Row, UnreadableTable

Format = Literal["csv", "tsv", "jsonl", "parquet"]
Match = Callable[[Sequence[str]], Sequence[str]]  # names of columns -> the ones that are wanted

SUFFIXES: dict[str, Format] = {
    **{".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"},
    **{".parquet": "parquet", ".pq": "parquet"},
}
PACKED = (".gz", ".zst")
DELIMITERS = ",;|"
HEAD_BYTES = 1 << 16
LOOK_ROWS = 100  # of JSON lines: their keys are the columns


def format_of(path: Path) -> Format:
    """The format by the name, else by what the file begins with; UnreadableTable if neither tells."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    head = head_of(path)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip().startswith(b"{"):
        return "jsonl"
    if head.lstrip().startswith(b"["):
        raise UnreadableTable("it is one JSON array", "Write one object a line: jq -c '.[]' FILE > FILE.jsonl")
    line = head.partition(b"\n")[0]
    if b"\t" in line:
        return "tsv"
    if b"," in line or b";" in line:
        return "csv"
    raise UnreadableTable(
        "neither its name nor its beginning says what it is", "Name it .csv, .tsv, .jsonl or .parquet"
    )


def head_of(path: Path) -> bytes:
    """The first unpacked bytes of a file, without a byte order mark."""
    with open_bytes(path) as file:
        return file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf")


def delimiter_of(path: Path, kind: Format) -> str:
    """What separates the columns of a CSV: of comma, semicolon and bar the one that its first line has most of."""
    if kind == "tsv":
        return "\t"
    line = head_of(path).partition(b"\n")[0].decode("utf-8", "replace")
    return max(DELIMITERS, key=line.count)


def table_rows(
    path: Path, match: Match, has_header: bool = True, within: ByteRange | None = None
) -> Iterator[Row | BadRow]:
    """The rows of a table, in file order, with at least the columns that `match` chooses among the names that it has.

    Without a header, columns are called "0", "1", ... Blank lines are no rows. UnreadableTable, or what `match` raises,
    before the first row. With `within`, the rows of a plain file that begin there; of Parquet, those of its row groups.
    """
    kind = format_of(path)
    if kind == "parquet":
        with ParquetTable(path) as table:
            yield from table.rows(match(table.schema.names), within)
    elif kind == "jsonl":
        yield from _json_rows(path, match, within)
    else:
        yield from _csv_rows(csv_records(path, delimiter_of(path, kind)), match, has_header, within)


def _json_rows(path: Path, match: Match, within: ByteRange | None) -> Iterator[Row | BadRow]:
    rows = json_rows(path)
    head = list(itertools.islice(rows, LOOK_ROWS))
    names: dict[str, None] = {}
    for row in head:
        names |= dict.fromkeys(row.values if isinstance(row, Row) else ())
    wanted = match(list(names))
    for row in itertools.chain(head, rows) if within is None else json_rows(path, within):
        if isinstance(row, Row):
            row = row._replace(values={name: row.values.get(name) for name in wanted})
        yield row


def _csv_rows(
    records: Iterator[Record | BadRow], match: Match, has_header: bool, within: ByteRange | None
) -> Iterator[Row | BadRow]:
    filled = (record for record in records if isinstance(record, BadRow) or any(record.fields))
    first = next(filled, None)
    if first is None:
        match(())
        return
    if isinstance(first, BadRow) and has_header:
        raise UnreadableTable(f"line {first.line} should name the columns: {first.reason}", "Correct that line")
    head = [] if has_header else [first]
    while not has_header and isinstance(head[-1], BadRow) and (more := next(filled, None)) is not None:
        head.append(more)
    named: Any = first if has_header else head[-1]
    width = len(named.fields) if isinstance(named, Record) else 0
    header = list(named.fields) if has_header else [str(number) for number in range(width)]
    yield from rows_of_records(itertools.chain(head, filled), header, match(header), within)
