"""What reading a table gives: rows, and rows that are no good."""

from typing import Any, NamedTuple


class ByteRange(NamedTuple):
    """A slice of a file that is not packed: what begins at byte `start` or after it, and before `stop`.

    Slices that cover a file hold each of its records once, whatever their bounds.
    """

    start: int
    stop: int


class Row(NamedTuple):
    """A row by column name. Missing values (null, NaN) are None, bytes are decoded."""

    number: int  # of data rows, from 0
    line: int  # the last physical line of the row, from 1; 0 in Parquet, which has none
    values: dict[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be read, and why: the name of the rule and a reason for people.

    Rules: `not_utf8`, `nul_byte`, `malformed_csv` (a quote that is not closed or stands inside a quoted field),
    `field_too_long`, `line_too_long`, `wrong_column_count` (`value` is the count), `doubled_column` (a column that is
    there twice says two things), `malformed_json`, `unreadable_row_group`.
    """

    number: int
    line: int
    rule: str
    reason: str
    value: float | None = None
    start: int = 0  # its first byte, of a record of a CSV


class UnreadableTable(Exception):
    """A file as a whole is not a table of its format, or is cut off: the problem, and what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem
        self.remedy = remedy
