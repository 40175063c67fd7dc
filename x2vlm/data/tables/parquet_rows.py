"""Parquet that goes on after a bad text and after a damaged row group."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from x2vlm.data.tables.csv_rows import pick_doubled
from x2vlm.data.tables.files import READ_ERRORS, open_bytes
from x2vlm.data.tables.rows import BadRow, ByteRange, Row, UnreadableTable
from x2vlm.data.tables.values import plain_value

BATCH_ROWS = 10_000
BLOCK = 1 << 20
REMEDY = "It is probably truncated; download it again"
BAD_VALUES = (UnicodeDecodeError, ValueError, OverflowError)  # of a value that Python cannot have


class ParquetTable(AbstractContextManager["ParquetTable"]):
    """An open Parquet file. A packed one (.gz, .zst) is unpacked into an unnamed temporary file."""

    def __init__(self, path: Path) -> None:
        """UnreadableTable if it is not Parquet or has lost its end, where Parquet says what it holds."""
        self._open = ExitStack()
        try:
            self._file = self._open.enter_context(pq.ParquetFile(self._unpacked(path), page_checksum_verification=True))
        except READ_ERRORS as error:
            self._open.close()
            raise UnreadableTable(f"not readable as Parquet after row 0: {error}", REMEDY) from None
        self._num_bytes = path.stat().st_size
        self.schema: pa.Schema = self._file.schema_arrow
        self.num_rows: int = self._file.metadata.num_rows

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _unpacked(self, path: Path) -> Path | BinaryIO:
        with path.open("rb") as file:
            if file.read(4) == b"PAR1":
                return path
        unpacked: BinaryIO = cast(BinaryIO, self._open.enter_context(tempfile.TemporaryFile()))  # noqa: SIM115
        with open_bytes(path) as packed:
            while block := packed.read(BLOCK):
                unpacked.write(block)
        unpacked.seek(0)
        return unpacked

    def rows(self, columns: Sequence[str], within: ByteRange | None = None) -> Iterator[Row | BadRow]:
        """The rows, in file order, with the values of `columns`, as `plain_value` gives them; with `within` those of
        the row groups that begin there.

        A row is bad if one of these columns holds bytes that are not UTF-8, or is there twice with two contents. The
        rows of a row group that cannot be read are bad from the batch on that fails.
        """
        start = 0
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            if within is not None and not within.start <= self._group_start(group) < within.stop:
                start = end
                continue
            try:
                for batch in self._file.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns)):
                    yield from _rows(batch, columns, start)
                    start += batch.num_rows
            except READ_ERRORS as error:
                reason = f"row group {group}: {' '.join(str(error).split())}"
                for number in range(start, end):
                    yield BadRow(number, 0, "unreadable_row_group", reason)
            start = end

    def _group_start(self, group: int) -> int:
        """The byte at which the pages of a row group begin."""
        columns = self._file.metadata.row_group(group)
        found = (columns.column(at) for at in range(columns.num_columns))
        offsets = (one.dictionary_page_offset or one.data_page_offset for one in found)
        return min((min(one, self._num_bytes - 1) for one in offsets), default=0)


def _rows(batch: pa.RecordBatch, columns: Sequence[str], start: int) -> Iterator[Row | BadRow]:
    bad: dict[int, tuple[str, str]] = {}  # position in the batch -> rule, reason
    found = {name: [_values(name, batch.column(at), bad) for at in batch.schema.get_all_field_indices(name)]
             for name in dict.fromkeys(columns)}  # fmt: skip
    doubled = {name: lists for name, lists in found.items() if len(lists) > 1}
    names = list(found)
    for position, row in enumerate(zip(*(lists[0] for lists in found.values()), strict=True)):
        values: dict[str, Any] = dict(zip(names, row, strict=True))
        problem = bad.get(position)
        if problem is None and doubled:
            reason = pick_doubled(values, {name: [one[position] for one in lists] for name, lists in doubled.items()})
            problem = ("doubled_column", reason) if reason else None
        if problem is None:
            yield Row(start + position, 0, values)
        else:
            yield BadRow(start + position, 0, *problem)


def _values(name: str, column: pa.Array, bad: dict[int, tuple[str, str]]) -> list[Any]:
    """The values of a column; those that Python cannot have are None, and written into `bad`."""
    try:
        values = column.to_pylist()
        return values if _is_text(column.type) else [plain_value(value) for value in values]
    except BAD_VALUES:
        pass
    found = []
    for position, scalar in enumerate(column):
        try:
            found.append(plain_value(scalar.as_py()))
        except BAD_VALUES as error:
            found.append(None)
            rule = "not_utf8" if isinstance(error, UnicodeDecodeError) else "malformed_row"
            bad.setdefault(position, (rule, f"column {name}: {error}"))
    return found


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_textual(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are texts, as text or bytes of any width, dictionary-encoded or not, or all null.

    An extension type is what it is stored as.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return is_textual(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return is_textual(kind.value_type)
    tests = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary),
        *(pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary, pa.types.is_null),
    )
    return any(test(kind) for test in tests)
