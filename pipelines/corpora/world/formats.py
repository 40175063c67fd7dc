"""Writers of the upstream file formats. All stream: memory does not grow with the world."""

import gzip
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpora.world.chunks import Chunks
from pipelines.corpora.world.records import to_json

Writer = Callable[[Chunks, Path], None]
BATCH_ROWS = 2_000  # 10,000 scenes with all their things took 300 MB as Python objects


def json_object(lists: Mapping[str, str], **fixed: Any) -> Writer:
    """A JSON object with fixed members and lists (member -> table)."""

    def write(chunks: Chunks, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write("{")
            for number, (key, value) in enumerate(fixed.items()):
                file.write(f"{', ' if number else ''}{to_json(key)}: {to_json(value)}")
            for number, (key, table) in enumerate(lists.items()):
                file.write(f"{', ' if number or fixed else ''}{to_json(key)}: [")
                _write_joined(file, (to_json(payload) for payload in chunks.payloads(table)))
                file.write("]")
            file.write("}")

    return write


def json_list(table: str) -> Writer:
    """A JSON list of a table's payloads."""

    def write(chunks: Chunks, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write("[")
            _write_joined(file, (to_json(payload) for payload in chunks.payloads(table)))
            file.write("]")

    return write


def json_dict(table: str) -> Writer:
    """A JSON object of a table's payloads, which are [key, value]."""

    def write(chunks: Chunks, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write("{")
            entries = chunks.payloads(table)
            _write_joined(file, (f"{to_json(key)}: {to_json(value)}" for key, value in entries))
            file.write("}")

    return write


def json_columns(table: str, columns: Sequence[str]) -> Writer:
    """A JSON object of lists of equal length, one per column."""

    def write(chunks: Chunks, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write("{")
            for number, column in enumerate(columns):
                file.write(f"{', ' if number else ''}{to_json(column)}: [")
                _write_joined(file, (to_json(payload[column]) for payload in chunks.payloads(table)))
                file.write("]")
            file.write("}")

    return write


def _write_joined(file: IO[str], parts: Iterable[str]) -> None:
    for number, part in enumerate(parts):
        file.write(f",\n{part}" if number else part)


def text_lines(table: str, header: str = "") -> Writer:
    """A text file of a table's payloads, below a header where there is one; gzip where the name ends so."""
    return _lines(lambda chunks: chunks.payloads(table), header)


def json_lines(table: str) -> Writer:
    """A file of JSON lines; gzip where the name ends so."""
    return _lines(lambda chunks: (to_json(payload) for payload in chunks.payloads(table)), "")


def fixed_lines(lines: Sequence[str]) -> Writer:
    """A text file that is the same in every world."""
    return _lines(lambda chunks: iter(lines), "")


def distinct_lines(table: str, make: Callable[[str], str], header: str) -> Writer:
    """A text file of the different values that `make` gives for a table's lines, sorted."""
    return _lines(lambda chunks: iter(sorted({make(line) for line in chunks.payloads(table)})), header)


def _lines(lines_of: Callable[[Chunks], Iterator[str]], header: str) -> Writer:
    def write(chunks: Chunks, path: Path) -> None:
        lines = itertools.chain([header] if header else [], lines_of(chunks))
        encoded = (f"{line}\n".encode() for line in lines)
        with path.open("wb") as file:
            if path.suffix == ".gz":
                # Without name and time, so that equal lines give equal bytes.
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                    packed.writelines(encoded)
            else:
                file.writelines(encoded)

    return write


def zip_archive(table: str) -> Writer:
    """A ZIP archive of a table's payloads, which are [name, text]."""

    def write(chunks: Chunks, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in chunks.payloads(table):
                member = zipfile.ZipInfo(
                    name, (1980, 1, 1, 0, 0, 0)
                )  # a fixed time, so that equal texts give equal bytes
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, text)

    return write


def parquet(table: str, schema: pa.Schema) -> Writer:
    """A Parquet file of a table's payloads."""
    return lambda chunks, path: write_parquet(chunks.payloads(table), schema, path)


def write_parquet(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, path: Path) -> None:
    """Rows as Parquet, in groups of a fixed size, so that equal rows give equal bytes."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = iter(rows)
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
