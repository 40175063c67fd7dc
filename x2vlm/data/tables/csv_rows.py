"""CSV that goes on after a bad row.

A quote that is not closed would take everything after it into one field. A row that turns out to be no good is
therefore given up at its first physical line, and reading goes on at the line after that: what a stray quote had
swallowed is read again as rows of its own. Line ends inside quotes are fine.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from x2vlm.data.tables.files import READ_ERRORS, open_text_bytes
from x2vlm.data.tables.rows import BadRow, ByteRange, Row, UnreadableTable

LINE_CHARS = 16 << 20  # of a physical line
RECORD_CHARS = 1 << 20  # of a row of several lines: so far is a quote searched for that closes another
UNCLOSED = "a quote is not closed on its line, and what follows is no row with it"
PROBLEMS = {"delimiter expected": "a quote inside a quoted field", "unexpected end": "a quote is not closed"}


class Record(NamedTuple):
    """The fields of a row, and the physical lines that it fills (from 1)."""

    first_line: int
    last_line: int
    fields: list[str]
    start: int = 0  # its first byte, behind a byte order mark


class _Lines:
    """The lines of a text, which can be put back: what `csv.reader` reads from."""

    def __init__(self, file: TextIO, keeps_bad_bytes: bool) -> None:
        self._file = file
        self._keeps_bad_bytes = keeps_bad_bytes
        self._waiting: list[tuple[str, int]] = []  # put back, with their bytes, the next one last
        self.line = 0  # of the last line taken
        self.position = 0  # the bytes of all lines taken
        self.begin()

    def begin(self) -> None:
        """The next line is the first of a record."""
        self.taken: list[str] = []
        self._sizes: list[int] = []  # of those
        self._num_chars = 0
        self.problem: tuple[str, str] | None = None  # of the current record: rule, reason

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if self.taken and self._num_chars > RECORD_CHARS:
            raise csv.Error("a row of several lines is too long")
        if self._waiting:
            line, size = self._waiting.pop()
        elif line := self._file.readline(LINE_CHARS):
            size = _num_bytes(line)
        else:
            raise StopIteration
        self.line += 1
        if len(line) >= LINE_CHARS and not line.endswith(("\n", "\r")):
            self.problem = "line_too_long", f"more than {LINE_CHARS >> 20} million characters without an end"
            while (rest := self._file.readline(LINE_CHARS)) and not rest.endswith(("\n", "\r")):
                size += _num_bytes(rest)
            size += _num_bytes(rest)
            line = "\n"
        elif "\0" in line:
            self.problem = "nul_byte", "a NUL byte"
        elif not line.isascii() and (reason := _not_utf8(line)):
            if self._keeps_bad_bytes:
                line = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            else:
                self.problem = "not_utf8", reason
        self.taken.append(line)
        self._sizes.append(size)
        self.position += size
        self._num_chars += len(line)
        return line

    def put_back(self) -> None:
        """All lines of the current record but the first will be read again."""
        again = list(zip(self.taken, self._sizes, strict=True))[1:]
        self._waiting += reversed(again)
        self.position -= sum(size for _, size in again)
        self.line -= len(again)


def _num_bytes(line: str) -> int:
    return len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))


def _not_utf8(line: str) -> str:
    """Where `line` holds bytes that are no UTF-8 ("" if nowhere): the decoder has left them as surrogates."""
    try:
        line.encode("utf-8")
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        return f"byte 0x{byte:02x} at character {error.start} of the line"
    return ""


def csv_records(path: Path, delimiter: str = ",", keeps_bad_bytes: bool = False) -> Iterator[Record | BadRow]:
    """The rows of a file as lists of fields, header included; `number` of a BadRow is that among them all.

    Bytes that are not UTF-8 make a row bad; with `keeps_bad_bytes` they become U+FFFD. A row of one line may have any
    length; one of several lines has as many fields as the first row, or it is a stray quote. UnreadableTable where the
    file is cut off inside its compression.
    """
    line = 0
    try:
        with open_text_bytes(path) as file:
            for record in records_of(file, delimiter, keeps_bad_bytes):
                line = record.last_line if isinstance(record, Record) else record.line
                yield record
    except READ_ERRORS as error:
        message = f"not readable after line {line}: {error}"
        raise UnreadableTable(message, "It is probably truncated; download it again") from None


def records_of(file: BinaryIO, delimiter: str = ",", keeps_bad_bytes: bool = False) -> Iterator[Record | BadRow]:
    """`csv_records` of an open file of plain text."""
    number = width = 0
    text = io.TextIOWrapper(cast(io.BufferedReader, file), "utf-8", "surrogateescape", newline="")
    lines = _Lines(text, keeps_bad_bytes)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin()
        first, start = lines.line + 1, lines.position
        try:
            fields, problem = next(reader, None), lines.problem
        except csv.Error as error:
            fields, problem = [], _malformed(lines, str(error))
        if fields is None:
            break
        width = width or len(fields)
        if delimiter == "\t" and (literal := _literal_fields(lines, fields, problem, width)):
            lines.put_back()
            yield Record(first, first, literal, start)
        elif len(lines.taken) > 1 and len(fields) != width:
            lines.put_back()
            yield BadRow(number, first, "malformed_csv", UNCLOSED, start=start)
        elif problem:
            yield BadRow(number, first, *problem, start=start)
        else:
            yield Record(first, lines.line, fields, start)
        number += 1


def _literal_fields(lines: _Lines, fields: list[str], problem: tuple[str, str] | None, width: int) -> list[str] | None:
    """The fields of a record's first line between tabs, where that is the better reading; None where it is not.

    In most TSV quotes are characters like any other, in some they enclose fields. They are characters where they make
    no row, or one that swallows lines which are rows of their own.
    """
    first, *others = [line.rstrip("\r\n").split("\t") for line in lines.taken]
    if len(first) != width or "\0" in lines.taken[0] or _not_utf8(lines.taken[0]):
        return None
    is_row = problem is None and len(fields) == width
    if is_row and (not others or any(len(other) != width for other in others)):
        return None
    return None if problem and problem[0] == "field_too_long" else first


def _malformed(lines: _Lines, message: str) -> tuple[str, str]:
    if lines.problem and len(lines.taken) == 1:
        return lines.problem
    if message.startswith("field larger") and len(lines.taken) == 1:
        return "field_too_long", f"a field of more than {csv.field_size_limit()} characters"
    if len(lines.taken) > 1:
        return "malformed_csv", UNCLOSED
    found = next((words for start, words in PROBLEMS.items() if start in message), message)
    return "malformed_csv", found


def csv_rows(
    path: Path, required: Sequence[str], keeps_bad_bytes: bool = False, within: ByteRange | None = None
) -> Iterator[Row | BadRow]:
    """The rows of a file with a header, by column name, in any order of columns.

    With `within`, the rows of a plain file that begin there. Which line ends are inside quotes is known only from
    where the file begins, so all before a slice goes through the parser too, at a tenth of the cost of a sample.

    A name that stands twice in the header means its first column; where the other column says something else and the
    name is one of `required`, the row is bad. UnreadableTable if a required column is missing.
    """
    records = csv_records(path, keeps_bad_bytes=keeps_bad_bytes)
    header: list[str] = []
    for record in records:
        if isinstance(record, Record):
            header = record.fields
            break
        if record.rule != "not_utf8":
            raise UnreadableTable(f"line {record.line} should name the columns: {record.reason}", "Correct that line")
        header = _header_of(path)
        break
    if missing := [name for name in required if name not in header]:
        has = ", ".join(_shown(name) for name in header) or "nothing"
        raise UnreadableTable(
            f"line 1 has no column {', '.join(missing)}; it has {has}",
            "Give the file this card names; columns are read by name, in any order",
        )
    yield from rows_of_records(records, header, required, within)


def rows_of_records(
    records: Iterator[Record | BadRow], header: Sequence[str], required: Sequence[str], within: ByteRange | None = None
) -> Iterator[Row | BadRow]:
    """Records below a header as rows by name, see `csv_rows`."""
    doubled = {name: [at for at, other in enumerate(header) if other == name] for name in required}
    doubled = {name: places for name, places in doubled.items() if len(places) > 1}
    first = {name: at for at, name in reversed(list(enumerate(header)))}
    is_plain = len(first) == len(header)
    for number, record in enumerate(records):
        if within is not None and record.start < within.start:
            continue
        if within is not None and record.start >= within.stop:
            return
        if isinstance(record, BadRow):
            yield record._replace(number=number)
        elif len(record.fields) != len(header):
            columns = len(record.fields)
            yield BadRow(number, record.last_line, "wrong_column_count", f"{columns} columns", columns)
        elif is_plain:
            yield Row(number, record.last_line, dict(zip(header, record.fields, strict=True)))
        else:
            values = {name: record.fields[at] for name, at in first.items()}
            if problem := pick_doubled(values, {n: [record.fields[p] for p in at] for n, at in doubled.items()}):
                yield BadRow(number, record.last_line, "doubled_column", problem)
            else:
                yield Row(number, record.last_line, values)


def pick_doubled(values: dict[str, Any], doubled: Mapping[str, Sequence[Any]]) -> str:
    """Puts the one value of every doubled column into `values`; the problem, if two of its columns say two things."""
    for name, found in doubled.items():
        said = [value for value in found if value not in (None, "")]
        if any(value != said[0] for value in said):
            return f"column {name} is there {len(found)} times: {said[0]!r} and others"
        values[name] = said[0] if said else found[0]
    return ""


def _header_of(path: Path) -> list[str]:
    """The names of the first line where some are not UTF-8: those are not asked for."""
    with open_text_bytes(path) as file:
        text = file.readline(LINE_CHARS).decode("utf-8", "replace")
    return next(csv.reader([text]), [])


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")
